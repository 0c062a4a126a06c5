"""Labelled images on the device, which networks are trained and tested on."""

from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax.data import Dataset
from dmjax.data.synthetic_set import SyntheticSet

TEST_BATCH = 256
"""Images that are tested at a time. Test images are padded to a multiple of this."""


class Examples(NamedTuple):
    """Labelled images on the device.

    Attributes:
      images: uint8 [n, H, W, D], or float32 in units of pixels / 255.
      labels: int32 [n], or soft labels float32 [n, C].
      mean: float32 [D], of pixels / 255.
      std: float32 [D], of pixels / 255.
    """

    images: Any
    labels: Any
    mean: Any
    std: Any


def place(small: SyntheticSet) -> Examples:
    """Places the images of a set on the device, unpacked."""
    small = small.unpacked()
    return jax.device_put(Examples(small.images, small.labels, small.mean, small.std))


def place_whole(dataset: Dataset) -> Examples:
    """Places the whole training set on the device."""
    return jax.device_put(Examples(*dataset.flat(), dataset.mean, dataset.std))


def place_test(images: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Examples:
    """Places test images uint8 [T, H, W, D], padded to whole batches with images of label -1."""
    missing = -len(labels) % TEST_BATCH
    images = np.pad(images, [(0, missing)] + [(0, 0)] * 3)
    return jax.device_put(Examples(images, np.pad(labels, (0, missing), constant_values=-1), mean, std))
