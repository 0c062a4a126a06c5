"""How close synthetic images are to the training images that they were made from."""

from typing import get_args

import numpy as np

from dmjax.data.dataset import Dataset
from dmjax.data.factor import Reduction, as_unpacked
from dmjax.data.synthetic_set import SyntheticSet

_AT_ONCE = 256  # training images that are compared in one product


def closest(synthetic: SyntheticSet, dataset: Dataset) -> np.ndarray:
    """The largest correlation of each image of a set with a training image of its class.

    At 1 an image is one of the training images. What less means depends on the data, since the images of a class
    resemble each other: `closest_of_test_images` says how close images are that were never trained on.

    Args:
      synthetic: The set. Of an image that holds several small ones, each of these counts alone, and is compared with
        training images that are made as small.
      dataset: The training images.

    Returns:
      float [n], from -1 to 1; 0 for an image of a single value.
    """
    unpacked = synthetic.unpacked()
    return _closest(unpacked.images, unpacked.hard_labels, dataset, synthetic.factor)


def closest_of_test_images(dataset: Dataset, factor: int = 1) -> np.ndarray:
    """The same of the test images, made as small as the images of a set with this factor."""
    images = dataset.test_images if factor == 1 else as_unpacked(dataset.test_images, factor)
    return _closest(images, dataset.test_labels, dataset, factor)


def _closest(images: np.ndarray, labels: np.ndarray, dataset: Dataset, factor: int) -> np.ndarray:
    flat, found = _centred(images), np.full(len(images), -1.0)
    for c in range(dataset.num_classes):
        mine, count = labels == c, int(dataset.counts[c])
        for start in range(0, count, _AT_ONCE):
            real = dataset.images[c, start : min(start + _AT_ONCE, count)]
            # Where images were packed, they were made small in one of two ways.
            seen = [real] if factor == 1 else [as_unpacked(real, factor, way) for way in get_args(Reduction)]
            for alike in seen:
                products = flat[mine] @ _centred(alike).T
                found[mine] = np.maximum(found[mine], products.max(axis=1, initial=-1))
    return np.clip(found, -1, 1)


def _centred(images: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, or of zeros."""
    rows = np.asarray(images, np.float32).reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
