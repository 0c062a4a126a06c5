"""Data sources: each one reads something that users have and returns a `Dataset`."""

import importlib

from dmjax.common.errors import UserError
from dmjax.config import DataConfig
from dmjax.data.dataset import Dataset, normalize

__all__ = ["Dataset", "load", "normalize"]


def load(config: DataConfig, progress: bool = True) -> Dataset:
    """Reads the configured source.

    Raises:
      UserError: the source is missing, empty or damaged; the message names the file and the mend.
    """
    if config.image_size is not None and config.source in ("digits", "npz"):
        raise UserError(f"--data.image_size resizes folders and tfds, not the source {config.source}")
    if config.test_path is not None and config.source != "folder":
        raise UserError(f"--data.test_path belongs to the source folder, not to {config.source}")
    if config.source in ("digits", "npz"):
        return importlib.import_module(f"dmjax.data.{config.source}").load(config)
    return importlib.import_module(f"dmjax.data.{config.source}").load(config, progress)
