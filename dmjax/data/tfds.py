"""TensorFlow Datasets by name, read from a prepared data_dir without network and without TensorFlow."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmjax.common import files, signals
from dmjax.common.errors import UserError, near_misses
from dmjax.config import DataConfig
from dmjax.data import cache
from dmjax.data.dataset import Dataset
from dmjax.data.images import to_array

_FORMAT = "2"  # of the cache entry; part of its key
# What TFDS calls a data set with its configuration, and what it is called here and in the normalisation table.
_NAMES = {"imagenet_resized/64x64": "imagenet64"}


def load(config: DataConfig, progress: bool = True) -> Dataset:
    """Reads splits train and test (or validation) of `config.name` through the cache."""
    if config.name is None:
        raise UserError("data source tfds needs --data.name, for example --data.name mnist")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"data source tfds needs pip install tensorflow-datasets ({error})") from None
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends OpenCV on every start
    data_dir = Path(config.path or "~/tensorflow_datasets").expanduser()
    builder = _builder(tfds, config.name, data_dir)
    features: Any = builder.info.features
    if "image" not in features or "label" not in features or not hasattr(features["label"], "num_classes"):
        raise UserError(f"TFDS {config.name!r} has no labelled images; its features are {', '.join(features)}")
    splits = {"train": "train", "test": next((s for s in ("test", "validation") if s in builder.info.splits), None)}
    if "train" not in builder.info.splits or splits["test"] is None:
        raise UserError(f"TFDS {config.name!r} needs splits train and test; it has {', '.join(builder.info.splits)}")

    def plan() -> cache.Plan:
        skip = {"image": tfds.decode.SkipDecoding()}
        class_names = list(features["label"].names)
        counts = np.zeros(len(class_names), int)
        for example in _read(builder, "train", decoders=skip):
            signals.check()
            counts[example["label"]] += 1
        shape = _image_shape(features["image"].shape, builder.as_data_source("train"), config)

        def examples():
            for split, tfds_split in splits.items():
                for i, example in enumerate(_read(builder, tfds_split)):
                    yield split, int(example["label"]), _fit(example["image"], shape, f"{split} image {i}", config)

        num_test = builder.info.splits[splits["test"]].num_examples
        return cache.Plan(class_names, shape, counts.tolist(), num_test, examples)

    name = config.name.split(":")[0]
    place = name.split("/")[0]
    key = f"tfds-{place}-" + _fingerprint(Path(builder.data_path), config)
    return cache.cached_dataset(_NAMES.get(name, place), place, files.cache_folder(config.cache), key, plan, progress)[
        0
    ]


def _builder(tfds: Any, name: str, data_dir: Path) -> Any:
    prepare = (
        f"prepare it where there is a network: tfds build {name} --data_dir {data_dir} --file_format array_record "
        "(needs pip install tensorflow), or name what you have: --data.source npz, folder, torchvision or huggingface"
    )
    known = tfds.list_builders(with_community_datasets=False)
    prepared = sorted(p.name for p in data_dir.iterdir() if p.is_dir()) if data_dir.is_dir() else []
    if name.split(":")[0].split("/")[0] not in {*known, *prepared}:
        raise UserError(f"TFDS has no data set {name!r}; {near_misses(name, sorted({*known, *prepared}))}")
    if data_dir.is_file():
        raise UserError(f"{str(data_dir)!r} is a file; give --data.source npz for arrays, or folder for a tar")
    if not data_dir.is_dir():
        raise UserError(f"there is no TFDS data_dir {str(data_dir)!r}; {prepare}")
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        data_path, splits = Path(builder.data_path), builder.info.splits
    except Exception as error:  # TFDS raises half a dozen kinds, some of many lines
        raise UserError(f"TFDS cannot open {name!r}: {str(error).splitlines()[0]}") from None
    if not splits or not data_path.is_dir():
        held = f"it holds {', '.join(prepared)}" if prepared else "it is empty"
        raise UserError(f"{name!r} is not prepared in {str(data_dir)!r} ({held}); {prepare}")
    if builder.info.file_format.value != "array_record":
        stored = builder.info.file_format.value
        raise UserError(f"{name!r} in {str(data_dir)!r} is stored as {stored}, which needs TensorFlow; {prepare}")
    return builder


def _read(builder: Any, split: str, **options: Any) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        for example in builder.as_data_source(split, **options):
            yield example
            number += 1
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"image {number} of split {split} in {builder.data_path} cannot be read: {reason}; prepare it again"
        ) from None


def _image_shape(declared, source, config: DataConfig) -> tuple[int, int, int]:
    channels = declared[2] or 3
    if config.image_size is not None:
        return config.image_size, config.image_size, channels
    if declared[0] is None or declared[1] is None:
        height, width = source[0]["image"].shape[:2]
        return height, width, channels
    return tuple(declared)


def _fit(image: np.ndarray, shape, what: str, config: DataConfig) -> np.ndarray:
    if image.shape == shape:
        return image
    if config.image_size is None:
        raise UserError(
            f"images of several sizes in TFDS {config.name!r}: {what} is {image.shape[1]}x{image.shape[0]}, the first "
            f"is {shape[1]}x{shape[0]}; resize them all with --data.image-size {min(shape[:2])}"
        )
    return to_array(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), shape)


def _fingerprint(data_path: Path, config: DataConfig) -> str:
    digest = hashlib.sha256(repr((_FORMAT, config.image_size)).encode())
    for path in sorted(p for p in data_path.iterdir() if p.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]
