"""Sets that unpack: an image of f x f blocks stands for f^2 images (multi-formation; Kim et al. 2022, section 4.1)."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Reduction = Literal["nearest", "mean"]
"""How an image is made smaller before it is packed."""


def unpack(images: jax.Array, factor: int) -> jax.Array:
    """Cuts images into f x f blocks and enlarges each bilinearly, with half-pixel centres; differentiable.

    A side that f does not divide is padded at its end with 0.5.

    Args:
      images: float32 [n, H, W, D], in units of pixels / 255.
      factor: f.

    Returns:
      float32 [n * f^2, H, W, D]: the blocks of the first image row by row, then those of the next.
    """
    if factor == 1:
        return images
    n, height, width, channels = images.shape
    rows, columns = -(-height // factor), -(-width // factor)
    padding = ((0, 0), (0, rows * factor - height), (0, columns * factor - width), (0, 0))
    padded = jnp.pad(images, padding, constant_values=0.5)
    blocks = padded.reshape(n, factor, rows, factor, columns, channels).transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(n * factor**2, rows, columns, channels)
    return _enlarged(blocks, (n * factor**2, height, width, channels))


def pack(images: np.ndarray, factor: int, reduction: Reduction = "nearest") -> np.ndarray:
    """Puts f^2 images into each image: where sets of real images start from.

    Args:
      images: [n * f^2, H, W, D], of any type, which stays.
      factor: f.
      reduction: "nearest" takes the nearest pixel (Kim et al. 2022), "mean" the mean of those that a new pixel covers
        (Zhao et al. 2023, IDM), or where these are not whole ones a bilinear, antialiased resize.

    Returns:
      [n, H, W, D]: f x f blocks, of which the last ones are cut where f does not divide a side.
    """
    if factor == 1:
        return images
    total, height, width, channels = images.shape
    rows, columns = -(-height // factor), -(-width // factor)
    blocks = (
        _REDUCTIONS[reduction](images, rows, columns)
        .reshape(-1, factor, factor, rows, columns, channels)
        .transpose(0, 1, 3, 2, 4, 5)
    )
    return blocks.reshape(total // factor**2, rows * factor, columns * factor, channels)[:, :height, :width]


def as_unpacked(images: np.ndarray, factor: int, reduction: Reduction = "nearest") -> np.ndarray:
    """What is left of images [n, H, W, D] that are packed and unpacked: made smaller, and enlarged; float32."""
    _, height, width, _ = images.shape
    small = _REDUCTIONS[reduction](images, -(-height // factor), -(-width // factor))
    return np.asarray(_enlarged(small.astype(np.float32), images.shape))


def _enlarged(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.image.resize(blocks, shape, "bilinear")


def _nearest(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[n, H, W, D] -> [n, rows, columns, D]."""
    _, height, width, _ = images.shape
    y, x = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    return images[:, y][:, :, x]


def _mean(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[n, H, W, D] -> [n, rows, columns, D], rounded where the type has whole numbers only."""
    n, height, width, channels = images.shape
    if height % rows == 0 and width % columns == 0:
        blocks = images.reshape(n, rows, height // rows, columns, width // columns, channels)
        means = blocks.mean(axis=(2, 4), dtype=np.float32)
    else:
        means = np.asarray(_smoothed(images.astype(np.float32), (n, rows, columns, channels)))
    return (np.rint(means) if np.issubdtype(images.dtype, np.integer) else means).astype(images.dtype)


_REDUCTIONS = {"nearest": _nearest, "mean": _mean}


@functools.partial(jax.jit, static_argnums=1)
def _smoothed(images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.image.resize(images, shape, "bilinear", antialias=True)


def largest(image_shape: tuple[int, ...], most: int, smallest_block: int) -> int:
    """The largest factor up to `most` whose blocks are whole and have at least `smallest_block` pixels a side.

    Args:
      image_shape: (H, W, D).
      most: The largest factor that is wanted.
      smallest_block: Pixels.
    """
    sides = image_shape[:2]

    def suits(factor: int) -> bool:
        return all(side % factor == 0 and side // factor >= smallest_block for side in sides)

    return max(factor for factor in range(1, most + 1) if factor == 1 or suits(factor))
