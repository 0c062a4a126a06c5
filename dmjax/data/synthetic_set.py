"""The synthetic set: saved, loaded, exported, pictured."""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmjax.common import files, html
from dmjax.common.errors import UserError
from dmjax.data import factor as factors
from dmjax.data.npz import read_npz
from dmjax.data.whitening import Whitening

_FORMAT = 2  # of the file; 1, which does not say so, has hard labels and the factor 1
_KEYS = ("images", "labels", "mean", "std", "class_names", "metadata")
_WHITENING, _EXTRA = "whitening_", "extra_"  # what the names of further arrays begin with
PICTURE_COLUMNS = 50
"""Images of a class that a picture shows at most."""
GAP = 2
"""Pixels between two images of a picture, before it is enlarged."""
_SHOWN = 10  # classes, and images of each, that a notebook shows at most: the picture is a part of its file
_SHOWN_PIXELS = 820  # a side of that picture at most


@dataclasses.dataclass(frozen=True)
class SyntheticSet:
    """A small labelled set of images.

    Attributes:
      images: float32 [n, H, W, D] in units of real pixels / 255: neither clipped nor normalised. Whitened where
        `whitening` is given.
      labels: int32 [n], the class of each image; or soft labels float32 [n, C], whose rows sum to 1.
      mean: float32 [D], by which networks expect the images normalised.
      std: float32 [D].
      class_names: C names.
      metadata: Plain JSON values: the configuration of the run, and what it ran on.
      factor: Every image unpacks into factor^2 images with its label (`dmjax.data.factor`).
      whitening: How the images were whitened (`dmjax.data.whitening`); None where they were not.
      extra: Further arrays that the method which made the set needs to use it in its own way, such as step sizes.
    """

    images: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    class_names: tuple[str, ...]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    factor: int = 1
    whitening: Whitening | None = None
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return len(self.labels) // len(self.class_names)

    @property
    def hard_labels(self) -> np.ndarray:
        """int32 [n], the class of each image: of soft labels the largest."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(axis=1).astype(np.int32)

    def unpacked(self) -> "SyntheticSet":
        """The set of the images that networks are trained on, whose factor is 1."""
        if self.factor == 1:
            return self
        images = np.asarray(factors.unpack(self.images, self.factor))
        labels = np.repeat(self.labels, self.factor**2, axis=0)
        return dataclasses.replace(self, images=images, labels=labels, factor=1)

    def of_classes(self, classes: Sequence[int] | np.ndarray) -> "SyntheticSet":
        """The images of some classes; their labels and the names of all classes stay, what is of the whole set goes."""
        chosen = np.isin(self.hard_labels, np.asarray(classes))
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen], extra={})

    def among(self, classes: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> "SyntheticSet":
        """The same images, whose classes are now some of a larger number.

        Args:
          classes: The number of each of this set's classes among all.
          class_names: Names of all.
        """
        numbers = np.asarray(classes, np.int32)
        if self.labels.ndim == 1:
            labels = numbers[self.labels]
        else:
            labels = np.zeros((len(self.labels), len(class_names)), np.float32)
            labels[:, numbers] = self.labels
        return dataclasses.replace(self, labels=labels, class_names=tuple(class_names))

    def digest(self) -> str:
        """Tells the set from others: 16 digits of a hash of its images, labels, mean and standard deviation."""
        arrays = (self.images, self.labels, self.mean, self.std, *([np.int32(self.factor)] if self.factor > 1 else []))
        arrays += tuple(self._further().values())
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Writes an .npz that loads with `allow_pickle=False`; the file is replaced whole or not at all."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            images=self.images,
            labels=self.labels,
            mean=self.mean,
            std=self.std,
            class_names=np.array(self.class_names),
            metadata=np.array(json.dumps(self.metadata)),
            factor=np.int32(self.factor),
            format=np.int32(_FORMAT),
            **self._further(),
        )
        files.write_bytes(Path(path), buffer.getvalue())

    def _further(self) -> dict[str, np.ndarray]:
        """What most sets do not have, by the names of the arrays in the file."""
        whitening = self.whitening
        fields = [] if whitening is None else [field.name for field in dataclasses.fields(whitening)]
        return {
            **{f"{_WHITENING}{name}": getattr(whitening, name) for name in fields},
            **{f"{_EXTRA}{name}": np.asarray(array) for name, array in sorted(self.extra.items())},
        }

    @classmethod
    def load(cls, path: str | Path) -> "SyntheticSet":
        """Reads what `save` wrote, in this version or an earlier one; nothing that the file names is imported.

        Raises:
          UserError: a file that is missing, damaged, something else, or written by a newer version.
        """
        arrays = read_npz(Path(path), _KEYS)
        version, factor = (_whole_number(path, name, arrays.get(name, np.int32(1))) for name in ("format", "factor"))
        if version > _FORMAT:
            raise UserError(
                f"{path} was written by a newer dmjax (format {version}, this one reads up to {_FORMAT}); "
                "pip install --upgrade dmjax"
            )
        images, labels = arrays["images"], arrays["labels"]
        names = tuple(str(n) for n in np.atleast_1d(arrays["class_names"]))
        if images.ndim != 4 or images.dtype != np.float32 or labels.shape[:1] != images.shape[:1] or len(labels) == 0:
            raise UserError(f"{path}: images must be float32 [n, H, W, D] with a label each")
        if factor > min(images.shape[1:3]):
            raise UserError(f"{path}: the factor {factor} is larger than the images")
        if not np.isfinite(images).all():
            raise UserError(f"{path}: images hold values that are not finite")
        labels = _checked_labels(path, labels, len(names))
        for name in ("mean", "std"):
            if arrays[name].dtype.kind not in "fiu":
                raise UserError(f"{path}: {name} must be numbers, not {arrays[name].dtype}")
        mean, std = (arrays[k].astype(np.float32) for k in ("mean", "std"))
        if {mean.shape, std.shape} != {images.shape[-1:]} or not (np.isfinite(mean).all() and (std > 0).all()):
            raise UserError(f"{path}: mean and std must be finite, std positive, one number per channel")
        try:
            metadata = json.loads(str(arrays["metadata"]))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: metadata is not JSON: {str(error) or type(error).__name__}") from None
        if not isinstance(metadata, dict):
            raise UserError(f"{path}: metadata must be a JSON object")
        extra = {name.removeprefix(_EXTRA): array for name, array in arrays.items() if name.startswith(_EXTRA)}
        for name, array in extra.items():
            if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
                raise UserError(f"{path}: {name} must be finite numbers")
        whitening = _checked_whitening(path, arrays, images.shape[1:])
        return cls(images, labels, mean, std, names, metadata, factor, whitening, extra)

    def pixels(self) -> np.ndarray:
        """The images as uint8, clipped to what a screen can show; whitening is undone."""
        images = self.images if self.whitening is None else self.whitening.undo(self.images)
        return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)

    def export(self, folder: str | Path) -> int:
        """Writes FOLDER/CLASS/NNNN.png, the layout of an ImageFolder, as networks are trained on it: unpacked.

        Soft labels are in FOLDER/labels.csv, beside the file of each image; the folder is that of the largest.

        Returns:
          The number of images.
        """
        counters, soft = [0] * len(self.class_names), [",".join(["file", *self.class_names])]
        unique, unpacked = _unique(self.class_names), self.unpacked()
        for i, (image, label) in enumerate(zip(unpacked.pixels(), unpacked.hard_labels, strict=True)):
            # A class name need not be a file name.
            name = re.sub(r"[^\w.+-]+", "_", self.class_names[label]).lstrip(".") or "class"
            path = Path(folder) / (name if unique else f"{label:04d}_{name}")
            files.write_bytes(path / f"{counters[label]:04d}.png", encoded_png(image))
            soft.append(
                ",".join([f"{path.name}/{counters[label]:04d}.png", *map(str, np.atleast_1d(unpacked.labels[i]))])
            )
            counters[label] += 1
        if self.labels.ndim == 2:
            files.write_bytes(Path(folder) / "labels.csv", ("\n".join(soft) + "\n").encode())
        return sum(counters)

    def picture(self) -> Image.Image:
        """A grid with one row per class, small images enlarged; images that unpack are shown as they are stored."""
        return _grid(self._by_class(len(self.class_names), PICTURE_COLUMNS))

    def _by_class(self, classes: int, images: int) -> list[np.ndarray]:
        """The first images of each of the first classes, as a screen shows them."""
        pixels, labels = self.pixels(), self.hard_labels
        return [pixels[labels == c][:images] for c in range(classes)]

    def __repr__(self) -> str:
        return f"SyntheticSet({self._facts()})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the images, and a line of facts."""
        classes, images = min(len(self.class_names), _SHOWN), min(self.ipc, _SHOWN)
        picture = _grid(self._by_class(classes, _SHOWN), rows_are_classes=False)
        picture.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
        part = "" if (classes, images) == (len(self.class_names), self.ipc) else "; a part is shown"
        return html.picture(picture, f"{self._facts()}; one column per class{part}")

    def _facts(self) -> str:
        """The set in one line."""
        height, width, channels = self.images.shape[1:]
        shape = f"{height}x{width}" + (f"x{channels}" if channels > 1 else "")
        facts = [f"{len(self.images)} images of {shape}, {self.ipc} per class, {len(self.class_names)} classes"]
        facts += [f"each unpacks into {self.factor**2}"] if self.factor > 1 else []
        facts += ["soft labels"] if self.labels.ndim == 2 else []
        facts += ["whitened"] if self.whitening is not None else []
        facts += [f"{self.metadata['iterations']} iterations"] if self.metadata.get("iterations") else []
        return ", ".join(facts)

    def save_picture(self, path: Path) -> None:
        """Writes the grid as a PNG."""
        buffer = io.BytesIO()
        self.picture().save(buffer, "png")
        files.write_bytes(path, buffer.getvalue())


def picture_zoom(height: int, width: int, columns: int) -> int:
    """How often a picture with so many images in a row is enlarged, by the size of the images."""
    return max(1, (64 if columns <= 10 else 32) // max(height, width))


def join(sets: Sequence[SyntheticSet]) -> SyntheticSet:
    """Joins sets that have the same classes into one whose images are sorted by class, those of a class as they come.

    Mean and standard deviation, names and factor are those that all sets have in common.
    """
    first = sets[0]
    shared = [(s.class_names, s.factor, s.labels.ndim, s.mean.tolist(), s.std.tolist()) for s in sets]
    if any(other != shared[0] for other in shared):
        raise ValueError("sets that are joined need the same classes, normalisation, factor and kind of labels")
    images, labels = (np.concatenate([getattr(s, name) for s in sets]) for name in ("images", "labels"))
    joined = dataclasses.replace(first, images=images, labels=labels, metadata={}, extra={})
    order = np.argsort(joined.hard_labels, kind="stable")
    return dataclasses.replace(joined, images=images[order], labels=labels[order])


def _grid(rows: Sequence[np.ndarray], rows_are_classes: bool = True) -> Image.Image:
    """Rows of images uint8 [n, H, W, D] below each other, or as columns beside each other; small images enlarged."""
    height, width, channels = rows[0].shape[1:]
    longest = max(len(row) for row in rows)
    down, across = (len(rows), longest) if rows_are_classes else (longest, len(rows))
    grid = np.full((GAP + down * (height + GAP), GAP + across * (width + GAP), channels), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            i, j = (r, c) if rows_are_classes else (c, r)
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            grid[top : top + height, left : left + width] = image
    picture = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    zoom = picture_zoom(height, width, longest)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def is_readable(path: Path) -> bool:
    """Whether a synthetic set is there and whole."""
    try:
        SyntheticSet.load(path)
    except UserError:
        return False
    return True


def from_pixels(
    pixels: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    class_names: Sequence[str],
    metadata: dict[str, Any] | None = None,
    labels: np.ndarray | None = None,
    factor: int = 1,
    whitening: Whitening | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> SyntheticSet:
    """Makes a set of the images of every class.

    Args:
      pixels: [C, M, H, W, D], uint8, or float32 in units of pixels / 255.
      mean: float32 [D].
      std: float32 [D].
      class_names: C names.
      metadata: Plain JSON values.
      labels: Soft labels float32 [C, M, C]; by default the label of an image is its class.
      factor: Every image unpacks into factor^2 images.
      whitening: How the images were whitened.
      extra: As for `SyntheticSet`.
    """
    unit = pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels
    if labels is None:
        labels = np.repeat(np.arange(len(pixels), dtype=np.int32), pixels.shape[1])
    else:
        labels = np.asarray(labels, np.float32).reshape(-1, len(class_names))
    unit = unit.reshape(-1, *pixels.shape[2:])
    return SyntheticSet(unit, labels, mean, std, tuple(class_names), metadata or {}, factor, whitening, extra or {})


def _checked_labels(path: str | Path, labels: np.ndarray, classes: int) -> np.ndarray:
    """Hard labels as int32 [n], soft ones as float32 [n, C]; raises a `UserError` for anything else."""
    if np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1:
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{path}: labels out of range, there are {classes} class names")
        return labels.astype(np.int32)
    if not np.issubdtype(labels.dtype, np.floating) or labels.ndim != 2:
        shape = list(labels.shape)
        raise UserError(f"{path}: labels must be integers [n] or soft labels [n, C], not {labels.dtype} {shape}")
    if labels.shape[1] != classes:
        raise UserError(f"{path}: soft labels are for {labels.shape[1]} classes, there are {classes} class names")
    if not (labels >= 0).all() or np.abs(labels.sum(axis=1) - 1).max() > 1e-3:
        raise UserError(f"{path}: soft labels must be at least 0 and sum to 1 for every image")
    return labels.astype(np.float32)


def _checked_whitening(path: str | Path, arrays: Mapping[str, np.ndarray], shape: Sequence[int]) -> Whitening | None:
    """The whitening that a file holds; None where it holds none."""
    found = {name.removeprefix(_WHITENING): array for name, array in arrays.items() if name.startswith(_WHITENING)}
    if not found:
        return None
    channels, size = shape[-1:], int(np.prod(shape))
    wanted = {"mean": tuple(channels), "std": tuple(channels), "centre": (size,), "matrix": (size, size)}
    for name, expected in wanted.items():
        array = found.get(name)
        if array is None or array.shape != expected or array.dtype != np.float32 or not np.isfinite(array).all():
            raise UserError(f"{path}: the whitening needs a finite float32 array {name} {list(expected)}")
    return Whitening(**{name: found[name] for name in wanted})


def _whole_number(path: str | Path, name: str, array: np.ndarray) -> int:
    if array.shape != () or not np.issubdtype(array.dtype, np.integer) or not 1 <= array < 2**31:
        raise UserError(f"{path}: {name} must be a whole number of at least 1")
    return int(array)


def _unique(names: tuple[str, ...]) -> bool:
    safe = [re.sub(r"[^\w.+-]+", "_", n).lstrip(".").lower() for n in names]
    return len(set(safe)) == len(safe)


def encoded_png(image: np.ndarray) -> bytes:
    """A PNG file of an image uint8 [H, W, 1 or 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    return buffer.getvalue()
