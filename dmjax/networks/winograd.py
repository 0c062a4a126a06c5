"""3x3 convolution by Winograd's minimal filtering, F(2x2, 3x3) of Lavin & Gray 2016 (section 4.1).

Every 2x2 outputs take 16 products a channel instead of 36: images and kernel are transformed, multiplied as 16 matrix
products, and transformed back. The transforms only add and halve, so that little accuracy is lost, and the gradient,
which JAX derives, has the same 16 products for the images and for the kernel.
"""

import jax
import jax.numpy as jnp


def convolve(images: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Images [n, H, W, D] and kernel [3, 3, D, features] -> [n, H + 2 padding - 2, W + 2 padding - 2, features]."""
    rows, columns = (side + 2 * padding - 2 for side in images.shape[1:3])
    # Outputs come in pairs: an odd side gains one, which is dropped at the end.
    images = jnp.pad(images, ((0, 0), (padding, padding + rows % 2), (padding, padding + columns % 2), (0, 0)))
    tiles = [tile for row in _images(images, 1) for tile in _images(row, 2)]
    weights = [weight for row in _kernel(kernel, 0) for weight in _kernel(row, 0)]
    products = [_product(tile, weight) for tile, weight in zip(tiles, weights, strict=True)]
    outputs = _outputs([_outputs(products[i : i + 4], 2) for i in range(0, 16, 4)], 1)
    return outputs[:, :rows, :columns]


def _product(tiles: jax.Array, weights: jax.Array) -> jax.Array:
    """Tiles [..., D] times weights [D, features], as a product of two matrices: so is its gradient, then."""
    return (tiles.reshape(-1, tiles.shape[-1]) @ weights).reshape(*tiles.shape[:-1], -1)


def _images(x: jax.Array, axis: int) -> list[jax.Array]:
    """The four transforms along an axis of length 2 m, each of length m - 1: of windows of four with stride two."""
    shape = x.shape
    pairs = x.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    windows = shape[axis] // 2 - 1
    even, odd = ([jax.lax.slice_in_dim(a, i, i + windows, axis=axis) for i in (0, 1)] for a in (even, odd))
    return [even[0] - even[1], odd[0] + even[1], even[1] - odd[0], odd[0] - odd[1]]


def _kernel(x: jax.Array, axis: int) -> list[jax.Array]:
    """The four transforms along an axis of length 3, which goes."""
    first, middle, last = (jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(3))
    return [first, (first + middle + last) / 2, (first - middle + last) / 2, last]


def _outputs(products: list[jax.Array], axis: int) -> jax.Array:
    """The inverse: four products of length m along an axis -> length 2 m."""
    a, b, c, d = products
    pairs = jnp.stack([a + b + c, b - c - d], axis + 1)
    return pairs.reshape(*a.shape[:axis], 2 * a.shape[axis], *a.shape[axis + 1 :])
