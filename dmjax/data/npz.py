"""One .npz file: train_images, train_labels, test_images, test_labels, and optionally class_names."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.config import DataConfig
from dmjax.data.arrays import from_arrays
from dmjax.data.dataset import Dataset

KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads an .npz without executing pickles. Raises a `UserError` for every way in which it can be broken."""
    files.check_regular(Path(path))
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
    """Reads the configured file."""
    if config.path is None:
        raise UserError("data source npz needs --data.path FILE.npz")
    arrays = read_npz(config.path, KEYS)
    names = arrays.get("class_names")
    class_names = None if names is None else [str(name) for name in np.atleast_1d(names)]
    content = {key: arrays[key] for key in KEYS}
    return from_arrays(**content, class_names=class_names, name=config.name, place=config.path.stem, where=config.path)
