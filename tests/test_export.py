"""Sets in the formats of other libraries, as these libraries read them."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from dmjax import export
from dmjax.data.synthetic_set import SyntheticSet

has_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")


@pytest.fixture
def stored(rng, tmp_path):
    """A set of three classes with two images each, four training images in every one, outside of [0, 1] in places."""
    images = rng.uniform(-0.2, 1.2, (6, 8, 8, 3)).astype(np.float32)
    moments = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.4])
    synthetic = SyntheticSet(images, np.repeat(np.arange(3, dtype=np.int32), 2), *moments, ("a", "b", "c"), factor=2)
    synthetic.save(tmp_path / "synthetic.npz")
    return synthetic, tmp_path / "synthetic.npz"


def run(path, kind, *more):
    return export.main(["--synthetic", str(path), "--to", kind, *map(str, more)])


def soft(synthetic, rng):
    labels = rng.dirichlet(np.ones(3), len(synthetic.images)).astype(np.float32)
    return dataclasses.replace(synthetic, labels=labels)


def test_numpy_keeps_every_bit(stored, capsys):
    synthetic, path = stored
    assert run(path, "numpy") == 0
    unpacked = synthetic.unpacked()
    for name in ("images", "labels", "mean", "std"):
        np.testing.assert_array_equal(np.load(path.parent / "numpy" / f"{name}.npy"), getattr(unpacked, name))
    assert "[24, 8, 8, 3] float32" in capsys.readouterr().out


def test_torch_opens_and_trains_in_the_authors_loop(torch, stored, rng):
    """Their loop takes images [n, D, H, W], normalised, and whole labels; the layout is that of their files."""
    synthetic, path = stored
    assert run(path, "torch") == 0
    loaded = torch.load(path.with_name("synthetic.pt"), weights_only=True)
    [[images, labels]] = loaded["data"]
    unpacked = synthetic.unpacked()
    expected = ((unpacked.images - synthetic.mean) / synthetic.std).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(images.numpy(), expected)
    assert (labels.dtype, labels.tolist()) == (torch.int64, unpacked.labels.tolist())
    assert loaded["class_names"] == ["a", "b", "c"]
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, 3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_torch_keeps_soft_labels(torch, stored, rng):
    synthetic, path = stored
    soft(synthetic, rng).save(path)
    assert run(path, "torch") == 0
    [[_, labels]] = torch.load(path.with_name("synthetic.pt"), weights_only=True)["data"]
    assert (labels.dtype, tuple(labels.shape)) == (torch.float32, (24, 3))


@has_datasets
@pytest.mark.filterwarnings("ignore")  # its own, of which we know nothing
def test_datasets_opens_the_folder(stored, rng):
    import datasets

    synthetic, path = stored
    synthetic = soft(synthetic, rng)
    synthetic.save(path)
    assert run(path, "huggingface") == 0
    loaded = datasets.load_from_disk(str(path.parent / "huggingface"))
    unpacked = synthetic.unpacked()
    np.testing.assert_array_equal(np.array(loaded["pixels"], np.float32), unpacked.images)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in loaded["image"]]), unpacked.pixels())
    np.testing.assert_allclose(np.array(loaded["soft_label"]), unpacked.labels)
    assert loaded.features["label"].names == ["a", "b", "c"]


def test_png_is_an_image_folder(stored):
    _, path = stored
    assert run(path, "png") == 0
    assert sorted(p.name for p in (path.parent / "png").iterdir()) == ["a", "b", "c"]
    assert len(list((path.parent / "png").rglob("*.png"))) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a set"),
        (["--synthetic", "nothing.npz"], "nothing.npz"),
        (["--synthetic", "SET", "--to", "tiff"], "tiff"),
        (["--synthetic", "SET", "--to", "png", "--out", "SET"], "is there already"),
    ],
)
def test_wrong_input_is_one_line(stored, capsys, arguments, message):
    assert export.main([str(stored[1]) if a == "SET" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
