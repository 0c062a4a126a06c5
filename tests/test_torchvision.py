"""The files that torchvision leaves behind, written here byte by byte as their authors wrote them."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from test_data import load

from dmjax.common.errors import UserError
from dmjax.condense import main as condense

TINY_STEPS = (
    *("--method", "dm", "--ipc", 1, "--iterations", 2, "--batch-real", 4, "--network.width", 4, "--network.depth", 1),
    *("--evaluation.networks", 1, "--evaluation.epochs", 1, "--evaluation.random-real", "false"),
    *("--evaluation.whole-dataset", "false"),
)


def fails(match, path, **options):
    with pytest.raises(UserError, match=match) as error:
        load("torchvision", path, **options)
    assert "\n" not in str(error.value)


def python2_pickle(content: dict) -> bytes:
    """A dictionary as Python 2 pickled it (format 2): byte strings, lists of numbers, one array of pixels."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode("latin1")

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def element(value) -> bytes:
        if isinstance(value, str):
            return text(value)
        if isinstance(value, int):
            return number(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(element, value)) + b"e"
        pixels = value.tobytes()
        shape = b"".join(map(number, value.shape))
        dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN"
        dtype += number(-1) + number(-1) + b"K\x00tb"
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
        return array + b"(K\x01(" + shape + b"t" + dtype + b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"

    items = b"".join(text(key) + element(value) for key, value in content.items())
    return b"\x80\x02}(" + items + b"u."


def write_cifar10(root, rng, dump=python2_pickle):
    """Returns the arrays of the training batches, [20, 3072] and [20]."""
    place = root / "cifar-10-batches-py"
    place.mkdir(parents=True)
    pixels, labels = rng.integers(0, 256, (24, 3072)).astype(np.uint8), [i % 10 for i in range(24)]
    for i in range(6):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        part = slice(4 * i, 4 * i + 4)
        (place / name).write_bytes(dump({"batch_label": name, "labels": labels[part], "data": pixels[part]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (place / "batches.meta").write_bytes(dump({"num_cases_per_batch": 4, "label_names": names}))
    return pixels, np.array(labels)


def write_mnist(root, rng, name="MNIST", packed=False):
    """Returns the images and labels of both splits."""
    place = root / name / "raw"
    place.mkdir(parents=True)
    written = []
    for split, n in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8), np.arange(n, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            path = place / f"{split}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(header + array.tobytes()) if packed else header + array.tobytes())
        written += [images, labels]
    return written


@pytest.mark.parametrize("dump", [python2_pickle, lambda content: pickle.dumps(content, 2)], ids=["python2", "python3"])
def test_cifar10(tmp_path, rng, dump):
    pixels, labels = write_cifar10(tmp_path, rng, dump)
    dataset = load("torchvision", tmp_path)
    assert dataset.counts.tolist() == [2] * 10
    assert dataset.class_names[3] == "cat"
    assert dataset.test_labels.tolist() == labels[20:].tolist() == [0, 1, 2, 3]
    # Channel by channel, row by row: the fourth image of the second class is the 12th of the file.
    red, green, blue = pixels[11].reshape(3, 32, 32)
    np.testing.assert_array_equal(dataset.images[1, 1], np.stack([red, green, blue], axis=-1))
    assert dataset.test_images[2, 5, 7, 1] == pixels[22, 1024 + 5 * 32 + 7]


def test_cifar100(tmp_path, rng):
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    for name, n in (("train", 200), ("test", 100)):
        pixels = rng.integers(0, 256, (n, 3072)).astype(np.uint8)
        fine = [i % 100 for i in range(n)]
        content = {"fine_labels": fine, "coarse_labels": [i // 5 for i in fine], "data": pixels}
        (place / name).write_bytes(python2_pickle(content))
    (place / "meta").write_bytes(python2_pickle({"fine_label_names": [f"fine{i}" for i in range(100)]}))
    dataset = load("torchvision", tmp_path)
    assert dataset.counts.tolist() == [2] * 100
    assert dataset.class_names[99] == "fine99"


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path, rng):
    write_cifar10(tmp_path, rng)
    trace = tmp_path / "trace"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"labels": [0], "data": Runs(f"touch {trace}")}, 2))
    fails(r"data_batch_3 is not opened: it wants posix\.system, which CIFAR does not", tmp_path)
    path.write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    fails(r"it wants builtins\.eval", tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "data_batch_2 is damaged or no pickle"),
        (lambda whole: b"", "data_batch_2 is damaged or no pickle"),
        (lambda whole: b"<html>not found</html>", "data_batch_2 is damaged or no pickle"),
        (lambda whole: pickle.dumps([1]), "holds no dictionary"),
        (lambda whole: pickle.dumps({"labels": [1]}), r"its data are not uint8 \[n, 3072\]"),
        (lambda whole: python2_pickle({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}), "not 2 whole numbers"),
        (
            lambda whole: python2_pickle({"labels": [11], "data": np.zeros((1, 3072), np.uint8)}),
            "label 11 out of range",
        ),
        (lambda whole: pickle.dumps({"labels": [1], "data": np.zeros((1, 3072), object)}, 2), "an array of O8"),
    ],
)
def test_damaged_cifar_is_one_line(tmp_path, rng, content, message):
    write_cifar10(tmp_path, rng)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(content(path.read_bytes()))
    fails(message, tmp_path)


def test_a_file_that_is_missing(tmp_path, rng):
    write_cifar10(tmp_path, rng)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    fails("test_batch is missing; let torchvision download", tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, rng, packed):
    images, labels, test_images, test_labels = write_mnist(tmp_path, rng, packed=packed)
    dataset = load("torchvision", tmp_path)
    assert dataset.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(dataset.images[7, 1, :, :, 0], images[17])
    np.testing.assert_array_equal(dataset.test_images[..., 0], test_images)
    np.testing.assert_array_equal(dataset.test_labels, test_labels)
    np.savez(
        tmp_path / "same.npz",
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    assert load("npz", tmp_path / "same.npz").fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:-1], "15680 bytes belong into it, 15679 are there"),
        (lambda whole: whole + b"x", "15680 bytes belong into it, 15681 are there"),
        (lambda whole: whole[:7], "no idx file of 3 dimensions"),
        (lambda whole: b"\0\0\x0d\3" + whole[4:], "no idx file of 3 dimensions"),  # floats
    ],
)
def test_damaged_idx_files_are_one_line(tmp_path, rng, content, message):
    write_mnist(tmp_path, rng)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(content(path.read_bytes()))
    fails(rf"train-images-idx3-ubyte is damaged.*({message})", tmp_path)


def test_a_damaged_packed_file_is_one_line(tmp_path, rng):
    write_mnist(tmp_path, rng, packed=True)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    fails(r"t10k-images-idx3-ubyte\.gz is damaged", tmp_path)


def test_svhn(tmp_path, rng):
    from scipy.io import savemat

    for split in ("train", "test"):
        images = rng.integers(0, 256, (32, 32, 3, 20)).astype(np.uint8)
        labels = (np.arange(20)[:, None] % 10 + 1).astype(np.uint8)  # 1 .. 10
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    dataset = load("torchvision", tmp_path)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.test_labels.tolist() == [*range(1, 10), 0] * 2
    np.testing.assert_array_equal(dataset.test_images[9], images[:, :, :, 9])
    whole = (tmp_path / "test_32x32.mat").read_bytes()
    (tmp_path / "test_32x32.mat").write_bytes(whole[: len(whole) // 2])
    fails(r"test_32x32\.mat is damaged or no MATLAB file", tmp_path)
    (tmp_path / "test_32x32.mat").write_text("<html>not found</html>")
    fails(r"test_32x32\.mat is damaged or no MATLAB file", tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": images, "y": labels[:5]})
    fails(r"X is uint8 \[32, 32, 3, 20\], y 5", tmp_path)


def test_stl10(tmp_path, rng):
    place = tmp_path / "stl10_binary"
    place.mkdir()
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (place / "class_names.txt").write_text("\n".join(names) + "\n")
    for split in ("train", "test"):
        images = rng.integers(0, 256, (10, 96, 96, 3)).astype(np.uint8)
        columns_first = images.transpose(0, 3, 2, 1)
        (place / f"{split}_X.bin").write_bytes(columns_first.tobytes())
        (place / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
    dataset = load("torchvision", tmp_path)
    assert dataset.class_names == tuple(names)
    np.testing.assert_array_equal(dataset.test_images, images)
    (place / "train_X.bin").write_bytes(b"short")
    fails(r"train_X\.bin is damaged: 276480 bytes belong into it, 5 are there", tmp_path)


def test_which_set_is_meant(tmp_path, rng):
    fails("needs --data.path", None)
    fails("there is no folder", tmp_path / "nowhere")
    fails("holds none of cifar-10-batches-py, .*; name the root", tmp_path)
    write_mnist(tmp_path, rng)
    clothes, *_ = write_mnist(tmp_path, rng, "FashionMNIST")
    fails("holds mnist, fashion_mnist; choose one with --data.name mnist", tmp_path)
    fails("holds no 'cifar10' but mnist, fashion_mnist", tmp_path, name="cifar10")
    dataset = load("torchvision", tmp_path, name="fashion_mnist")
    assert dataset.class_names[9] == "Ankle boot"
    np.testing.assert_array_equal(dataset.images[4, 0, :, :, 0], clothes[4])


def test_the_command_condenses_cifar_as_it_lies_there(tmp_path, rng, capsys):
    """An experiment file of TFDS' set, told where torchvision's is; the same pixels as arrays give the same set."""
    pixels, labels = write_cifar10(tmp_path / "root", rng)
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.savez(
        tmp_path / "same.npz",
        train_images=images[:20],
        train_labels=labels[:20],
        test_images=images[20:],
        test_labels=labels[20:],
    )
    for source, path in (("torchvision", tmp_path / "root"), ("npz", tmp_path / "same.npz")):
        where = ("--data.source", source, "--data.path", path, "--workdir", tmp_path / source)
        assert condense([*map(str, ("--config", "experiments/cifar10.py", *where, *TINY_STEPS))]) == 0
    made = [np.load(tmp_path / source / "synthetic.npz")["images"] for source in ("torchvision", "npz")]
    np.testing.assert_array_equal(*made)
    capsys.readouterr()
    (tmp_path / "root" / "cifar-10-batches-py" / "batches.meta").unlink()
    where = ("--data.source", "torchvision", "--data.path", tmp_path / "root", "--workdir", tmp_path / "new")
    assert condense([*map(str, ("--config", "experiments/cifar10.py", *where))]) == 2
    error = capsys.readouterr().err
    assert "batches.meta is missing" in error
    assert error.count("\n") == 1
