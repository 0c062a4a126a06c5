"""How close synthetic images are to the training images that they were made from."""

import numpy as np

from dmjax.data.dataset import Dataset
from dmjax.data.synthetic_set import SyntheticSet

_AT_ONCE = 1024  # training images that are compared in one product


def closest(synthetic: SyntheticSet, dataset: Dataset) -> np.ndarray:
    """The largest correlation of each image with a training image of its class.

    Near 1 an image is still one of the training images. Smooth images of one class, such as digits, correlate without
    being copies; two photographs rarely do by more than 0.9.

    Args:
      synthetic: The set; of images that hold several, each of these counts alone.
      dataset: The training images.

    Returns:
      float [n], from -1 to 1; of an image of a single value 0.
    """
    images = synthetic.unpacked()
    flat, found = _centred(images.images), np.full(len(images.images), -1.0)
    for c in range(dataset.num_classes):
        mine = images.hard_labels == c
        for start in range(0, int(dataset.counts[c]), _AT_ONCE):
            real = dataset.images[c, start : min(start + _AT_ONCE, int(dataset.counts[c]))]
            found[mine] = np.maximum(found[mine], (flat[mine] @ _centred(real).T).max(axis=1))
    return found


def _centred(images: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, or of zeros."""
    rows = np.asarray(images, np.float32).reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
