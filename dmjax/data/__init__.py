"""Data sources: each one reads something that users have and returns a `Dataset`."""

import importlib

from dmjax.common.errors import UserError
from dmjax.config import DataConfig
from dmjax.data.dataset import Dataset, normalize

__all__ = ["Dataset", "load", "normalize"]


_SOURCES_WITH = {
    "path": ("npz", "folder", "tfds"),
    "test_path": ("folder",),
    "image_size": ("folder", "tfds"),
    "skip_unreadable": ("folder",),
}


def _likely_source(config: DataConfig) -> str:
    return "npz" if config.path is not None and config.path.suffix == ".npz" else "folder"


def load(config: DataConfig, progress: bool = True) -> Dataset:
    """Reads the configured source.

    Raises:
      UserError: the source is missing, empty or damaged; the message names the file and the remedy.
    """
    if config.source == "memory":
        raise UserError("data source memory is for Python: hand over a dmjax.Dataset as dataset=...")
    for name, sources in _SOURCES_WITH.items():
        if getattr(config, name) and config.source not in sources:
            raise UserError(
                f"--data.{name.replace('_', '-')} is for the source {' and '.join(sources)}, not for {config.source}; "
                f"leave it out, or give --data.source {_likely_source(config)} too"
            )
    source = importlib.import_module(f"dmjax.data.{config.source}")
    dataset = source.load(config) if config.source in ("digits", "npz") else source.load(config, progress)
    return dataset.whitened(config.zca_regularization) if config.zca else dataset
