"""Mixing the images of a batch, and random resized crops: against NumPy and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax import NetworkConfig, networks
from dmjax.config import AugmentConfig
from dmjax.data import augment
from dmjax.evaluation import mixing, on_device, training

SMALL = NetworkConfig(width=4, depth=1)
NONE = AugmentConfig("none")


def shares_by_hand(u, cutmix, mixup, height, width):
    """The share of each pixel that an image keeps, pixel by pixel."""
    share = np.ones((height, width))
    if u[0] < cutmix:
        cut = [int(side * np.sqrt(1 - u[1])) for side in (height, width)]
        centre = [int(v * side) for v, side in zip(u[2:], (height, width), strict=True)]
        for y in range(max(centre[0] - cut[0] // 2, 0), min(centre[0] + cut[0] // 2, height)):
            for x in range(max(centre[1] - cut[1] // 2, 0), min(centre[1] + cut[1] // 2, width)):
                share[y, x] = 0
    elif u[0] < cutmix + mixup:
        share[:] = u[1]
    return share


@pytest.mark.parametrize("seed", range(12))
def test_shares_of_a_mixed_image(seed):
    u = np.random.default_rng(seed).uniform(size=4).astype(np.float32)
    for cutmix, mixup in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.3), (0.5, 0.0)):
        actual = mixing.shares(jnp.array(u), cutmix, mixup, (16, 12))
        np.testing.assert_allclose(actual, shares_by_hand(u, cutmix, mixup, 16, 12), rtol=1e-6)


def recipe_of(**fields):
    return training.Recipe(0.1, 0.0, 0.0, 8, NONE)._replace(**fields)


def test_partners_are_a_permutation_without_what_pads_and_labels_are_mixed_by_area():
    """Image i is i everywhere and has label i, so that the mixed image shows whose its pixels are."""
    n, real = 8, 6
    images = jnp.broadcast_to(jnp.arange(n, dtype=jnp.float32)[:, None, None, None], (n, 10, 10, 1))
    labels, weights = jnp.eye(n), (jnp.arange(n) < real).astype(jnp.float32)
    kept = []
    for i in range(30):
        mixed, soft = mixing.mix(jax.random.key(i), recipe_of(cutmix=0.7), images, labels, weights)
        partners = []
        for k in range(real):
            counts = np.bincount(np.asarray(mixed[k]).astype(int).ravel(), minlength=n)
            np.testing.assert_allclose(soft[k], counts / 100, atol=1e-6)
            partners += [j for j in range(n) if j != k and counts[j]]
        assert set(partners) <= set(range(real))
        assert len(set(partners)) == len(partners)
        kept.append(float(soft[0, 0]))
    assert 0 < sum(share == 1 for share in kept) < 25  # a part is not mixed, or with itself
    assert len(set(np.round(kept, 4))) > 8


def test_the_loss_of_a_mixed_batch_is_the_mix_of_the_losses(rng):
    """One step of SGD on a linear model against NumPy."""
    n, side, classes = 6, 6, 3
    images = rng.normal(size=(n, side, side, 1)).astype(np.float32)
    labels = rng.integers(0, classes, n).astype(np.int32)
    network = networks.create(NetworkConfig(name="MLP"), classes, (side, side, 1))
    examples = on_device.Examples(images, labels, np.zeros(1, np.float32), np.ones(1, np.float32))
    recipe = recipe_of(cutmix=1.0, batch_size=n)
    key = jax.random.key(1)
    plan = training.make_plan(recipe, n, 4)
    state = training.start(network, plan, key, examples)
    before = jax.device_get(state.variables)
    after = training.advance(network, recipe, plan, state, key, examples, 1)
    order = np.asarray(after.order)
    partner_key, numbers_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 2), 0))
    u = np.asarray(jax.random.uniform(numbers_key, (4,)))
    partner = order[np.argsort(np.asarray(jax.random.uniform(partner_key, (n,))))]
    share = shares_by_hand(u, 1.0, 0.0, side, side)[None, :, :, None]
    mixed = (share * images[order] + (1 - share) * images[partner]).astype(np.float32)
    r = share.mean()
    assert 0 < r < 1

    def loss(params):
        logp = jax.nn.log_softmax(network.apply({"params": params}, mixed))
        own, other = (logp[np.arange(n), labels[index]].mean() for index in (order, partner))
        return -(r * own + (1 - r) * other)

    gradients = jax.grad(loss)(before["params"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before["params"], gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.variables["params"], expected
    )


@pytest.mark.parametrize("box", [(2, 3, 8, 5), (0, 0, 12, 10), (5, 1, 3, 9)])
def test_resized_crop_is_torchs_interpolation_of_the_box(torch, rng, box):
    x = rng.normal(size=(2, 12, 10, 3)).astype(np.float32)
    top, left, height, width = box
    cut = torch.tensor(x[:, top : top + height, left : left + width].transpose(0, 3, 1, 2).copy())
    expected = torch.nn.functional.interpolate(cut, size=(12, 10), mode="bilinear", align_corners=False)
    actual = augment.resize_box(x, jnp.array(box, jnp.float32))
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_crops_have_the_areas_and_ratios_that_were_asked_for():
    u = jax.random.uniform(jax.random.key(0), (4000, 4))
    top, left, height, width = np.asarray(jax.jit(jax.vmap(lambda v: augment.crop_box(v, 0.25, (24, 20))))(u)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 24 + 1e-4).all()
    assert (left + width <= 20 + 1e-4).all()
    whole = (height < 24 - 1e-4) & (width < 20 - 1e-4)  # sides that are not cut off
    area, ratio = height * width / (24 * 20), (width / 20) / (height / 24)
    np.testing.assert_allclose(area[whole], 0.25 + 0.75 * np.asarray(u)[whole, 0], rtol=1e-4)
    assert 0.25 <= area.min() < 0.26
    assert 0.75 - 1e-4 <= ratio[whole].min() < 0.77
    assert 1.3 < ratio[whole].max() <= 4 / 3 + 1e-4
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    out = augment.crop_and_resize(jax.random.key(0), jnp.asarray(np.repeat(image, 8, axis=0)), 0.2)
    assert len(np.unique(np.asarray(out).reshape(8, -1), axis=0)) == 8  # another box for every image
    np.testing.assert_allclose(augment.crop_and_resize(jax.random.key(0), jnp.ones((3, 8, 8, 1)), 0.2), 1, rtol=1e-5)
