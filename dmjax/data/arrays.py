"""Images and labels as arrays: checked, and brought into the form that every source returns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmjax.common.errors import UserError
from dmjax.data.dataset import Dataset, class_major, make_dataset


def from_arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    place: str = "arrays",
    where: Any = "",
) -> Dataset:
    """Makes a data set of arrays; see `Dataset.from_arrays`.

    Args:
      train_images: Images to train on.
      train_labels: Their classes.
      test_images: Images to test on.
      test_labels: Their classes.
      class_names: One name a class; by default the numbers.
      name: The name of the data set, whose row of the normalisation table applies where the images are like its own.
      place: What it is called where `name` is None.
      where: The file that the arrays are from, for messages.
    """
    prefix = f"{where}: " if where else ""
    train, test = (_images(images, f"{prefix}{split}_images") for images, split in _named(train_images, test_images))
    labels, test_labels = (
        _labels(given, f"{prefix}{split}_labels") for given, split in _named(train_labels, test_labels)
    )
    for split, count, labelled in (("train", len(train), len(labels)), ("test", len(test), len(test_labels))):
        if count != labelled:
            raise UserError(f"{prefix}{count} {split}_images but {labelled} {split}_labels")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"{prefix}train_images are {train.shape[1:]}, test_images {test.shape[1:]}")
    if len(labels) == 0:
        raise UserError(f"{prefix}train_images is empty")
    largest = int(labels.max())
    names = [str(n) for n in (range(largest + 1) if class_names is None else class_names)]
    if len(names) <= largest:
        raise UserError(f"{prefix}label {largest} out of range, class_names has {len(names)} names")
    if len(test_labels) and int(test_labels.max()) >= len(names):
        raise UserError(
            f"{prefix}test_labels holds {int(test_labels.max())}, out of range: train_labels ends at {len(names) - 1}"
        )
    images, counts = class_major(train, labels, len(names))
    return make_dataset(name, place, names, images, counts, test, test_labels)


def _named(train: Any, test: Any) -> tuple[tuple[Any, str], tuple[Any, str]]:
    return (train, "train"), (test, "test")


def _images(images: Any, name: str) -> np.ndarray:
    """uint8 [n, H, W, D] of pixels, or of fractions in [0, 1], which are rounded to pixels."""
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape[1:]:
        raise UserError(f"{name} must be [n, H, W] or [n, H, W, 1 or 3], not {list(array.shape)}")
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (array.min() >= 0 and array.max() <= 1):
            raise UserError(f"{name} must be fractions between 0 and 1, or uint8 pixels 0..255")
        return np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{name} must be uint8 pixels 0..255, or fractions between 0 and 1, not {array.dtype}")
    return array


def _labels(labels: Any, name: str) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{name} must be a vector of integers, not {array.dtype} {list(array.shape)}")
    # A label far beyond the number of images is a mistake, and would allocate that many classes.
    if len(array) and (array.min() < 0 or array.max() >= max(len(array), 2)):
        bad = array.min() if array.min() < 0 else array.max()
        raise UserError(f"{name} holds {bad}, out of range: labels are 0 to number of classes - 1")
    return array.astype(np.int32)
