"""A thousand classes of 64x64 images, as downsampled ImageNet has them: layout, memory, and a run from end to end."""

import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_data import load, write_tfds

from dmjax.common.errors import UserError
from dmjax.data import cache, folder, sampling
from dmjax.data.dataset import NORMALIZATION, Dataset, compute_moments, release
from dmjax.run.devices import ClassSharding

CLASSES = 1000
TRAIN, VAL = 3, 1  # images of a class, but that every tenth class has one less to train on
COLOURS = 50  # of which class c has number c % 50, and no other
SIDE = 64


def wnid(c: int) -> str:
    """The folder of class c: not in the order of their numbers, so that a sort is seen."""
    return f"n{7919 * c % 10_007:08d}"


def colour(c: int) -> tuple[int, int, int]:
    return 100 + c % COLOURS, 118, 105  # about as bright as ImageNet


def counts_of(c: int) -> tuple[tuple[str, int], ...]:
    return ("train", TRAIN - (c % 10 == 0)), ("val", VAL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """train/CLASS/*.png and val/CLASS/*.png; the files are links to one of each colour."""
    root = tmp_path_factory.mktemp("imagenet") / "imagenet64"
    (root.parent / "colours").mkdir()
    for i in range(COLOURS):
        Image.new("RGB", (SIDE, SIDE), colour(i)).save(root.parent / "colours" / f"{i}.png")
    for c in range(CLASSES):
        for split, count in counts_of(c):
            (root / split / wnid(c)).mkdir(parents=True)
            for i in range(count):
                os.link(root.parent / "colours" / f"{c % COLOURS}.png", root / split / wnid(c) / f"{split}_{i}.png")
    return root


@pytest.fixture(scope="module")
def dataset(tree) -> Dataset:
    return load("folder", tree, name="imagenet64", cache=tree.parent / "cache")


def colours_of(images) -> np.ndarray:
    return np.asarray(images)[..., 0, 0, 0].astype(int) - 100


def check_layout(dataset: Dataset) -> None:
    """Classes in the order of their names, with the images and the labels that were written."""
    order = sorted(range(CLASSES), key=wnid)
    assert order != list(range(CLASSES))
    assert dataset.class_names == tuple(wnid(c) for c in order)
    assert dataset.images.shape == (CLASSES, TRAIN, SIDE, SIDE, 3)
    assert dataset.counts.tolist() == [counts_of(c)[0][1] for c in order]
    for place, c in enumerate(order):
        assert (colours_of(dataset.images[place, : dataset.counts[place]]) == c % COLOURS).all()
    assert sorted(dataset.test_labels.tolist()) == np.repeat(np.arange(CLASSES), VAL).tolist()
    assert colours_of(dataset.test_images).tolist() == [order[label] % COLOURS for label in dataset.test_labels]
    assert dataset.name == "imagenet64"
    np.testing.assert_allclose([dataset.mean, dataset.std], NORMALIZATION["imagenet64"][2:])


def resident_bytes(array: np.ndarray) -> int:
    """How much of a memory-mapped file this process holds."""
    lines, ours = Path("/proc/self/smaps").read_text().splitlines(), False
    total = 0
    for line in lines:
        if "-" in line.split(" ")[0]:
            ours = line.endswith(str(array.filename))
        elif ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_a_thousand_folders(dataset):
    check_layout(dataset)


def test_a_tar_of_a_thousand_folders(tree, tmp_path):
    path = tmp_path / "imagenet64.tar"
    with tarfile.open(path, "w") as tar:
        for file in tree.rglob("*.png"):
            content = file.read_bytes()
            info = tarfile.TarInfo(file.relative_to(tree.parent).as_posix())
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    packed = load("folder", path, name="imagenet64")
    check_layout(packed)
    assert isinstance(packed.images, np.memmap)


def test_links_in_a_tar_are_named(tree, tmp_path):
    """Packing hard links stores the first as a file and the others as links, which must not be lost silently."""
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as tar:
        for split in ("train", "val"):
            tar.add(tree / split / wnid(0), f"{split}/{wnid(0)}")
    with pytest.raises(UserError, match=r"as a link; pack it again with tar --dereference --hard-dereference"):
        load("folder", path)


def test_a_thousand_classes_of_tfds(tmp_path):
    """`imagenet_resized/64x64`, whose own class names TFDS knows, and whose row of the table has another name."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    name = "imagenet_resized/64x64"
    names = tfds.builder(name, data_dir=tmp_path / "none", try_gcs=False).info.features["label"].names
    splits = ("train", "validation")
    write_tfds(tmp_path, name, [(SIDE, SIDE)] * 2 * CLASSES, "0.1.0", splits, names, lambda i: colour(i % CLASSES))
    dataset = load("tfds", tmp_path, name=name)
    assert dataset.name == "imagenet64"
    np.testing.assert_allclose([dataset.mean, dataset.std], NORMALIZATION["imagenet64"][2:])
    assert dataset.class_names == tuple(names)
    assert isinstance(dataset.images, np.memmap)
    assert dataset.counts.tolist() == [2] * CLASSES
    assert (colours_of(dataset.images) == (np.arange(CLASSES) % COLOURS)[:, None]).all()
    assert dataset.test_labels.tolist() == list(range(CLASSES)) * 2
    assert load("tfds", tmp_path, name=f"{name}:0.1.0").fingerprint() == dataset.fingerprint()


def test_a_class_or_a_batch_touches_nothing_else(dataset):
    """Images are on the disk until they are asked for: the memory that is held grows by what is."""
    images, one = dataset.images, TRAIN * SIDE * SIDE * 3
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    release(images)
    assert resident_bytes(images) == 0
    around = 1 << 21  # what the system reads ahead, and maps along with what was asked for
    assert int(images[500].sum()) > 0
    assert one <= resident_bytes(images) <= one + around
    release(images)
    drawn = sampling.random_images(dataset, 1, jax.random.key(0))
    assert drawn.shape == (CLASSES, 1, SIDE, SIDE, 3)
    assert colours_of(drawn)[:, 0].tolist() == colours_of(images[:, 0]).tolist()
    release(images)
    batch = [images[c, 1] for c in (3, 400, 999)]
    assert all(image.sum() for image in batch)
    assert resident_bytes(images) <= 3 * (SIDE * SIDE * 3 + around)


def test_going_through_everything_gives_it_back(dataset):
    """Statistics and fingerprint leave next to nothing mapped; the statistics are right."""
    held = dataset.images.nbytes // 8
    release(dataset.images)
    moments = compute_moments(dataset.images, dataset.counts)
    assert resident_bytes(dataset.images) < held
    flat, labels = dataset.flat()
    np.testing.assert_allclose(moments[0], flat.mean((0, 1, 2)) / 255, rtol=1e-9)
    assert np.bincount(labels).tolist() == dataset.counts.tolist()
    release(dataset.images)
    dataclasses.replace(dataset).fingerprint()  # of a copy, which does not know it yet
    assert resident_bytes(dataset.images) < held


def test_decoding_holds_little_at_once(tree, tmp_path, monkeypatch):
    """What is written is given back every so many bytes, whatever the size of the whole."""
    held, arrays, create, decode = [], [], cache._create, folder._decode

    def created(*arguments):
        arrays.append(create(*arguments))
        return arrays[-1]

    def watched(member, *rest):
        if member.name.endswith("9/train_0.png"):
            held.append(resident_bytes(arrays[0]))
        return decode(member, *rest)

    at_once = 1 << 21
    monkeypatch.setattr(cache, "_MAPPED_BYTES", at_once)
    monkeypatch.setattr(cache, "_create", created)
    monkeypatch.setattr(folder, "_decode", watched)
    load("folder", tree, name="imagenet64", cache=tmp_path)
    assert len(held) > 50
    assert max(held) <= at_once + (1 << 20) < arrays[0].nbytes / 10


def test_devices_take_their_share_of_the_memory_map(dataset):
    sharding = ClassSharding(CLASSES)
    placed = sharding.put_data(dataset.images, dataset.counts)
    assert placed.images.shape == (4, CLASSES // 4, TRAIN, SIDE * SIDE * 3)
    joined = sharding.join(placed)
    np.testing.assert_array_equal(joined.images.reshape(dataset.images.shape), dataset.images)
    np.testing.assert_array_equal(joined.count, dataset.counts)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_over_a_thousand_classes(run_command, tree, tmp_path, devices):
    workdir = tmp_path / "run"
    done = run_command(
        *("dmjax.condense", "--config", ROOT / "experiments" / "imagenet64.py", "--data.path", tree),
        *("--ipc", 1, "--iterations", 2, "--batch-real", 2, "--network.width", 8, "--chunk", 1),
        *("--evaluation.networks", 1, "--evaluation.epochs", 1, "--workdir", workdir),
        devices=devices,
    )
    assert done.returncode == 0, done.stderr
    with np.load(workdir / "synthetic.npz") as made:
        assert made["images"].shape == (CLASSES, SIDE, SIDE, 3)
        assert made["labels"].tolist() == list(range(CLASSES))
        assert made["class_names"].tolist() == sorted(wnid(c) for c in range(CLASSES))
        assert np.isfinite(made["images"]).all()
    results = json.loads((workdir / "results.json").read_text())
    assert 0 <= results["accuracy"]["synthetic"]["mean"] <= 1
    assert len(list((workdir / "images").iterdir())) == 2
