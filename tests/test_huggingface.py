"""Sets of the library datasets, written by it."""

import io
import json
import socket
import sys

import numpy as np
import pytest
from PIL import Image
from test_data import load
from test_torchvision import TINY_STEPS

from dmjax.common.errors import UserError
from dmjax.condense import main as condense
from dmjax.config import DataConfig
from dmjax.data import images as image_files

datasets = pytest.importorskip("datasets", reason="needs datasets: pip install -r tests/requirements-huggingface.txt")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own, of which we know nothing

NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def quiet_and_offline(monkeypatch):
    """Its bars are of no use here; and whoever asks the network has failed."""

    def asked(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    datasets.disable_progress_bars()


@pytest.fixture
def arrays(rng):
    """Images [n, 8, 8, 3] and labels of both splits, in the order of the arguments of an npz."""
    made = {}
    for split, n in (("train", 12), ("test", 6)):
        made[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
        made[f"{split}_labels"] = np.arange(n) % 3
    return made


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def split_of(images, labels, label=None, column="img", **more):
    features = {column: datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)}
    columns = {column: images, "label": list(labels)}
    for name, (feature, values) in more.items():
        features[name], columns[name] = feature, values
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def splits_of(arrays, **options):
    return {
        split: split_of([png(i) for i in arrays[f"{split}_images"]], arrays[f"{split}_labels"].tolist(), **options)
        for split in ("train", "test")
    }


def save(folder, splits):
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def fails(match, path=None, **options):
    with pytest.raises(UserError, match=match) as error:
        load("huggingface", path, **options)
    assert "\n" not in str(error.value)


def test_the_same_pixels_are_the_same_data_as_arrays(tmp_path, arrays):
    np.savez(tmp_path / "same.npz", **arrays, class_names=NAMES)
    expected = load("npz", tmp_path / "same.npz")
    dataset = load("huggingface", save(tmp_path / "pets", splits_of(arrays)))
    assert dataset.fingerprint() == expected.fingerprint()
    np.testing.assert_array_equal(dataset.images[2, 1], arrays["train_images"][5])
    np.testing.assert_array_equal(dataset.mean, expected.mean)
    assert (dataset.name, dataset.class_names) == ("pets", tuple(NAMES))


def test_decoded_once_and_keyed_by_content(tmp_path, arrays, monkeypatch):
    folder = save(tmp_path / "one", splits_of(arrays))
    first = load("huggingface", folder).fingerprint()
    decoded = []
    original = image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda *a: decoded.append(a) or original(*a))
    assert load("huggingface", save(tmp_path / "copy", splits_of(arrays))).fingerprint() == first
    assert not decoded
    arrays["test_images"][0, 0, 0, 0] ^= 1
    assert load("huggingface", save(tmp_path / "other", splits_of(arrays))).fingerprint() != first
    assert len(decoded) == 18


def test_grey_stays_grey_alone_and_sizes_are_unified(tmp_path, arrays):
    grey = {k: v[..., 0] if v.ndim == 4 else v for k, v in arrays.items()}
    dataset = load("huggingface", save(tmp_path / "grey", splits_of(grey)))
    np.testing.assert_array_equal(dataset.test_images[..., 0], arrays["test_images"][..., 0])
    mixed = splits_of(arrays)
    odd = [png(np.full((8, 8), 77, np.uint8)), png(np.full((20, 30, 4), 99, np.uint8))]
    mixed["test"] = split_of([*odd, png(arrays["test_images"][0])], [0, 1, 2])
    folder = save(tmp_path / "mixed", mixed)
    fails(r"image 1 of the split test of .* is 30x20, most are 8x8; .*--data\.image-size 8", folder)
    dataset = load("huggingface", folder, image_size=8)
    assert (dataset.test_images[0] == 77).all()
    assert (dataset.test_images[1] == 99).all()
    np.testing.assert_array_equal(dataset.test_images[2], arrays["test_images"][0])


def test_columns_are_found_or_named(tmp_path, arrays):
    coarse = datasets.ClassLabel(names=["furry", "wet"])
    splits = splits_of(arrays, label=datasets.ClassLabel(names=NAMES))
    for split, n in (("train", 12), ("test", 6)):
        mask = [png(np.zeros((8, 8), np.uint8))] * n
        splits[split] = splits[split].rename_column("label", "fine")
        splits[split] = splits[split].add_column("coarse", [i % 3 // 2 for i in range(n)], feature=coarse)
        splits[split] = splits[split].add_column("mask", mask, feature=datasets.Image())
        splits[split] = splits[split].add_column("file", [f"{i}.png" for i in range(n)])
    folder = save(tmp_path / "many", splits)
    fails("several columns of images, img, mask; choose one with --data.image-column", folder)
    fails("several columns of labels, fine, coarse; choose one with --data.label-column", folder, image_column="img")
    fails("no column 'pixels' of images; --data.image-column can be img or mask", folder, image_column="pixels")
    dataset = load("huggingface", folder, image_column="img", label_column="coarse")
    assert dataset.class_names == ("furry", "wet")
    assert dataset.counts.tolist() == [8, 4]


def test_labels_that_are_texts_or_numbers(tmp_path, arrays):
    n = len(arrays["train_labels"])
    by_name = {k: np.array(NAMES)[2 - v] if "labels" in k else v for k, v in arrays.items()}
    texts = save(tmp_path / "texts", splits_of(by_name, label=datasets.Value("string")))
    dataset = load("huggingface", texts)
    assert dataset.class_names == tuple(NAMES)
    np.testing.assert_array_equal(dataset.images[2, 0], arrays["train_images"][0])  # label 0 was made the last name
    file = {"file": (datasets.Value("string"), [f"{i}.png" for i in range(n)])}
    images = [png(i) for i in arrays["train_images"]]
    numbers = split_of(images, arrays["train_labels"], label=datasets.Value("int64"), **file)
    dataset = load("huggingface", save(tmp_path / "numbers", {"train": numbers, "test": numbers}))
    assert dataset.class_names == ("0", "1", "2")
    wrong = split_of(images, [7] * n, label=datasets.Value("int64"), **file)
    fails(
        "image 0 of the split test .* the label 7, which is no class",
        save(tmp_path / "w", {"train": numbers, "test": wrong}),
    )
    far = split_of(images, [10**9, *[0] * (n - 1)], label=datasets.Value("int64"), **file)
    fails("has the label 1000000000, which is no class", save(tmp_path / "far", {"train": far, "test": numbers}))
    bare = datasets.Dataset.from_dict({"img": [1.5], "label": [2.5]})
    fails(r"has no column of images; its columns are img, label; cast one", save(tmp_path / "b", {"train": bare}))


def test_which_split_is_tested_on(tmp_path, arrays):
    """The labels of test are not published: those of validation are."""
    splits = splits_of(arrays)
    hidden = split_of([png(i) for i in arrays["test_images"]], [-1] * 6)
    folder = save(tmp_path / "hidden", {"train": splits["train"], "test": hidden, "validation": splits["test"]})
    dataset = load("huggingface", folder)
    np.testing.assert_array_equal(dataset.test_labels, arrays["test_labels"])
    only = save(tmp_path / "only", {"train": splits["train"], "test": hidden})
    fails(r"no split test or validation with labels, it has train, test; save one, .*train_test_split", only)
    fails("has no split train; it has test", save(tmp_path / "untrained", {"test": hidden}))
    gaps = split_of([png(i) for i in arrays["test_images"]], [0, 1, -1, 2, 0, 1])
    fails(
        "image 2 of the split test .* has no label", save(tmp_path / "gaps", {"train": splits["train"], "test": gaps})
    )
    for split in splits:
        splits[split].save_to_disk(str(tmp_path / f"single_{split}"))
    fails("it has train; save one, .* or name its folder with --data.test-path", tmp_path / "single_train")
    dataset = load("huggingface", tmp_path / "single_train", test_path=tmp_path / "single_test")
    np.testing.assert_array_equal(dataset.test_images, arrays["test_images"])
    others = splits_of(arrays, label=datasets.ClassLabel(names=["dog", "cat", "eel"]))
    mixed = save(tmp_path / "mixed", {"train": splits["train"], "test": others["test"]})
    fails("classes of the splits train and test have different names", mixed)


@pytest.mark.parametrize("content", [b"no image", b"", None])
def test_images_that_cannot_be_decoded_are_named_or_left_out(tmp_path, arrays, content, capsys):
    splits = splits_of(arrays)
    cells = [png(i) for i in arrays["train_images"]]
    cells[4] = None if content is None else {"bytes": content, "path": None}
    splits["train"] = split_of(cells, arrays["train_labels"])
    folder = save(tmp_path / "broken", splits)
    fails(r"cannot decode image 4 of the split train .*: not an image; .*--data\.skip-unreadable true", folder)
    assert load("huggingface", folder, skip_unreadable=True).counts.tolist() == [4, 3, 4]
    assert "left out 1 unreadable" in capsys.readouterr().err


def test_damaged_folders_are_one_line(tmp_path, arrays, make_folder):
    folder = save(tmp_path / "cut", splits_of(arrays))
    [arrow] = (folder / "train").glob("*.arrow")
    whole = arrow.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>"):
        arrow.write_bytes(content)
        fails("is damaged: .*; save it again", folder)
    arrow.unlink()
    fails("is damaged: .*; save it again", folder)
    (folder / "dataset_dict.json").write_text("{")
    fails("is damaged: .*; save it again", folder)
    fails("there is no folder", tmp_path / "nowhere")
    fails("is no folder that save_to_disk", make_folder())
    with pytest.raises(
        UserError, match=r"--data\.path is for .*; leave it out, or give --data\.source huggingface too"
    ):
        load("digits", save(tmp_path / "whole", splits_of(arrays)))


def test_a_set_of_the_hub_is_read_from_the_cache(tmp_path, arrays, monkeypatch):
    """The cache is written by the library's own builder, without its download."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    missing = r"uoft-cs/cifar10 is not in the local cache .* downloaded first: .*load_dataset\('uoft-cs/cifar10'\)"
    fails(missing, name="uoft-cs/cifar10")
    fails("needs --data.path FOLDER, or --data.name")
    fails("is no name of the Hugging Face hub", name="../x")
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    for split, made in splits_of(arrays).items():
        made.to_parquet(files[split])

    def download(part):
        builder = Parquet(dataset_name="petSet", config_name=part, hash="abc", data_files=files)
        builder.download_and_prepare(str(tmp_path / "hub" / "me___pet_set" / part / "0.0.0" / "abc"))

    download("plain")
    dataset = load("huggingface", name="me/petSet")
    np.testing.assert_array_equal(dataset.test_images, arrays["test_images"])
    assert dataset.name == "petset"
    download("large")
    fails("multiple .*configurations in the cache: .*; choose one, such as --data.name me/petSet:", name="me/petSet")
    assert load("huggingface", name="me/petSet:large").fingerprint() == dataset.fingerprint()
    fails(r"load_dataset\('me/petSet', 'small'\)", name="me/petSet:small")


def test_names_of_the_hub_are_those_of_the_tables():
    for name, expected in (
        ("uoft-cs/cifar10", "cifar10"),
        ("ylecun/mnist", "mnist"),
        ("ufldl-stanford/svhn:cropped_digits", "svhn_cropped"),
        ("zh-plus/tiny-imagenet", "tiny_imagenet"),
    ):
        assert DataConfig("huggingface", name=name).known_as == expected
    assert DataConfig("tfds", name="imagenet_resized/64x64").known_as == "imagenet_resized/64x64"


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    fails("pip install datasets", tmp_path)


def test_the_command_makes_the_same_set_as_of_arrays(tmp_path, arrays, capsys):
    np.savez(tmp_path / "same.npz", **arrays, class_names=NAMES)
    save(tmp_path / "pets", splits_of(arrays))

    def run(source, path, workdir, *more):
        where = ("--data.source", source, "--data.path", path, "--workdir", tmp_path / workdir)
        return condense([*map(str, ("--config", "experiments/tiny.py", *where, *TINY_STEPS, *more))])

    assert run("npz", tmp_path / "same.npz", "npz") == 0
    assert run("huggingface", tmp_path / "pets", "huggingface") == 0
    made = [np.load(tmp_path / source / "synthetic.npz") for source in ("npz", "huggingface")]
    for name in ("images", "labels", "mean", "std", "class_names"):
        np.testing.assert_array_equal(made[0][name], made[1][name])
    configs = [json.loads((tmp_path / source / "config.json").read_text()) for source in ("npz", "huggingface")]
    assert configs[0]["dataset"] == configs[1]["dataset"] | {"name": "same"}
    capsys.readouterr()
    assert run("huggingface", tmp_path / "pets", "new", "--data.label-column", "species") == 2
    error = capsys.readouterr().err
    assert "no column 'species' of labels; --data.label-column can be label" in error
    assert error.count("\n") == 1
    splits = splits_of(arrays | {"test_images": 255 - arrays["test_images"]})
    save(tmp_path / "others", splits).rename(tmp_path / "swapped")
    (tmp_path / "pets").rename(tmp_path / "before")
    (tmp_path / "swapped").rename(tmp_path / "pets")
    assert run("huggingface", tmp_path / "pets", "huggingface") == 2  # a run goes on with its own data alone
    error = capsys.readouterr().err
    assert "was started on other data" in error
    assert error.count("\n") == 1
