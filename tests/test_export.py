"""Sets in the formats of other libraries, as these libraries read them."""

import dataclasses
import importlib.util
import json

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


def test_torch_trains_a_convolution_on_soft_labels(torch, stored, rng):
    """A plain loop; what a network has learned of the set, it says of the set."""
    synthetic, path = stored
    synthetic = soft(synthetic, rng)
    synthetic.save(path)
    assert run(path, "torch") == 0
    [[images, labels]] = torch.load(path.with_name("synthetic.pt"), weights_only=True)["data"]
    np.testing.assert_array_equal(labels.numpy(), np.repeat(synthetic.labels, 4, axis=0))
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 64, 3))
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    predicted = network(images).softmax(1)
    assert (predicted.argmax(1) == labels.argmax(1)).float().mean() > 0.9
    assert (predicted - labels).abs().mean() < 0.1


@has_datasets
@pytest.mark.filterwarnings("ignore")  # its own, of which we know nothing
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_datasets_opens_the_folder(stored, rng, labels):
    import datasets

    synthetic, path = stored
    synthetic = soft(synthetic, rng) if labels == "soft" else synthetic
    synthetic.save(path)
    assert run(path, "huggingface") == 0
    loaded = datasets.load_from_disk(str(path.parent / "huggingface"))
    unpacked = synthetic.unpacked()
    np.testing.assert_array_equal(np.array(loaded["pixels"], np.float32), unpacked.images)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in loaded["image"]]), unpacked.pixels())
    np.testing.assert_array_equal(np.array(loaded["label"]), unpacked.hard_labels)
    if labels == "soft":
        np.testing.assert_array_equal(np.array(loaded["soft_label"], np.float32), unpacked.labels)
    assert ("soft_label" in loaded.features) == (labels == "soft")
    assert loaded.features["label"].names == ["a", "b", "c"]
    moments = json.loads(loaded.info.description)
    np.testing.assert_array_equal(np.float32([moments["mean"], moments["std"]]), [synthetic.mean, synthetic.std])


@has_datasets
@pytest.mark.filterwarnings("ignore")
def test_datasets_feeds_torch(torch, stored, rng):
    """Through its own format for torch, normalised by the numbers that the folder has."""
    import datasets

    _, path = stored
    assert run(path, "huggingface") == 0
    loaded = datasets.load_from_disk(str(path.parent / "huggingface"))
    moments = json.loads(loaded.info.description)
    batch = loaded.with_format("torch")[:]
    images = (batch["pixels"] - torch.tensor(moments["mean"])) / torch.tensor(moments["std"])
    assert run(path, "torch") == 0
    [[expected, labels]] = torch.load(path.with_name("synthetic.pt"), weights_only=True)["data"]
    torch.testing.assert_close(images.permute(0, 3, 1, 2), expected)
    assert batch["label"].tolist() == labels.tolist()


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tfds_opens_the_folder(tmp_path, stored, rng, labels, channels):
    tfds = pytest.importorskip("tensorflow_datasets")
    synthetic, _ = stored
    moments = {name: getattr(synthetic, name)[:channels] for name in ("mean", "std")}
    synthetic = dataclasses.replace(synthetic, images=synthetic.images[..., :channels], **moments)
    synthetic = soft(synthetic, rng) if labels == "soft" else synthetic
    synthetic.save(tmp_path / "set.npz")
    assert run(tmp_path / "set.npz", "tfds", "--out", tmp_path / "out") == 0
    builder = tfds.builder_from_directory(tmp_path / "out")
    source = builder.as_data_source("train")
    examples = [source[i] for i in range(len(source))]
    columns = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    unpacked = synthetic.unpacked()
    assert builder.info.splits["train"].num_examples == len(source) == 24
    assert columns["pixels"].dtype == np.float32
    np.testing.assert_array_equal(columns["pixels"], unpacked.images)
    np.testing.assert_array_equal(columns["image"], unpacked.pixels())
    np.testing.assert_array_equal(columns["label"], unpacked.hard_labels)
    assert ("soft_label" in columns) == (labels == "soft")
    if labels == "soft":
        np.testing.assert_array_equal(columns["soft_label"], unpacked.labels)
    assert builder.info.features["label"].names == ["a", "b", "c"]
    read = builder.info.metadata
    np.testing.assert_array_equal(np.float32([read["mean"], read["std"]]), [synthetic.mean, synthetic.std])


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


def test_the_folder_of_a_run_stands_for_its_set(stored, capsys):
    synthetic, folder = stored[0], stored[1].parent
    assert export.main([str(folder), "--to", "numpy"]) == 0
    np.testing.assert_array_equal(np.load(folder / "numpy" / "labels.npy"), synthetic.unpacked().labels)


def test_python_writes_what_the_command_writes(stored):
    import dmjax

    synthetic, path = stored
    assert run(path, "numpy") == 0
    said = dmjax.export(synthetic, path.parent / "again", "numpy")
    assert "[24, 8, 8, 3] float32" in said
    assert (path.parent / "again" / "images.npy").read_bytes() == (path.parent / "numpy" / "images.npy").read_bytes()
    assert dmjax.export(path, path.parent / "pictures").startswith("24 images")
    for arguments, message in (
        ((path.parent / "again", "numpy"), "is there already"),
        (("x", "nump"), "did you mean"),
        (("x.npz", "numpy"), "is a folder"),
    ):
        with pytest.raises(dmjax.UserError, match=message):
            dmjax.export(synthetic, *arguments)
