"""Data sources on real files and on hand-made ones."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmjax import data
from dmjax.common.errors import UserError
from dmjax.config import DataConfig
from dmjax.data.dataset import compute_moments, normalize


def load(source, path=None, **options):
    return data.load(DataConfig(source, path, **options), progress=False)


def pack(folder: Path, name: str, mode="w") -> Path:
    path = folder.parent / name
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=".")
    return path


def test_digits():
    dataset = load("digits")
    assert dataset.images.shape == (10, 161, 8, 8, 1)
    assert dataset.counts.sum() == 1438
    assert len(dataset.test_labels) == 359
    assert dataset.images.max() == 255
    images, labels = dataset.flat()
    assert len(images) == 1438
    np.testing.assert_array_equal(images[labels == 3], dataset.images[3, : dataset.counts[3]])


def test_digits_are_those_of_scikit_learn(monkeypatch):
    from sklearn.datasets import load_digits

    quick = load("digits")
    pixels, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(quick.test_labels, labels[4::5])
    np.testing.assert_array_equal(quick.test_images.reshape(-1, 64), np.round(pixels[4::5] * (255 / 16)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # where the file is not
    assert load("digits").fingerprint() == quick.fingerprint()


def test_a_class_without_test_images_is_named(make_folder, capsys):
    folder = make_folder()
    shutil.rmtree(folder / "test" / "class1")
    load("folder", folder)
    assert capsys.readouterr().err.endswith("has no test images of 1 class(es): class1\n")


def test_normalize_and_moments_match_numpy(rng):
    images = rng.integers(0, 256, (2, 5, 4, 6, 3)).astype(np.uint8)
    counts = np.array([5, 3])
    valid = np.concatenate([images[0], images[1, :3]]) / 255
    mean, std = compute_moments(images, counts)
    np.testing.assert_allclose(mean, valid.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, valid.std((0, 1, 2)), rtol=1e-9)
    expected = (images / 255 - mean) / std
    np.testing.assert_allclose(normalize(images, mean, std), expected, rtol=1e-5, atol=1e-6)
    in_units = (images / 255).astype(np.float32)
    np.testing.assert_allclose(normalize(in_units, mean, std), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_mnist_npz_and_tfds_are_the_same_data(shared):
    npz = load("npz", shared("mnist.npz"), name="mnist")
    tfds = load("tfds", shared("tfds"), name="mnist")
    assert npz.counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(npz.images, tfds.images)
    np.testing.assert_array_equal(npz.test_labels, tfds.test_labels)
    np.testing.assert_allclose([npz.mean[0], npz.std[0]], [0.1307, 0.3081])
    with np.load(shared("mnist.npz")) as raw:
        seventh = raw["train_images"][raw["train_labels"] == 7][11]
    np.testing.assert_array_equal(npz.images[7, 11, :, :, 0], seventh)


def test_tiny_imagenet_tar(shared):
    dataset = load("folder", shared("tiny_imagenet_subset/tiny_imagenet_25c.tar.xz"), name="tiny_imagenet")
    assert dataset.images.shape == (25, 500, 64, 64, 3)
    assert (dataset.counts == 500).all()
    assert np.bincount(dataset.test_labels).tolist() == [50] * 25
    assert dataset.class_names[0] == "n01443537"
    np.testing.assert_allclose(dataset.mean, [0.485, 0.456, 0.406])


@pytest.mark.slow
def test_cifar10_tars_hold_the_official_images(shared):
    """Against the original pixels: JPEG, so only close; an image or class that is mixed up would be far off."""
    train, test = (shared(f"cifar10/cifar10_jpeg_{split}.tar.xz") for split in ("train", "test"))
    dataset = load("folder", train, test_path=test, name="cifar10")
    assert dataset.counts.tolist() == [5000] * 10
    np.testing.assert_allclose(dataset.std, [0.2023, 0.1994, 0.2010])
    with np.load(shared("cifar10/cifar10_test_lossless_first1017.npz")) as raw:
        originals, labels = raw["images"], raw["labels"]
    with np.load(shared("cifar10/cifar10_standard_order.npz")) as raw:
        order = raw["test_file_index"]
    for i in range(0, 1017, 40):
        ours = dataset.test_images[dataset.test_labels == labels[i]][order[i]]
        assert np.abs(ours.astype(int) - originals[i]).mean() < 12


@pytest.mark.parametrize("packed", [None, "set.tar", "set.tar.gz", "set.tar.xz"])
def test_folder_and_tars_of_it_are_the_same_data(make_folder, packed):
    folder = make_folder()
    path = (
        folder
        if packed is None
        else pack(folder, packed, "w:" + packed.split(".")[2] if packed.count(".") > 1 else "w")
    )
    dataset = load("folder", path)
    assert dataset.class_names == ("class0", "class1", "class2")
    assert dataset.counts.tolist() == [5, 3, 4]
    assert dataset.images.shape == (3, 5, 8, 8, 3)
    for c in range(3):
        for i in range(dataset.counts[c]):
            original = np.asarray(Image.open(folder / "train" / f"class{c}" / f"{i}.png"))
            np.testing.assert_array_equal(dataset.images[c, i], original)
    np.testing.assert_array_equal(dataset.test_labels, [0, 0, 1, 1, 2, 2])
    everything = np.concatenate([dataset.images[c, :n] for c, n in enumerate(dataset.counts)]) / 255
    np.testing.assert_allclose(dataset.mean, everything.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, everything.std((0, 1, 2)), rtol=1e-5)


def test_test_split_elsewhere_and_below_one_folder(make_folder, tmp_path):
    folder = make_folder()
    (tmp_path / "other" / "top").mkdir(parents=True)
    (folder / "test").rename(tmp_path / "other" / "top" / "val")
    dataset = load("folder", folder, test_path=tmp_path / "other")
    assert len(dataset.test_labels) == 6


def test_tiny_imagenets_original_layout(make_folder):
    """train/WNID/images/*, val/images/* with annotations, and a test/ without labels."""
    folder = make_folder(train=(3, 3), test=2)
    for c in (0, 1):
        inner = folder / "train" / f"class{c}" / "images"
        inner.mkdir()
        for file in (folder / "train" / f"class{c}").glob("*.png"):
            file.rename(inner / file.name)
        (folder / "train" / f"class{c}" / f"class{c}_boxes.txt").write_text("0.png\t0\t0\t1\t1\n")
    val = folder / "val" / "images"
    val.mkdir(parents=True)
    lines = []
    for c in (1, 0):
        for i, file in enumerate(sorted((folder / "test" / f"class{c}").glob("*.png"))):
            file.rename(val / f"val_{c}{i}.png")
            lines.append(f"val_{c}{i}.png\tclass{c}\t0\t0\t7\t7\n")
        (folder / "test" / f"class{c}").rmdir()
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "test" / "images").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "test" / "images" / "test_0.png")
    dataset = load("folder", folder)
    assert dataset.counts.tolist() == [3, 3]
    assert dataset.test_labels.tolist() == [0, 0, 1, 1]
    assert dataset.test_images[0].mean() < dataset.test_images[2].mean()  # class 0 is the darker one


def test_greyscale_among_rgb_is_converted_and_alone_stays_grey(make_folder):
    folder = make_folder()
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(folder / "train" / "class0" / "0.png")
    assert (load("folder", folder).images[0, 0] == 77).all()
    assert load("folder", make_folder(mode="L", root="grey")).image_shape == (8, 8, 1)


def test_sixteen_bit_and_transparent_images(make_folder):
    folder = make_folder()
    Image.fromarray(np.full((8, 8), 0x4D00, np.uint16)).save(folder / "train" / "class0" / "0.png")
    Image.new("RGBA", (8, 8), (10, 20, 30, 128)).save(folder / "train" / "class0" / "1.png")
    images = load("folder", folder).images
    assert (images[0, 0] == 0x4D).all()
    assert (images[0, 1] == [10, 20, 30]).all()


def test_sizes_are_unified_on_request(make_folder):
    folder = make_folder()
    Image.new("RGB", (30, 20), (255, 0, 0)).save(folder / "train" / "class1" / "0.png")
    with pytest.raises(UserError, match=r"train/class1/0\.png is 30x20, most are 8x8; .*--data\.image-size 8"):
        load("folder", folder)
    dataset = load("folder", folder, image_size=16)
    assert dataset.image_shape == (16, 16, 3)
    assert (dataset.images[1, 0] == [255, 0, 0]).all()


def test_the_table_applies_to_images_like_its_own_only(make_folder):
    from dmjax.data.dataset import make_dataset

    grey = np.full((2, 3, 32, 32, 3), 120, np.uint8)
    make = lambda name, images: make_dataset(name, "place", ["a", "b"], images, [3, 3], images[0], [0, 0, 0])  # noqa: E731
    np.testing.assert_allclose(make("cifar10", grey).std, [0.2023, 0.1994, 0.2010])
    assert make("cifar10", grey).name == "cifar10"
    assert make("cifar10", grey // 4).name == make(None, grey).name == "place"
    assert make("mine", grey).name == "mine"
    np.testing.assert_allclose(make("mine", grey).mean, 120 / 255, rtol=1e-6)
    np.testing.assert_allclose(make("cifar10", grey // 4).mean, 30 / 255, rtol=1e-6)  # another brightness
    np.testing.assert_allclose(make("cifar10", grey[:, :, :16]).mean, 120 / 255, rtol=1e-6)  # another size


def test_hand_written_tfds(tmp_path):
    """A set that TFDS itself does not know, written in its layout."""
    pytest.importorskip("array_record")
    folder = write_tfds(tmp_path / "data", "my_set", sizes=[(6, 6)] * 5)
    dataset = load("tfds", folder, name="my_set")
    assert dataset.counts.tolist() == [3, 2]
    assert dataset.image_shape == (6, 6, 3)
    assert [image[0, 0, 0] for image in dataset.images[0, :3]] == [0, 20, 40]


def test_tfds_with_a_configuration(tmp_path):
    pytest.importorskip("array_record")
    splits = ("train", "validation")
    folder = write_tfds(tmp_path / "data", "my_set/small", [(6, 6)] * 5, splits=splits)
    write_tfds(tmp_path / "data", "my_set/large", [(9, 9)] * 4, splits=splits)
    dataset = load("tfds", folder, name="my_set/small")
    assert dataset.name == "my_set"
    assert dataset.image_shape == (6, 6, 3)
    assert dataset.counts.tolist() == [3, 2]
    assert dataset.test_labels.tolist() == [0, 1, 0, 1, 0]
    assert load("tfds", folder, name="my_set/large:1.0.0").image_shape == (9, 9, 3)


def write_tfds(folder, name, sizes, version="1.0.0", splits=("train", "test"), classes=("even", "odd"), colour=None):
    """Writes a data set as TFDS stores it, one image a size; `name` may hold a configuration.

    Image i has class i modulo the number of classes, and the colour (10 * i, 0, 0), or `colour(i)`.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    name, _, config_name = name.partition("/")
    place = folder / name / config_name / version
    place.mkdir(parents=True)
    infos = []
    for split in splits:
        writer = ArrayRecordWriter(str(place / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for i, size in enumerate(sizes):
            buffer = io.BytesIO()
            Image.new("RGB", size, colour(i) if colour else (10 * i, 0, 0)).save(buffer, "png")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(buffer.getvalue())
            example.features.feature["label"].int64_list.value.append(i % len(classes))
            writer.write(example.SerializeToString())
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=place, split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=[len(sizes)], num_bytes=0, filename_template=template)
        )
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(*sizes[0], 3)), "label": tfds.features.ClassLabel(names=list(classes))}
    )
    tfds.folder_dataset.write_metadata(
        data_dir=place, features=features, split_infos=infos, filename_template=None, check_data=False
    )
    info = json.loads((place / "dataset_info.json").read_text())
    info |= {"name": name, "configName": config_name} if config_name else {"name": name}
    (place / "dataset_info.json").write_text(json.dumps(info))
    return folder
