"""Sets that are more than images: soft labels and images that unpack, from the file to the trained network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmjax import SyntheticSet, networks
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, Config, DataConfig, EvaluationConfig, NetworkConfig
from dmjax.data import load
from dmjax.data.factor import pack, unpack
from dmjax.data.synthetic_set import from_pixels
from dmjax.evaluation import judge, on_device, training
from dmjax.settings import experiment

MOMENTS = np.float32([0.4]), np.float32([0.3])


@pytest.mark.parametrize(("side", "factor"), [(28, 2), (32, 3), (8, 1), (9, 2)])
def test_unpacking_is_torchs_bilinear_resize(torch, rng, side, factor):
    images = rng.uniform(size=(2, side, side, 3)).astype(np.float32)
    block = -(-side // factor)
    padded = torch.full((2, 3, block * factor, block * factor), 0.5)
    leaf = torch.tensor(images, requires_grad=True)
    padded[:, :, :side, :side] = leaf.permute(0, 3, 1, 2)
    blocks = [
        padded[m, None, :, i * block : (i + 1) * block, j * block : (j + 1) * block]
        for m in range(2)
        for i in range(factor)
        for j in range(factor)
    ]
    resize = torch.nn.functional.interpolate
    theirs = torch.cat([resize(b, size=(side, side), mode="bilinear", align_corners=False) for b in blocks])
    weights = rng.normal(size=(2 * factor**2, side, side, 3)).astype(np.float32)
    (theirs.permute(0, 2, 3, 1) * torch.tensor(weights)).sum().backward()
    ours, gradient = jax.value_and_grad(lambda x: (unpack(x, factor) * weights).sum())(jnp.asarray(images))
    np.testing.assert_allclose(unpack(images, factor), theirs.detach().permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=1e-4, atol=1e-5)
    assert np.isfinite(ours)


@pytest.mark.parametrize(("side", "factor"), [(28, 2), (32, 3), (9, 2)])
def test_packing_is_torchs_nearest_pixel(torch, rng, side, factor):
    images = rng.integers(0, 256, (2 * factor**2, side, side, 3)).astype(np.uint8)
    block = -(-side // factor)
    small = torch.nn.functional.interpolate(torch.tensor(images).permute(0, 3, 1, 2), size=(block, block)).numpy()
    packed = pack(images, factor)
    assert packed.shape == (2, side, side, 3)
    for n, part in enumerate(small.transpose(0, 2, 3, 1)):
        m, i, j = n // factor**2, n // factor % factor, n % factor
        cell = packed[m, i * block : (i + 1) * block, j * block : (j + 1) * block]
        np.testing.assert_array_equal(cell, part[: cell.shape[0], : cell.shape[1]])


@pytest.mark.parametrize(("side", "factor"), [(28, 2), (30, 3), (8, 4), (32, 3), (9, 2), (28, 3)])
def test_packing_means_is_torchs_pooling_and_its_antialiased_resize(torch, rng, side, factor):
    images = rng.uniform(size=(2 * factor**2, side, side, 3)).astype(np.float32)
    block = -(-side // factor)
    small, functional = torch.tensor(images).permute(0, 3, 1, 2), torch.nn.functional
    smooth = {"mode": "bilinear", "align_corners": False}
    if side % factor:
        small = functional.interpolate(small, size=(block, block), antialias=True, **smooth)
    else:
        small, larger = functional.avg_pool2d(small, factor), small
        if factor == 2:  # as the authors write it
            np.testing.assert_allclose(functional.interpolate(larger, scale_factor=0.5, **smooth), small, rtol=1e-6)
    packed = pack(images, factor, "mean")
    assert packed.dtype == np.float32
    expected = torch.full((2, side + factor, side + factor, 3), torch.nan).numpy()
    for n, part in enumerate(small.permute(0, 2, 3, 1).numpy()):
        m, i, j = n // factor**2, n // factor % factor, n % factor
        expected[m, i * block : (i + 1) * block, j * block : (j + 1) * block] = part
    np.testing.assert_allclose(packed, expected[:, :side, :side], rtol=1e-5, atol=1e-6)
    pixels = np.round(images * 255).astype(np.uint8)
    rounded = pack(pixels, factor, "mean")
    assert rounded.dtype == np.uint8
    np.testing.assert_allclose(rounded, pack(pixels.astype(np.float32), factor, "mean"), atol=0.5)


@pytest.mark.parametrize("reduction", ["nearest", "mean"])
def test_an_image_that_is_packed_and_unpacked_keeps_its_colour_and_place(reduction):
    """Images of one colour come back as they were, in their order; also where blocks are cut at the end."""
    colours = np.float32([[0.1, 0.9, 0.3], [0.5, 0.2, 0.7], [0.8, 0.4, 0.0], [1.0, 0.6, 0.25]])
    for height, width in ((8, 6), (9, 9)):
        images = np.broadcast_to(colours[:, None, None], (4, height, width, 3))
        unpacked = unpack(jnp.asarray(pack(images, 2, reduction)), 2)
        # Up to the last pixels, where a side that does not divide has padding of 0.5.
        kept = slice(None) if height == 8 else slice(0, 6)
        np.testing.assert_allclose(unpacked[:, kept, kept], images[:, kept, kept], rtol=1e-5)


def soft_set(rng, factor=1):
    labels = rng.dirichlet(np.ones(3), size=(3, 2)).astype(np.float32)
    images = rng.uniform(size=(3, 2, 8, 8, 1)).astype(np.float32)
    return from_pixels(images, *MOMENTS, ("a", "b", "c"), {}, labels, factor)


def test_soft_labels_and_factor_survive_the_file(rng, tmp_path):
    soft = soft_set(rng, factor=2)
    soft.save(tmp_path / "set.npz")
    loaded = SyntheticSet.load(tmp_path / "set.npz")
    assert (loaded.factor, loaded.ipc, loaded.digest()) == (2, 2, soft.digest())
    np.testing.assert_array_equal(loaded.labels, soft.labels)
    np.testing.assert_array_equal(loaded.hard_labels, soft.labels.argmax(1))
    unpacked = loaded.unpacked()
    assert (unpacked.images.shape, unpacked.labels.shape, unpacked.factor) == ((24, 8, 8, 1), (24, 3), 1)
    np.testing.assert_array_equal(unpacked.labels[4:8], np.stack([soft.labels[1]] * 4))
    assert loaded.export(tmp_path / "out") == 24
    rows = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert rows[0] == "file,a,b,c"
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert sorted(row.split(",")[0] for row in rows[1:]) == files
    assert len(files) == 24
    assert soft.digest() != dataclasses.replace(soft, factor=1).digest()


def test_a_file_of_before_still_loads_and_a_newer_one_says_so(rng, tmp_path):
    images = rng.uniform(size=(2, 3, 8, 8, 1)).astype(np.float32)
    hard = from_pixels(images, *MOMENTS, ("a", "b"))
    path = tmp_path / "set.npz"
    hard.save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    old = {name: array for name, array in arrays.items() if name not in ("format", "factor")}
    np.savez(path, **old)
    loaded = SyntheticSet.load(path)
    assert (loaded.factor, loaded.digest()) == (1, hard.digest())

    def fails(message, **changes):
        np.savez(path, **{**arrays, **changes})
        with pytest.raises(UserError, match=message) as error:
            SyntheticSet.load(path)
        assert "\n" not in str(error.value)

    fails(r"written by a newer dmjax \(format 3, this one reads up to 2\)", format=np.int32(3))
    fails("factor must be a whole number of at least 1", factor=np.int32(0))
    fails("factor must be a whole number", factor=np.float32(2))
    fails("the factor 9 is larger than the images", factor=np.int32(9))
    fails("soft labels are for 3 classes, there are 2", labels=np.full((6, 3), 1 / 3, np.float32))
    fails("sum to 1", labels=np.full((6, 2), 0.4, np.float32))
    fails("at least 0", labels=np.float32([[1.5, -0.5]] * 6))
    fails("mean must be numbers", mean=np.array(["a"]))
    fails("mean and std must be finite", std=np.float32([0]))
    fails("metadata is not JSON", metadata=np.array("{"))
    fails("metadata is not JSON", metadata=np.array("[" * 200_000))
    fails("metadata must be a JSON object", metadata=np.array("[]"))
    fails("pickled objects", labels=np.array([{}] * 6, object))


def test_one_hot_soft_labels_train_as_their_classes_and_soft_ones_by_their_cross_entropy(rng):
    network = networks.create(NetworkConfig(width=4, depth=1), 3, (8, 8, 1))
    recipe = training.Recipe(0.1, 0.9, 5e-4, 6, AugmentConfig("none"))
    images, classes = rng.uniform(size=(6, 8, 8, 1)).astype(np.float32), np.int32([0, 0, 1, 1, 2, 2])

    def trained(labels, epochs=3):
        examples = jax.device_put(on_device.Examples(images, labels, *MOMENTS))
        return training.train(network, recipe, jax.random.key(0), examples, epochs)["params"]

    hard, soft = trained(classes), trained(np.eye(3, dtype=np.float32)[classes])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), hard, soft)

    labels = rng.dirichlet(np.ones(3), size=6).astype(np.float32)
    first = jax.jit(lambda k: networks.init(network, k, (8, 8, 1)))(jax.random.fold_in(jax.random.key(0), 0))["params"]

    def loss(params):  # minus the sum of label times log-probability, by hand
        logits = network.apply({"params": params}, (images - MOMENTS[0]) / MOMENTS[1], train=True)
        log_probability = logits - jnp.log(jnp.exp(logits).sum(1, keepdims=True))
        return -(labels * log_probability).sum() / 6

    step = jax.tree.map(lambda p, g: p - 0.1 * (g + 5e-4 * p), first, jax.grad(loss)(first))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), trained(labels, 1), step)
    assert optax.tree.norm(optax.tree.sub(step, first)) > 1e-3


def test_sets_that_unpack_are_judged_unpacked_and_random_images_with_the_same_factor(monkeypatch):
    dataset = load(DataConfig(), False)
    settings = Config(
        network=NetworkConfig(width=4, depth=1), evaluation=EvaluationConfig(networks=1, epochs=1), progress=False
    )
    settings, seen, train = experiment.resolve(settings), [], training.train
    monkeypatch.setattr(
        training, "train", lambda n, r, k, examples, *a: seen.append(examples) or train(n, r, k, examples, *a)
    )
    packed = np.stack([pack(images[:8], 2) for images in dataset.images])
    synthetic = from_pixels(packed, dataset.mean, dataset.std, dataset.class_names, factor=2)
    judge.judge(settings, dataset, synthetic)
    judge.judge_random_real(settings, dataset, 2, factor=2)
    judge.judge_random_real(settings, dataset, 2)
    assert [examples.images.shape[0] for examples in seen] == [80, 80, 20]
    np.testing.assert_array_equal(seen[0].labels, np.repeat(np.arange(10), 8))
    np.testing.assert_array_equal(seen[0].images, unpack(synthetic.images, 2))
    with pytest.raises(UserError, match="ipc 160 asks for more images than class"):
        judge.judge_random_real(settings, dataset, 40, factor=2)
