"""Data sources: each one reads something that users have and returns a `Dataset`."""

import importlib
import sys

from dmjax.common.errors import UserError
from dmjax.config import DataConfig
from dmjax.data import huggingface, torchvision
from dmjax.data.dataset import Dataset, normalize

__all__ = ["Dataset", "load", "normalize"]


_SOURCES_WITH = {
    "path": ("npz", "folder", "tfds", "torchvision", "huggingface"),
    "test_path": ("folder", "huggingface"),
    "image_size": ("folder", "tfds", "huggingface"),
    "skip_unreadable": ("folder", "huggingface"),
    "image_column": ("huggingface",),
    "label_column": ("huggingface",),
}


def _likely_source(flag: str, config: DataConfig) -> str:
    """The source that was meant where a flag is given that the configured one does not read."""
    if config.path is None:
        return _SOURCES_WITH[flag][0]
    if config.path.suffix == ".npz":
        return "npz"
    others = {"huggingface": huggingface.is_saved, "torchvision": torchvision.found}
    return next((name for name, is_there in others.items() if is_there(config.path)), "folder")


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
                f"--data.{name.replace('_', '-')} is for the source {' or '.join(sources)}, not for {config.source}; "
                f"leave it out, or give --data.source {_likely_source(name, config)} too"
            )
    source = importlib.import_module(f"dmjax.data.{config.source}")
    dataset = (
        source.load(config) if config.source in ("digits", "npz", "torchvision") else source.load(config, progress)
    )
    never = sorted({*range(dataset.num_classes)} - {*dataset.test_labels.tolist()})
    if never:
        named = ", ".join(dataset.class_names[label] for label in never[:3])
        print(f"note: {dataset.name} has no test images of {len(never)} class(es): {named}", file=sys.stderr)
    return dataset.whitened(config.zca_regularization) if config.zca else dataset
