"""Convolution that is fast on a CPU, its gradients inside a loop included. Accelerators keep XLA's own.

3x3 kernels over many channels take Winograd's algorithm. For the others XLA's CPU backend calls its fast kernel in one
canonical layout only, and inside the body of a scan it does not bring the two gradients into that layout: the weight
gradient then runs 30 times slower than a matrix product, the input gradient 4 times. So they are written here in the
form that is fast: the input gradient as another canonical convolution, the weight gradient as one matrix product over
patches.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dmjax.networks import winograd

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 4  # up to here the input gradient is cheaper as a matrix product and shifted sums
_MANY_CHANNELS = 64  # from here Winograd gains more than its transforms cost


def conv_general_dilated(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, *args: Any, **options: Any
) -> jax.Array:
    """Drop-in for `jax.lax.conv_general_dilated` in `nn.Conv`; images [n, H, W, D], kernel [k, k, D, features]."""
    square = kernel.ndim == 4 and kernel.shape[0] == kernel.shape[1] and len({p for pair in padding for p in pair}) == 1
    if jax.default_backend() == "cpu" and square and set(strides) == {1}:
        many = kernel.shape[0] == 3 and kernel.shape[2] >= _MANY_CHANNELS and kernel.dtype == jnp.float32
        return (winograd.convolve if many else _convolve)(images, kernel, padding[0][0])
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, *args, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images, kernel, padding):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=_LAYOUT)


def _forward(images, kernel, padding):
    return _convolve(images, kernel, padding), (images, kernel)


def _backward(padding, residuals, gradient):
    images, kernel = residuals
    return _input_gradient(images, kernel, padding, gradient), _weight_gradient(images, kernel, padding, gradient)


def _input_gradient(images, kernel, padding, gradient):
    size, channels = kernel.shape[0], kernel.shape[2]
    if channels > _FEW_CHANNELS:
        return _convolve(gradient, kernel[::-1, ::-1].transpose(0, 1, 3, 2), size - 1 - padding)
    _, height, width, _ = images.shape
    _, rows, columns, features = gradient.shape
    patches = gradient @ kernel.reshape(-1, features).T  # [n, rows, columns, size * size * channels]
    total = jnp.zeros((len(images), height + 2 * padding, width + 2 * padding, channels), images.dtype)
    for i, (y, x) in enumerate(_offsets(size)):
        shifted = patches[..., i * channels : (i + 1) * channels]
        total = total.at[:, y : y + rows, x : x + columns].add(shifted)
    return total[:, padding : padding + height, padding : padding + width]


def _weight_gradient(images, kernel, padding, gradient):
    _, rows, columns, features = gradient.shape
    images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    shifted = [images[:, y : y + rows, x : x + columns] for y, x in _offsets(kernel.shape[0])]
    patches = jnp.concatenate(shifted, axis=-1)
    return (patches.reshape(-1, patches.shape[-1]).T @ gradient.reshape(-1, features)).reshape(kernel.shape)


def _offsets(size: int) -> list[tuple[int, int]]:
    return [(y, x) for y in range(size) for x in range(size)]


_convolve.defvjp(_forward, _backward)
