"""Synthetic sets in the formats of other libraries: what a network is trained on, unpacked.

Pixels of a PNG are 8 bits; every other format keeps float32.
"""

import importlib
import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.data.synthetic_set import SyntheticSet, encoded_png


def to_png(synthetic: SyntheticSet, path: Path) -> str:
    """A folder PATH/CLASS/NNNN.png, the layout of an ImageFolder, and labels.csv where labels are soft."""
    return f"{synthetic.export(path)} images, 8 bits a channel, in {path}/CLASS/"


def to_numpy(synthetic: SyntheticSet, path: Path) -> str:
    """PATH/images.npy float32 [n, H, W, D] in units of pixels / 255, labels.npy, mean.npy and std.npy."""
    unpacked = synthetic.unpacked()
    for name in ("images", "labels", "mean", "std"):
        buffer = io.BytesIO()
        np.save(buffer, getattr(unpacked, name))
        files.write_bytes(path / f"{name}.npy", buffer.getvalue())
    return f"images {list(unpacked.images.shape)} float32 in {path}/"


def to_torch(synthetic: SyntheticSet, path: Path) -> str:
    """One file that `torch.load(PATH, weights_only=True)` reads, in the layout in which the authors of DM save sets.

    `data` is a list of one pair: images float32 [n, D, H, W], normalised as networks expect them, and labels int64 [n],
    or soft labels float32 [n, C]. `mean`, `std` and `class_names` stand beside it.
    """
    torch = _library("torch")
    unpacked = synthetic.unpacked()
    images = ((unpacked.images - unpacked.mean) / unpacked.std).transpose(0, 3, 1, 2)
    labels = unpacked.labels.astype(np.int64) if unpacked.labels.ndim == 1 else unpacked.labels
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (images, labels)]
    moments = {name: torch.from_numpy(getattr(unpacked, name)) for name in ("mean", "std")}
    buffer = io.BytesIO()
    torch.save({"data": [tensors], **moments, "class_names": list(unpacked.class_names)}, buffer)
    files.write_bytes(path, buffer.getvalue())
    return f"images {list(images.shape)} float32, normalised, in {path}"


def to_huggingface(synthetic: SyntheticSet, path: Path) -> str:
    """A folder that `datasets.load_from_disk(PATH)` opens.

    `image` is what a screen shows, 8 bits a channel; `pixels` the same in float32, in units of pixels / 255; `label`
    the class; `soft_label` its distribution, where labels are soft. `json.loads(dataset.info.description)` has `mean`
    and `std`, by which networks expect `pixels` normalised.
    """
    datasets = _library("datasets")
    unpacked = synthetic.unpacked()
    features = {
        "image": datasets.Image(),
        "pixels": datasets.Array3D(unpacked.images.shape[1:], "float32"),
        "label": datasets.ClassLabel(names=list(unpacked.class_names)),
    }
    shown = [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in unpacked.pixels()]
    columns = {"image": shown, "pixels": list(unpacked.images), "label": unpacked.hard_labels.tolist()}
    if unpacked.labels.ndim == 2:
        features["soft_label"] = datasets.Sequence(datasets.Value("float32"))
        columns["soft_label"] = unpacked.labels.tolist()
    features = datasets.Features(features)
    info = datasets.DatasetInfo(description=json.dumps(_moments(unpacked)), features=features)
    datasets.Dataset.from_dict(columns, features, info).save_to_disk(str(path))
    return f"{len(shown)} images in {path}/"


def to_tfds(synthetic: SyntheticSet, path: Path) -> str:
    """A folder that `tfds.builder_from_directory(PATH)` opens: one split, train, in the format array_record.

    The features are the columns of `to_huggingface`, pixels and soft labels in float32; `builder.info.metadata` has
    `mean` and `std`. Writing and `builder.as_data_source` do without TensorFlow.
    """
    tfds = _library("tensorflow_datasets")
    unpacked = synthetic.unpacked()
    features = {
        "image": tfds.features.Image(shape=unpacked.images.shape[1:]),
        "pixels": tfds.features.Tensor(shape=unpacked.images.shape[1:], dtype=np.float32),
        "label": tfds.features.ClassLabel(names=list(unpacked.class_names)),
    }
    # An array would be encoded by TensorFlow, a file is taken as it is.
    columns = {
        "image": [io.BytesIO(encoded_png(image)) for image in unpacked.pixels()],
        "pixels": unpacked.images,
        "label": unpacked.hard_labels.tolist(),
    }
    if unpacked.labels.ndim == 2:
        features["soft_label"] = tfds.features.Tensor(shape=unpacked.labels.shape[1:], dtype=np.float32)
        columns["soft_label"] = unpacked.labels
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="synthetic", version=tfds.core.Version("1.0.0"), data_dir=str(path), module_name="dmjax"
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="A condensed data set: networks expect its pixels normalised by the mean and std of the metadata.",
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(_moments(unpacked)),
    )
    path.mkdir(parents=True, exist_ok=True)
    writer = tfds.core.SequentialWriter(info, len(unpacked.images), file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples(
        {"train": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}
    )
    writer.close_all()
    return f"{len(unpacked.images)} images in {path}/"


FORMATS: Mapping[str, Callable[[SyntheticSet, Path], str]] = {
    "png": to_png,
    "numpy": to_numpy,
    "torch": to_torch,
    "huggingface": to_huggingface,
    "tfds": to_tfds,
}
"""Writers by name: a set and a path -> what was written, for people."""


def _library(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{name} is not installed: pip install {name}")
    return importlib.import_module(name)


def _moments(synthetic: SyntheticSet) -> dict[str, list[float]]:
    """What networks expect the images normalised by, per channel, as plain numbers."""
    return {"mean": synthetic.mean.tolist(), "std": synthetic.std.tolist()}
