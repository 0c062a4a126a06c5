"""scikit-learn's digits: 1,797 real 8x8 images that ship inside that package."""

import importlib.util
from pathlib import Path

import numpy as np

from dmjax.config import DataConfig
from dmjax.data.dataset import Dataset, class_major, make_dataset


def load(config: DataConfig) -> Dataset:
    """Every fifth image is a test image: 1,438 to train, 359 to test."""
    pixels, labels = _pixels_and_labels()
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    test = np.arange(len(labels)) % 5 == 4
    train_images, counts = class_major(images[~test], labels[~test], 10)
    names = tuple(str(c) for c in range(10))
    return make_dataset(config.name, "digits", names, train_images, counts, images[test], labels[test])


def _pixels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Pixels 0 .. 16, [1797, 64], and labels: from the file itself where it is, since importing the package is slow."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
