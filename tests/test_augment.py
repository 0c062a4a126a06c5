"""Augmentation against NumPy and PyTorch formulas, and as a linear map and a distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax.common import backend
from dmjax.config import ALL_AUGMENTATIONS, AUGMENTATIONS, AugmentConfig
from dmjax.data import augment

ALL = AugmentConfig()


def draw(group, u, shape, config=ALL):
    return augment.parameters(jnp.int32(AUGMENTATIONS.index(group)), jnp.array(u, jnp.float32), config, shape)


def images_of(rng, shape, n=3):
    return rng.normal(size=(n, *shape)).astype(np.float32)


@pytest.mark.parametrize("u", [(0.1, 0.8, 0.3), (0.9, 0.2, 0.95)])
def test_color(rng, u):
    x = images_of(rng, (6, 5, 3))
    expected = x + (u[0] - 0.5) * 1.0
    mean = expected.mean(axis=3, keepdims=True)
    expected = (expected - mean) * (u[1] * 2.0) + mean
    mean = expected.mean(axis=(1, 2, 3), keepdims=True)
    expected = (expected - mean) * (u[2] + 0.5) + mean
    actual = augment.apply(draw("color", u, x.shape[1:]), x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_crop_moves_by_whole_pixels_up_to_an_eighth(rng):
    side = 16
    x = images_of(rng, (side, side, 2))
    reach = int(0.125 * side + 0.5)
    assert reach == 2
    seen = set()
    for u in np.linspace(0, 0.999, 11):
        actual = np.asarray(augment.apply(draw("crop", (u, 0.0, 0.0), x.shape[1:]), x))
        # u is cut into 2 * reach + 1 equal parts; the second axis gets the first of them, -reach.
        move = int(u * (2 * reach + 1)) - reach
        padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        expected = padded[:, reach + move : reach + move + side, :side]
        np.testing.assert_array_equal(actual, expected)
        seen.add(move)
    assert seen == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("side", [8, 9, 16, 28, 32])
@pytest.mark.parametrize("u", [(0.0, 0.0), (0.5, 0.7), (0.999, 0.3)])
def test_cutout(rng, side, u):
    x = images_of(rng, (side, side, 1))
    k = int(0.5 * side + 0.5)
    centres = [int(v * (side + (1 - k % 2))) for v in u]
    rows = np.clip(np.arange(k) + centres[0] - k // 2, 0, side - 1)
    columns = np.clip(np.arange(k) + centres[1] - k // 2, 0, side - 1)
    expected = x.copy()
    expected[:, rows[:, None], columns[None, :]] = 0
    np.testing.assert_array_equal(augment.apply(draw("cutout", (*u, 0), x.shape[1:]), x), expected)


@pytest.mark.parametrize(("u", "flipped"), [(0.49, True), (0.51, False)])
def test_flip(rng, u, flipped):
    x = images_of(rng, (7, 6, 3))
    actual = augment.apply(draw("flip", (u, 0, 0), x.shape[1:]), x)
    np.testing.assert_array_equal(actual, x[:, :, ::-1] if flipped else x)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shape", [(16, 16, 3), (12, 20, 1)])
@pytest.mark.parametrize("group", ["scale", "rotate"])
@pytest.mark.parametrize("u", [(0.05, 0.9), (0.8, 0.3)])
def test_scale_and_rotate_match_torch(torch, rng, group, shape, u, align_corners):
    x = images_of(rng, shape)
    if group == "scale":
        sx, sy = (v * (1.2 - 1 / 1.2) + 1 / 1.2 for v in u)
        theta = [[sx, 0, 0], [0, sy, 0]]
    else:
        angle = (u[0] - 0.5) * 2 * 15 / 180 * np.pi
        theta = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    theta = torch.tensor([theta] * len(x), dtype=torch.float32)
    nchw = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    grid = torch.nn.functional.affine_grid(theta, list(nchw.shape), align_corners=align_corners)
    expected = torch.nn.functional.grid_sample(nchw, grid, align_corners=align_corners).numpy().transpose(0, 2, 3, 1)
    actual = augment.apply(draw(group, (*u, 0), shape, AugmentConfig(align_corners=align_corners)), x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_align_corners_matters_where_the_image_is_not_square(rng):
    x = images_of(rng, (12, 20, 1))
    results = [
        augment.apply(draw("rotate", (0.9, 0, 0), x.shape[1:], AugmentConfig(align_corners=a)), x)
        for a in (True, False)
    ]
    assert np.abs(results[0] - results[1]).max() > 0.01


@pytest.mark.parametrize("group", AUGMENTATIONS)
def test_gradient_is_the_adjoint(rng, group):
    """All groups but the brightness offset are linear: <A x, y> - <A 0, y> = <x, A^T y>."""
    x, y = images_of(rng, (8, 8, 3)), images_of(rng, (8, 8, 3))
    a = draw(group, (0.3, 0.8, 0.6), x.shape[1:])
    out, pull_back = jax.vjp(lambda v: augment.apply(a, v), jnp.asarray(x))
    (gradient,) = pull_back(jnp.asarray(y))
    constant = augment.apply(a, jnp.zeros_like(x))
    np.testing.assert_allclose(np.vdot(out - constant, y), np.vdot(x, gradient), rtol=1e-5, atol=1e-4)


def test_every_image_of_a_batch_gets_the_same_draw(rng):
    x = np.repeat(images_of(rng, (8, 8, 1), n=1), 4, axis=0)
    for i in range(12):
        out = np.asarray(augment.apply(augment.sample(jax.random.key(i), ALL, x.shape[1:]), x))
        np.testing.assert_array_equal(out, np.repeat(out[:1], 4, axis=0))


def test_training_draws_one_group_per_batch_and_parameters_per_image(rng):
    x = np.repeat(images_of(rng, (8, 8, 1), n=1), 64, axis=0)
    crop = AugmentConfig("crop")
    draws = augment.sample_each(jax.random.key(0), crop, (8, 8, 1), 64)
    out = np.asarray(augment.apply_each(draws, x))
    assert len(np.unique(out.reshape(64, -1), axis=0)) == 9  # an eighth of 8 is one pixel either way, on two axes
    for i in range(8):
        draws = augment.sample_each(jax.random.key(i), ALL, (8, 8, 1), 64)
        recolored = np.asarray(draws.recolor)
        assert recolored.min() == recolored.max()  # one group for all


@pytest.mark.parametrize(
    "config", [*(AugmentConfig(group) for group in ALL_AUGMENTATIONS), AugmentConfig(composite=True)], ids=str
)
def test_images_with_draws_of_their_own_are_what_each_is_alone(rng, config):
    """By gathering, and by the product with the weights of rows and columns that a TPU takes; gradients alike."""
    x, g = images_of(rng, (6, 9, 3), n=5), images_of(rng, (6, 9, 3), n=5)
    draws = augment.sample_each(jax.random.key(1), config, x.shape[1:], len(x))
    alone = [augment.apply(jax.tree.map(lambda leaf, i=i: leaf[i], draws), x[i : i + 1])[0] for i in range(len(x))]
    np.testing.assert_allclose(augment.apply_each(draws, x), np.stack(alone), rtol=1e-5, atol=1e-5)
    gathered = jax.vjp(lambda v: augment.apply_each(draws, v), x)[1](g)[0]
    with backend.described("tpu"):
        by_products, pull_back = jax.vjp(lambda v: augment.apply_each(draws, v), x)
        np.testing.assert_allclose(by_products, np.stack(alone), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(pull_back(g)[0], gathered, rtol=1e-4, atol=1e-5)


def test_groups_and_parameters_are_uniform():
    keys = jax.random.split(jax.random.key(0), 6000)
    drawn = np.asarray(jax.vmap(lambda k: augment.sample_group(k, ALL))(keys))
    counts = np.bincount(drawn, minlength=6)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 5 / 6)
    no_flip = AugmentConfig("color_crop_cutout_scale_rotate")
    drawn = np.asarray(jax.vmap(lambda k: augment.sample_group(k, no_flip))(keys))
    assert set(drawn) == {0, 1, 2, 4, 5}
    scale = jax.vmap(lambda k: augment.sample(k, AugmentConfig("scale"), (8, 8, 1)))(keys).linear
    for i in range(2):
        values = np.asarray(scale[:, i, i])
        assert 1 / 1.2 <= values.min() < 0.84
        assert 1.19 < values.max() <= 1.2
        assert abs(values.mean() - (1.2 + 1 / 1.2) / 2) < 0.01


def test_none_changes_nothing(rng):
    x = images_of(rng, (8, 8, 1))
    none = AugmentConfig("none")
    assert augment.apply(augment.sample(jax.random.key(0), none, (8, 8, 1)), x) is x
    assert augment.apply_each(augment.sample_each(jax.random.key(0), none, (8, 8, 1), 3), x) is x


def test_vmap_over_classes_costs_no_more_than_each_class_alone(rng):
    """A switch under vmap would compute all groups for every class."""
    shape = (16, 16, 3)
    x = jnp.asarray(images_of(rng, shape, n=8))

    def one(key, images):
        return augment.apply(augment.sample(key, ALL, shape), images)

    keys, classes = jax.random.split(jax.random.key(0), 6), jnp.stack([x] * 6)
    alone = jax.jit(one).lower(keys[0], x).compile().cost_analysis()["flops"]
    together = jax.jit(jax.vmap(one)).lower(keys, classes).compile().cost_analysis()["flops"]
    assert together < 1.5 * 6 * alone


def test_noise_is_drawn_only_where_a_strategy_names_it(rng):
    """A thousandth in standard deviation, differentiable, another for every image."""
    x = images_of(rng, (16, 16, 3), n=8)
    noise = AugmentConfig("noise")
    assert augment.sample(jax.random.key(0), ALL, x.shape[1:]).noise is None
    out = augment.apply(augment.sample(jax.random.key(0), noise, x.shape[1:]), x) - x
    assert np.std(out) == pytest.approx(1e-3, rel=0.05)
    assert np.abs(out[0] - out[1]).max() > 1e-3
    each = augment.apply_each(augment.sample_each(jax.random.key(0), noise, x.shape[1:], 8), x) - x
    assert np.abs(each[0] - each[1]).max() > 1e-3
    some = [augment.sample(jax.random.key(i), AugmentConfig("crop_noise"), (8, 8, 1)).noise[0] for i in range(40)]
    assert 8 < sum(map(int, some)) < 32
    pull_back = jax.vjp(lambda v: augment.apply(augment.sample(jax.random.key(0), noise, v.shape[1:]), v), x)[1]
    np.testing.assert_array_equal(pull_back(jnp.ones_like(x))[0], jnp.ones_like(x))


COMPOSITE = AugmentConfig(composite=True)


def composite_oracle(x, group, u):
    """Flip, crop by whole pixels, colour and cutout one after the other, of square images [n, S, S, D]."""
    side = x.shape[1]
    x = x[:, :, ::-1] if u[3] < 0.5 else x
    if group == "crop":
        reach = int(0.125 * side + 0.5)
        down, right = (int(v * (2 * reach + 1)) for v in u[:2])
        padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
        x = padded[:, down : down + side, right : right + side]
    x = x + (u[4] - 0.5)
    mean = x.mean(axis=3, keepdims=True)
    x = (x - mean) * (u[5] * 2) + mean
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    x = (x - mean) * (u[6] + 0.5) + mean
    k = int(0.5 * side + 0.5)
    top, left = (int(v * (side + 1 - k % 2)) - k // 2 for v in u[7:9])
    x[:, max(top, 0) : max(top + k, 0), max(left, 0) : max(left + k, 0)] = 0
    return x


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("group", ["crop", None])
def test_composite_applies_all_at_once(seed, group):
    """Every operation has numbers of its own, and a crop moves the image that was flipped."""
    rng = np.random.default_rng(seed)
    x, u = images_of(rng, (16, 16, 3)), rng.uniform(size=augment.COMPOSITE_DRAWS)
    index = jnp.int32(-1 if group is None else AUGMENTATIONS.index(group))
    actual = augment.apply(augment.parameters(index, jnp.array(u, jnp.float32), COMPOSITE, x.shape[1:]), x)
    np.testing.assert_allclose(actual, composite_oracle(x, group, u), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("u", [(0.05, 0.9), (0.8, 0.3)])
def test_composite_rotates_the_flipped_image(rng, u):
    x = images_of(rng, (12, 12, 2))
    config = AugmentConfig("flip_rotate", composite=True)
    numbers = jnp.array([*u, 0, 0.2, *[0.5] * 5], jnp.float32)
    actual = augment.apply(
        augment.parameters(jnp.int32(AUGMENTATIONS.index("rotate")), numbers, config, (12, 12, 2)), x
    )
    alone = augment.apply(draw("rotate", (*u, 0), (12, 12, 2)), np.ascontiguousarray(x[:, :, ::-1]))
    np.testing.assert_allclose(actual, alone, rtol=1e-5, atol=1e-5)


def test_composite_draws_one_group_per_batch_and_a_flip_per_image():
    """What the strategy names is applied to every image, each with its own numbers; what it leaves out is not."""
    named = AugmentConfig("color_crop_flip_scale_rotate", composite=True)
    seen = set()
    for i in range(20):
        drawn = augment.sample_each(jax.random.key(i), named, (16, 16, 3), 64)
        linear, shift, recolor, factors, box = map(np.asarray, drawn[:5])
        assert (recolor == 1).all()
        assert len(np.unique(factors[:, 0])) == 64
        assert (box[:, 0] == box[:, 1]).all()  # no cutout
        flipped = linear[:, 1, 1] < 0
        assert 10 < flipped.sum() < 54
        rotated, scaled = (linear[:, 0, 1] != 0).any(), (np.abs(linear[:, 0, 0]) > 1.001).any()
        moved = (shift != 0).any()
        assert int(rotated) + int(scaled) + int(moved) == 1  # the same for all 64
        seen.add((rotated, scaled, moved))
    assert len(seen) == 3


def test_composite_without_others_draws_nothing_else(rng):
    x = images_of(rng, (8, 8, 1))
    flip = AugmentConfig("flip", composite=True)
    outs = {
        bool((np.asarray(augment.apply(augment.sample(jax.random.key(i), flip, (8, 8, 1)), x)) == x).all())
        for i in range(8)
    }
    assert outs == {True, False}
    none = AugmentConfig("none", composite=True)
    assert augment.apply_each(augment.sample_each(jax.random.key(0), none, (8, 8, 1), 3), x) is x
