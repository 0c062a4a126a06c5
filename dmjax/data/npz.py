"""One .npz file: train_images, train_labels, test_images, test_labels, and optionally class_names."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmjax.common.errors import UserError
from dmjax.config import DataConfig
from dmjax.data.dataset import Dataset, class_major, make_dataset

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads an .npz without executing pickles. Raises a `UserError` for every way in which it can be broken."""
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"{path} is damaged or not an .npz file" if Path(path).exists() else f"no file {str(path)!r}"
            )
        with np.load(path, allow_pickle=False) as archive:
            missing = [k for k in keys if k not in archive.files]
            if missing:
                raise UserError(f"{path} has no array {missing[0]!r}; it holds {', '.join(archive.files) or 'nothing'}")
            return {k: archive[k] for k in archive.files}
    except UserError:
        raise
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise a dozen kinds
        if "pickle" in str(error):
            raise UserError(f"{path} holds pickled objects, which are not loaded; save plain arrays") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or not an .npz file: {reason}") from None


def load(config: DataConfig) -> Dataset:
    if config.path is None:
        raise UserError("data source npz needs --data.path FILE.npz")
    arrays = read_npz(config.path, KEYS)
    images = {split: _images(arrays[f"{split}_images"], f"{split}_images", config) for split in ("train", "test")}
    labels = {split: _labels(arrays[f"{split}_labels"], f"{split}_labels", config) for split in ("train", "test")}
    for split in ("train", "test"):
        if len(images[split]) != len(labels[split]):
            raise UserError(
                f"{config.path}: {len(images[split])} {split}_images but {len(labels[split])} {split}_labels"
            )
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise UserError(
            f"{config.path}: train_images are {images['train'].shape[1:]}, test_images {images['test'].shape[1:]}"
        )
    if len(labels["train"]) == 0:
        raise UserError(f"{config.path}: train_images is empty")
    num_classes = int(labels["train"].max()) + 1
    names = [str(n) for n in np.atleast_1d(arrays.get("class_names", np.arange(num_classes)))]
    if len(names) < num_classes:
        raise UserError(f"{config.path}: label {num_classes - 1} out of range, class_names has {len(names)} names")
    num_classes = len(names)
    if len(labels["test"]) and int(labels["test"].max()) >= num_classes:
        raise UserError(
            f"{config.path}: test_labels holds {int(labels['test'].max())}, out of range: "
            f"train_labels ends at {num_classes - 1}"
        )
    train_images, counts = class_major(images["train"], labels["train"], num_classes)
    return make_dataset(config.name, config.path.stem, names, train_images, counts, images["test"], labels["test"])


def _images(array: np.ndarray, key: str, config: DataConfig) -> np.ndarray:
    if array.dtype != np.uint8:
        raise UserError(f"{config.path}: {key} must be uint8 pixels 0..255, not {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape[1:]:
        raise UserError(f"{config.path}: {key} must be [n, H, W] or [n, H, W, 1 or 3], not {list(array.shape)}")
    return array


def _labels(array: np.ndarray, key: str, config: DataConfig) -> np.ndarray:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{config.path}: {key} must be a vector of integers, not {array.dtype} {list(array.shape)}")
    # A label far beyond the number of images is a mistake, and would allocate that many classes.
    if len(array) and (array.min() < 0 or array.max() >= max(len(array), 2)):
        bad = array.min() if array.min() < 0 else array.max()
        raise UserError(f"{config.path}: {key} holds {bad}, out of range: labels are 0 to number of classes - 1")
    return array.astype(np.int32)
