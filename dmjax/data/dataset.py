"""The one type that every data source returns, and how pixels become network inputs."""

import dataclasses
import functools
import hashlib
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from dmjax.common.errors import UserError

# name: (height, width, mean, std) of the training images, as the papers' code normalises them.
NORMALIZATION = {
    "mnist": (28, 28, (0.1307,), (0.3081,)),
    "fashion_mnist": (28, 28, (0.2861,), (0.3530,)),
    "svhn_cropped": (32, 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": (32, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": (32, 32, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": (64, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet64": (64, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


_SMALLEST_SIDE = 4
_AT_ONCE = 64  # images whose sums are taken at once: enough for long vectors, few enough for the processor's cache


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled image data set in memory or memory-mapped.

    Attributes:
      name: What it is called in results.
      class_names: C names.
      images: uint8 [C, N, H, W, D], the training images class by class; only the first `counts[c]` of class c are
        images, the rest is padding. float32 where they are whitened.
      counts: int32 [C].
      test_images: uint8 [T, H, W, D], or float32 likewise.
      test_labels: int32 [T].
      mean: float32 [D], of pixels / 255; 0 where the images are whitened.
      std: float32 [D], of pixels / 255; 1 where the images are whitened.
      whitening: How the images were whitened (`dmjax.data.whitening`); None where they were not.
      derived_from: Stands for the digest of a data set that was computed from another one; a part of it has its own.
    """

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray
    counts: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    whitening: Any = None
    derived_from: str | None = None

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        images = f"{self.counts.sum()} training and {len(self.test_labels)} test images of {height}x{width}x{channels}"
        return f"Dataset({self.name!r}, {images}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[2:]

    @classmethod
    def from_arrays(
        cls,
        train_images: Any,
        train_labels: Any,
        test_images: Any,
        test_labels: Any,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """Makes a data set of NumPy or JAX arrays.

        Args:
          train_images: [n, H, W] or [n, H, W, D], uint8 pixels, or fractions in [0, 1], which are rounded to pixels.
          train_labels: [n], classes from 0.
          test_images: As `train_images`.
          test_labels: As `train_labels`.
          class_names: One name a class; by default the numbers.
          name: What it is called in results.

        Raises:
          UserError: arrays that do not fit together, in one line that names them.
        """
        from dmjax.data.arrays import from_arrays

        return from_arrays(train_images, train_labels, test_images, test_labels, class_names, name)

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """The training images uint8 [sum of counts, H, W, D] and their labels int32."""
        images = np.concatenate([self.images[c, :n] for c, n in enumerate(self.counts)])
        return images, np.repeat(np.arange(self.num_classes, dtype=np.int32), self.counts)

    def of_classes(self, classes: Sequence[int] | np.ndarray) -> "Dataset":
        """The data set of some classes alone, numbered anew from 0 in the order given; mean and std stay.

        Args:
          classes: Their numbers here, each once.
        """
        chosen = np.asarray(classes, np.int32)
        number = np.full(self.num_classes, -1, np.int32)
        number[chosen] = np.arange(len(chosen), dtype=np.int32)
        tested = self.tested_on(chosen)
        return dataclasses.replace(
            tested,
            class_names=tuple(self.class_names[c] for c in chosen),
            images=self.images[chosen],
            counts=self.counts[chosen],
            test_labels=number[tested.test_labels],
            derived_from=None,
        )

    def tested_on(self, classes: Sequence[int] | np.ndarray) -> "Dataset":
        """The same data set and all of its classes, with the test images of some classes alone."""
        chosen = np.isin(self.test_labels, np.asarray(classes))
        images, labels = self.test_images[chosen], self.test_labels[chosen]
        return dataclasses.replace(self, test_images=images, test_labels=labels, derived_from=None)

    def fingerprint(self) -> str:
        """A digest of all that the data set holds."""
        return self.derived_from or self._fingerprint

    def whitened(self, regularization: float = 0.1) -> "Dataset":
        """The data set with ZCA-whitened images; see `dmjax.data.whitening`."""
        from dmjax.data.whitening import whiten

        return whiten(self, regularization)

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.class_names, self.images.shape, self.test_images.shape)).encode())
        for c, n in enumerate(self.counts):
            digest.update(np.int32(n).tobytes())
            digest.update(np.ascontiguousarray(self.images[c, :n]).data)
            release(self.images)
        digest.update(self.test_labels.astype(np.int32).tobytes())
        digest.update(np.ascontiguousarray(self.test_images).data)
        release(self.test_images)
        return digest.hexdigest()[:16]


def normalize(images: Any, mean: Any, std: Any) -> Any:
    """Returns `(x/255 - mean) / std` in float32 (for float input, already in units of 255: `(x - mean) / std`)."""
    scale = np.float32(255) if images.dtype == np.uint8 else np.float32(1)
    return (images.astype(np.float32) / scale - mean.reshape((1,) * (images.ndim - 1) + (-1,))) / std.reshape(
        (1,) * (images.ndim - 1) + (-1,)
    )


def make_dataset(
    name: str | None,
    place: str,
    class_names: Sequence[str],
    images: np.ndarray,
    counts: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    moments: tuple[Any, Any] | None = None,
) -> Dataset:
    """Checks what every source must hold and fills in mean and std, from the table or computed.

    The table's row applies where `name` is in it and the images are of that size and about that brightness. A folder
    that is read with the configuration of another data set gets its own statistics, and `place` for a name.
    """
    where = f"data set {name or place!r}"
    if min(images.shape[2:4]) < _SMALLEST_SIDE:
        height, width = images.shape[2:4]
        raise UserError(
            f"the images of {where} are {width}x{height}; at least {_SMALLEST_SIDE} pixels a side are needed"
        )
    if len(class_names) < 2:
        raise UserError(f"{where} has one class only ({', '.join(class_names)}); condensing needs at least two")
    for c, n in enumerate(counts):
        if n == 0:
            raise UserError(f"class {class_names[c]!r} of {where} has no training images")
    if len(test_labels) == 0:
        raise UserError(f"{where} has no test images, which are needed to measure accuracy")
    mean, std = moments or compute_moments(images, counts)
    height, width, table_mean, table_std = NORMALIZATION.get(name or "", (0, 0, (), ()))
    same_kind = images.shape[2:] == (height, width, len(table_mean))
    if same_kind and np.abs(np.asarray(table_mean) - mean).max() < 0.05:
        mean, std = table_mean, table_std
    elif name is None or name in NORMALIZATION:
        name = place
    return Dataset(
        name=name or place,
        class_names=tuple(str(c) for c in class_names),
        images=images,
        counts=np.asarray(counts, np.int32),
        test_images=test_images,
        test_labels=np.asarray(test_labels, np.int32),
        mean=np.asarray(mean, np.float32),
        std=np.asarray(std, np.float32),
    )


def compute_moments(images: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of the training images / 255, exact sums of integers."""
    total = np.zeros((2, images.shape[-1]), np.uint64)
    for class_images, n in zip(images, counts, strict=True):
        for start in range(0, n, _AT_ONCE):
            pixels = class_images[start : min(start + _AT_ONCE, n)].astype(np.uint16)  # in which 255 squared fits
            sums = np.stack([pixels.sum(0, dtype=np.uint32), (pixels * pixels).sum(0, dtype=np.uint32)])
            total += sums.sum((1, 2), dtype=np.uint64)
        release(class_images)
    mean, square = total / (int(np.sum(counts)) * images.shape[2] * images.shape[3])
    std = np.sqrt(np.maximum(square - mean**2, 0)) / 255
    return mean / 255, np.where(std > 0, std, 1.0)  # a constant channel is only shifted


def release(array: np.ndarray) -> None:
    """Gives back the memory in which a memory-mapped file is held; it is read again where it is wanted again.

    Whoever goes through all of a large set calls this on the way, so that what was seen does not count as memory of
    this process. What was written stays: the system has it, and brings it to the disk. Arrays in memory stay too.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def class_major(images: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts images [n, H, W, D] by label into [C, N, H, W, D], zero-padded, and their counts int32 [C]."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.int32)
    out = np.zeros((num_classes, counts.max(), *images.shape[1:]), images.dtype)
    for c in range(num_classes):
        out[c, : counts[c]] = images[labels == c]
    return out, counts
