"""scikit-learn's digits: 1,797 real 8x8 images that ship inside that package."""

import numpy as np

from dmjax.config import DataConfig
from dmjax.data.dataset import Dataset, class_major, make_dataset


def load(config: DataConfig) -> Dataset:
    """Every fifth image is a test image: 1,438 to train, 359 to test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # 0 .. 16
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    test = np.arange(len(labels)) % 5 == 4
    train_images, counts = class_major(images[~test], labels[~test], 10)
    names = tuple(str(c) for c in range(10))
    return make_dataset(config.name, "digits", names, train_images, counts, images[test], labels[test])
