"""ZCA whitening: pixels decorrelated over the training images, and back again for pictures.

An image is normalised per channel, centred, and multiplied by `U (S + r mean(S))^(-1/2) U^T`, where `U S U^T` is the
covariance of the pixels of all training images and r a regularisation (Nguyen et al. 2021, "Dataset distillation with
infinitely wide convolutional networks", appendix B, without their layer norm of single images). A data set that is
whitened holds float32 images whose mean and standard deviation per channel are taken as 0 and 1: everything that reads
a `Dataset` goes on as before.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from dmjax.common.errors import UserError
from dmjax.data.dataset import Dataset, normalize

_LARGEST = 4096  # values of an image: the covariance of larger ones takes hours
_AT_ONCE = 2048  # images, which bounds the memory of a float copy


@dataclasses.dataclass(frozen=True)
class Whitening:
    """An invertible map of images of P = H * W * D values.

    Attributes:
      mean: float32 [D], of pixels / 255.
      std: float32 [D], of pixels / 255.
      centre: float32 [P], mean of the normalised training images.
      matrix: float32 [P, P], symmetric.
    """

    mean: np.ndarray
    std: np.ndarray
    centre: np.ndarray
    matrix: np.ndarray

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Whitens images [n, H, W, D], uint8 or in units of pixels / 255; float32 of the same shape."""
        out = np.empty(images.shape, np.float32)
        for i in range(0, len(images), _AT_ONCE):
            flat = normalize(images[i : i + _AT_ONCE], self.mean, self.std).reshape(-1, len(self.centre))
            out[i : i + _AT_ONCE] = ((flat - self.centre) @ self.matrix).reshape(-1, *images.shape[1:])
        return out

    def undo(self, images: np.ndarray) -> np.ndarray:
        """The inverse: whitened images [n, H, W, D] in units of pixels / 255."""
        flat = images.reshape(len(images), -1) @ self._inverse + self.centre
        return (flat.reshape(images.shape) * self.std + self.mean).astype(np.float32)

    def is_close(self, other: "Whitening") -> bool:
        """Whether another map does the same, but for the last digits in which machines differ."""
        if self.matrix.shape != other.matrix.shape:
            return False
        scale = np.abs(self.matrix).max()
        return bool(np.abs(self.matrix - other.matrix).max() < 1e-2 * scale)

    @functools.cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self.matrix.astype(np.float64)).astype(np.float32)


def fit(images: np.ndarray, counts: np.ndarray, mean: np.ndarray, std: np.ndarray, regularization: float) -> Whitening:
    """Fits the map to training images.

    Args:
      images: uint8 [C, N, H, W, D], of which the first `counts[c]` of class c are images.
      counts: int32 [C].
      mean: float32 [D], of pixels / 255.
      std: float32 [D], of pixels / 255.
      regularization: r, in units of the mean eigenvalue; 0 whitens wholly.

    Raises:
      UserError: images that are too large, or whose covariance is singular without a regularisation.
    """
    size = int(np.prod(images.shape[2:]))
    if size > _LARGEST:
        raise UserError(f"data.zca is for images of at most {_LARGEST} values, these have {size}; leave it out")
    total, square, n = np.zeros(size), np.zeros((size, size)), int(np.sum(counts))
    for of_class, count in zip(images, counts, strict=True):
        for i in range(0, int(count), _AT_ONCE):
            part = normalize(of_class[i : min(i + _AT_ONCE, count)], mean, std).reshape(-1, size)
            total += part.sum(axis=0, dtype=np.float64)
            square += part.T @ part
    centre = total / n
    values, vectors = np.linalg.eigh(square / n - np.outer(centre, centre))
    values = np.maximum(values, 0) + regularization * values.mean()
    if values.min() <= 1e-7 * values.max():
        raise UserError("data.zca: the covariance of the pixels is singular; raise --data.zca-regularization")
    matrix = (vectors / np.sqrt(values)) @ vectors.T
    return Whitening(mean, std, centre.astype(np.float32), matrix.astype(np.float32))


def whiten(dataset: Dataset, regularization: float) -> Dataset:
    """The data set with all images whitened, which takes four times its memory; see `fit`."""
    whitening = fit(dataset.images, dataset.counts, dataset.mean, dataset.std, regularization)
    images = np.zeros(dataset.images.shape, np.float32)
    for c, count in enumerate(dataset.counts):
        images[c, :count] = whitening.apply(dataset.images[c, :count])
    plain: dict[str, Any] = {"mean": np.zeros_like(dataset.mean), "std": np.ones_like(dataset.std)}
    return dataclasses.replace(
        dataset,
        images=images,
        test_images=whitening.apply(dataset.test_images),
        whitening=whitening,
        # Eigenvectors differ in their last digits from machine to machine, the data set and what was done to it do not.
        derived_from=f"{dataset.fingerprint()}-zca{regularization:g}",
        **plain,
    )
