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

from dmjax.common import backend
from dmjax.networks import winograd

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 4  # up to here the input gradient is cheaper as a matrix product and shifted sums
_MANY_CHANNELS = 64  # from here Winograd gains more than its transforms cost


def conv_general_dilated(
    images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, *args: Any, **options: Any
) -> jax.Array:
    """Drop-in for `jax.lax.conv_general_dilated` in `nn.Conv`; images [n, H, W, D], kernel [k, k, D, features]."""
    square = kernel.ndim == 4 and kernel.shape[0] == kernel.shape[1] and len({p for pair in padding for p in pair}) == 1
    if backend.current() == "cpu" and square and len(set(strides)) == 1:
        many = kernel.shape[0] == 3 and kernel.shape[2] >= _MANY_CHANNELS and kernel.dtype == jnp.float32
        if many and strides[0] == 1:
            return winograd.convolve(images, kernel, padding[0][0])
        return _convolve(images, kernel, padding[0][0], strides[0])
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, *args, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images, kernel, padding, stride):
    pads = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(images, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def _forward(images, kernel, padding, stride):
    return _convolve(images, kernel, padding, stride), (images, kernel)


def _backward(padding, stride, residuals, gradient):
    images, kernel = residuals
    return (
        _input_gradient(images.shape, kernel, padding, stride, gradient),
        _weight_gradient(images, kernel, padding, stride, gradient),
    )


def _input_gradient(shape, kernel, padding, stride, gradient):
    size, channels = kernel.shape[0], kernel.shape[2]
    _, rows, columns, features = gradient.shape
    if channels > _FEW_CHANNELS or stride > 1:
        # Between the gradients of a stride lie zeros, and behind them what the last step did not reach.
        left = [(side + 2 * padding - size) % stride for side in shape[1:3]]
        spread = [(0, 0, 0), *((0, more, stride - 1) for more in left), (0, 0, 0)]
        gradient = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), spread)
        return _convolve(gradient, kernel[::-1, ::-1].transpose(0, 1, 3, 2), size - 1 - padding, 1)
    n, height, width, _ = shape
    patches = gradient @ kernel.reshape(-1, features).T  # [n, rows, columns, size * size * channels]
    total = jnp.zeros((n, height + 2 * padding, width + 2 * padding, channels), gradient.dtype)
    for i, (y, x) in enumerate(_offsets(size)):
        shifted = patches[..., i * channels : (i + 1) * channels]
        total = total.at[:, y : y + rows, x : x + columns].add(shifted)
    return total[:, padding : padding + height, padding : padding + width]


def _weight_gradient(images, kernel, padding, stride, gradient):
    _, rows, columns, features = gradient.shape
    images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    reach = [(n - 1) * stride + 1 for n in (rows, columns)]
    shifted = [images[:, y : y + reach[0] : stride, x : x + reach[1] : stride] for y, x in _offsets(kernel.shape[0])]
    patches = jnp.concatenate(shifted, axis=-1)
    return (patches.reshape(-1, patches.shape[-1]).T @ gradient.reshape(-1, features)).reshape(kernel.shape)


def _offsets(size: int) -> list[tuple[int, int]]:
    return [(y, x) for y in range(size) for x in range(size)]


_convolve.defvjp(_forward, _backward)
