"""The synthetic set: saved, loaded, exported, pictured."""

import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmjax import files
from dmjax.data.npz import read_npz
from dmjax.errors import UserError

_KEYS = ("images", "labels", "mean", "std", "class_names", "metadata")
_PICTURE_COLUMNS = 50  # images of a class that a picture shows at most


@dataclasses.dataclass(frozen=True)
class SyntheticSet:
    """A small labelled set of images.

    Attributes:
      images: float32 [C*M, H, W, D] in units of real pixels / 255: neither clipped nor normalised, class by class.
      labels: int32 [C*M].
      mean: float32 [D], by which networks expect the images normalised.
      std: float32 [D].
      class_names: C names.
      metadata: Plain JSON values: the configuration of the run, and what it ran on.
    """

    images: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    class_names: tuple[str, ...]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.labels) // len(self.class_names)

    def digest(self) -> str:
        """Tells the set from others: 16 digits of a hash of its images, labels, mean and standard deviation."""
        arrays = (self.images, self.labels, self.mean, self.std)
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
        )
        files.write_bytes(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "SyntheticSet":
        """Reads what `save` wrote. Raises a `UserError` for a file that is missing, damaged or something else."""
        arrays = read_npz(Path(path), _KEYS)
        images, labels = arrays["images"], arrays["labels"]
        names = tuple(str(n) for n in np.atleast_1d(arrays["class_names"]))
        if images.ndim != 4 or images.dtype != np.float32 or labels.shape != images.shape[:1] or len(labels) == 0:
            raise UserError(f"{path}: images must be float32 [n, H, W, D] with a label each")
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{path}: labels must be integers, not {labels.dtype}")
        if labels.min() < 0 or labels.max() >= len(names):
            raise UserError(f"{path}: labels out of range, there are {len(names)} class names")
        if not np.isfinite(images).all():
            raise UserError(f"{path}: images hold values that are not finite")
        mean, std = (arrays[k].astype(np.float32) for k in ("mean", "std"))
        if {mean.shape, std.shape} != {images.shape[-1:]} or not (np.isfinite(mean).all() and (std > 0).all()):
            raise UserError(f"{path}: mean and std must be finite, std positive, one number per channel")
        try:
            metadata = json.loads(str(arrays["metadata"]))
        except ValueError as error:
            raise UserError(f"{path}: metadata is not JSON: {error}") from None
        if not isinstance(metadata, dict):
            raise UserError(f"{path}: metadata must be a JSON object")
        return cls(images, labels.astype(np.int32), mean, std, names, metadata)

    def pixels(self) -> np.ndarray:
        """The images as uint8, clipped to what a screen can show."""
        return np.round(np.clip(self.images, 0, 1) * 255).astype(np.uint8)

    def export(self, folder: str | Path) -> int:
        """Writes FOLDER/CLASS/NNNN.png, the layout of an ImageFolder; returns the number of images."""
        counters = [0] * len(self.class_names)
        unique = _unique(self.class_names)
        for image, label in zip(self.pixels(), self.labels, strict=True):
            # A class name need not be a file name.
            name = re.sub(r"[^\w.+-]+", "_", self.class_names[label]).lstrip(".") or "class"
            path = Path(folder) / (name if unique else f"{label:04d}_{name}")
            files.write_bytes(path / f"{counters[label]:04d}.png", _png(image))
            counters[label] += 1
        return len(self.labels)

    def picture(self) -> Image.Image:
        """A grid with one row per class, small images enlarged."""
        pixels = self.pixels()
        rows = [pixels[self.labels == c][:_PICTURE_COLUMNS] for c in range(len(self.class_names))]
        columns = max(len(row) for row in rows)
        height, width, channels = pixels.shape[1:]
        gap = 2
        shape = (gap + len(rows) * (height + gap), gap + columns * (width + gap), channels)
        grid = np.full(shape, 255, np.uint8)
        for r, row in enumerate(rows):
            for c, image in enumerate(row):
                top, left = gap + r * (height + gap), gap + c * (width + gap)
                grid[top : top + height, left : left + width] = image
        picture = Image.fromarray(grid[..., 0] if channels == 1 else grid)
        zoom = max(1, 64 // max(height, width)) if columns <= 10 else max(1, 32 // max(height, width))
        return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)

    def save_picture(self, path: Path) -> None:
        """Writes the grid as a PNG."""
        buffer = io.BytesIO()
        self.picture().save(buffer, "png")
        files.write_bytes(path, buffer.getvalue())


def is_readable(path: Path) -> bool:
    """Whether a synthetic set is there and whole."""
    try:
        SyntheticSet.load(path)
    except UserError:
        return False
    return True


def from_pixels(pixels: np.ndarray, mean, std, class_names, metadata=None) -> SyntheticSet:
    """Makes a set of images [C, M, H, W, D] that are uint8, or float32 in units of pixels / 255."""
    unit = pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels
    labels = np.repeat(np.arange(len(pixels), dtype=np.int32), pixels.shape[1])
    return SyntheticSet(unit.reshape(-1, *pixels.shape[2:]), labels, mean, std, tuple(class_names), metadata or {})


def _unique(names: tuple[str, ...]) -> bool:
    safe = [re.sub(r"[^\w.+-]+", "_", n).lstrip(".").lower() for n in names]
    return len(set(safe)) == len(safe)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    return buffer.getvalue()
