"""The files that torchvision leaves below the `root` it was given, read without torch.

The sets go by the names that they have elsewhere here: cifar10, cifar100, mnist, fashion_mnist, kmnist, svhn_cropped
and stl10. A pickle can run any code when it is opened, and CIFAR is pickles; so they are opened by an `Unpickler` that
makes nothing but arrays, numbers, texts, lists and dictionaries.
"""

import gzip
import io
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.config import DataConfig
from dmjax.data.arrays import from_arrays
from dmjax.data.dataset import Dataset

_AGAIN = "remove it, and let torchvision download the set again (download=True)"
_DIGITS = tuple("0123456789")
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


class Arrays(NamedTuple):
    """A whole set: uint8 images [n, H, W] or [n, H, W, 3], integer labels [n] from 0, and a name for every class."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: Sequence[str]


class Layout(NamedTuple):
    """Where a set is and how it is read.

    Attributes:
      place: A folder below the root that belongs to this set alone, or its first file.
      read: Takes the root, returns the arrays.
    """

    place: str
    read: Callable[[Path], Arrays]


def load(config: DataConfig) -> Dataset:
    """Reads the set below the configured root, or of several the one that --data.name names."""
    if config.path is None:
        raise UserError("data source torchvision needs --data.path FOLDER, the root that torchvision was given")
    if not config.path.is_dir():
        raise UserError(f"there is no folder {str(config.path)!r}; name the root that torchvision was given")
    held = found(config.path)
    if not held:
        expected = ", ".join(layout.place for layout in LAYOUTS.values())
        raise UserError(f"{config.path} holds none of {expected}; name the root that torchvision was given")
    if config.name is None and len(held) > 1:
        raise UserError(f"{config.path} holds {', '.join(held)}; choose one with --data.name {held[0]}")
    name = config.name or held[0]
    if name not in held:
        raise UserError(f"{config.path} holds no {name!r} but {', '.join(held)}; give --data.name {held[0]}")
    arrays = LAYOUTS[name].read(config.path)
    return from_arrays(**arrays._asdict(), name=name, place=config.path.name, where=config.path / LAYOUTS[name].place)


def found(root: Path) -> list[str]:
    """The names of the sets that are below a root."""
    return [name for name, layout in LAYOUTS.items() if (root / layout.place).exists()]


def _cifar(folder: str, train: Sequence[str], test: str, meta: str, labels: str, names: str) -> Layout:
    """CIFAR, whose batches are pickled dictionaries.

    Args:
      folder: Below the root.
      train: Files of training images.
      test: The file of test images.
      meta: The file that has the names of the classes.
      labels: The key of the labels in a batch.
      names: The key of the names.
    """

    def batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
        content = _unpickled(path)
        images, numbers = content.get("data"), content.get(labels)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3 * 32 * 32,):
            raise UserError(f"{path} is damaged: its data are not uint8 [n, 3072]; {_AGAIN}")
        if not isinstance(numbers, list) or not all(isinstance(n, int) for n in numbers) or len(numbers) != len(images):
            raise UserError(f"{path} is damaged: its {labels} are not {len(images)} whole numbers; {_AGAIN}")
        return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.asarray(numbers, np.int64)

    def read(root: Path) -> Arrays:
        place = root / folder
        batches = [batch(place / name) for name in train]
        images, numbers = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        class_names = _unpickled(place / meta).get(names)
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise UserError(f"{place / meta} is damaged: it has no {names}; {_AGAIN}")
        return Arrays(images, numbers, *batch(place / test), class_names)

    return Layout(folder, read)


def _unpickled(path: Path) -> dict[str, Any]:
    content = _content(path)
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except _Refused as error:
        raise UserError(f"{path} is not opened: it wants {error}, which CIFAR does not; {_AGAIN}") from None
    except Exception as error:  # a damaged pickle raises a dozen kinds
        raise UserError(f"{path} is damaged or no pickle: {_first_line(error)}; {_AGAIN}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is damaged: it holds no dictionary; {_AGAIN}")
    return loaded


class _Refused(pickle.UnpicklingError):
    """A pickle named something that would be imported."""


class _ArraysOnly(pickle.Unpickler):
    """Imports nothing: the four names that pickled arrays hold stand for functions of this file."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLED_ARRAYS[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An array to be filled by the state that follows in the pickle."""
    return np.empty(0, np.uint8)


def _dtype(code: str, align: Any = False, copy: Any = False) -> np.dtype:
    """The type of the elements; NumPy of Python 2 wrote the two switches as 0 and 1, which that of today warns of."""
    if code != "u1":
        raise ValueError(f"an array of {code}, not of pixels")
    return np.dtype(np.uint8)


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 writes them in the format of Python 2."""
    return text.encode("latin1")


_PICKLED_ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever the first argument of the above
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
}


def _idx(folder: str, class_names: Sequence[str]) -> Layout:
    """MNIST and what is made like it: four files, packed or not."""

    def read(root: Path) -> Arrays:
        place = root / folder
        parts = [
            _read_idx(place / f"{split}-{kind}", dimensions)
            for split in ("train", "t10k")
            for kind, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1))
        ]
        return Arrays(*parts, class_names)

    return Layout(folder, read)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array uint8 behind a header: two zeros, the type 8, the number of dimensions, and each of them in 4 bytes."""
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists() and packed.exists():
        path = packed
    content = _content(path)
    if path is packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is damaged: {_first_line(error)}; {_AGAIN}") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path} is damaged or no idx file of {dimensions} dimensions; {_AGAIN}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    return _of_shape(path, content[start:], shape)


def _svhn(root: Path) -> Arrays:
    """SVHN in its cropped format, where the digit 0 has the label 10."""
    parts = []
    for split in ("train", "test"):
        path = root / f"{split}_32x32.mat"
        content = _content(path)
        try:
            from scipy.io import loadmat  # comes with scikit-learn

            held = loadmat(io.BytesIO(content), variable_names=("X", "y"))
            images, labels = held["X"], held["y"]
        except Exception as error:  # as many kinds as for a pickle
            raise UserError(f"{path} is damaged or no MATLAB file: {_first_line(error)}; {_AGAIN}") from None
        if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or labels.size != images.shape[-1]:
            raise UserError(f"{path} is damaged: X is {images.dtype} {list(images.shape)}, y {labels.size}; {_AGAIN}")
        parts += [np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.ravel().astype(np.int64) % 10]
    return Arrays(*parts, _DIGITS)


def _stl10(root: Path) -> Arrays:
    """STL-10, whose pixels go channel by channel and down the columns, and whose labels begin with 1."""
    place = root / "stl10_binary"
    parts = []
    for split in ("train", "test"):
        pixels, labels = (_content(place / f"{split}_{kind}.bin") for kind in ("X", "y"))
        images = _of_shape(place / f"{split}_X.bin", pixels, (len(labels), 3, 96, 96))
        parts += [images.transpose(0, 3, 2, 1), np.frombuffer(labels, np.uint8).astype(np.int64) - 1]
    return Arrays(*parts, _content(place / "class_names.txt").decode("latin1").split())


def _content(path: Path) -> bytes:
    files.check_regular(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; let torchvision download the set again (download=True)") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _of_shape(path: Path, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    if len(content) != math.prod(shape):
        raise UserError(
            f"{path} is damaged: {math.prod(shape)} bytes belong into it, {len(content)} are there; {_AGAIN}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


LAYOUTS = {
    "cifar10": _cifar(
        "cifar-10-batches-py",
        *(tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "labels", "label_names"),
    ),
    "cifar100": _cifar("cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
    "mnist": _idx("MNIST/raw", _DIGITS),
    "fashion_mnist": _idx("FashionMNIST/raw", _CLOTHES),
    "kmnist": _idx("KMNIST/raw", _HIRAGANA),
    "svhn_cropped": Layout("train_32x32.mat", _svhn),
    "stl10": Layout("stl10_binary", _stl10),
}
"""Sets by name."""
