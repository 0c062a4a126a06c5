"""Layers that every family shares, with the parameter distributions of PyTorch's defaults."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmjax.common import backend
from dmjax.networks.convolution import conv_general_dilated

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "leakyrelu": lambda x: nn.leaky_relu(x, 0.01),
    "sigmoid": nn.sigmoid,
    "swish": nn.swish,
}


PRECISIONS: dict[str, tuple[Any, jax.lax.Precision]] = {
    "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
    "tf32": (jnp.float32, jax.lax.Precision.HIGH),
    "bfloat16": (jnp.bfloat16, jax.lax.Precision.DEFAULT),
}
"""What is computed with, by name: the type of activations, and how float32 products are formed on an accelerator."""


def products(function: Callable, precision: str) -> Callable:
    """A convolution or matrix product whose operands are rounded as the precision has it, where devices do not do so.

    TF32 keeps 10 of the 23 bits behind the point. A CPU has no such units and rounds by itself, so that what a GPU
    will compute by default can be tried there. In a gradient it is the products that are rounded, not what comes in.
    """
    if precision != "tf32" or backend.current() != "cpu":
        return function

    def rounded(left: jax.Array, right: jax.Array, *args: Any, **options: Any) -> jax.Array:
        left, right = (jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10) for x in (left, right))
        return function(left, right, *args, **options)

    return rounded


def uniform(bound: float) -> nn.initializers.Initializer:
    """U(-bound, +bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Square convolution whose weights and biases are U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Attributes:
      features: Output channels.
      size: Side of the kernel.
      padding: Zeros added on each side.
      stride: Step of the kernel.
      bias: Whether a bias is added.
      precision: A key of `PRECISIONS`.
    """

    features: int
    size: int = 3
    padding: int = 1
    stride: int = 1
    bias: bool = True
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform(1 / math.sqrt(self.size * self.size * x.shape[-1]))
        dtype, precision = PRECISIONS[self.precision]
        return nn.Conv(
            self.features,
            (self.size, self.size),
            strides=self.stride,
            padding=self.padding,
            use_bias=self.bias,
            kernel_init=init,
            bias_init=init,
            dtype=dtype,
            precision=precision,
            conv_general_dilated=products(conv_general_dilated, self.precision),
            name="conv",
        )(x)


class Linear(nn.Module):
    """Dense layer whose weights and biases are U(-1/sqrt(fan_in), 1/sqrt(fan_in)); float32 in and out.

    Attributes:
      features: Outputs.
      precision: A key of `PRECISIONS`.
    """

    features: int
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform(1 / math.sqrt(x.shape[-1]))
        dtype, precision = PRECISIONS[self.precision]
        dense = nn.Dense(
            self.features,
            kernel_init=init,
            bias_init=init,
            dtype=dtype,
            precision=precision,
            dot_general=products(jax.lax.dot_general, self.precision),
            name="dense",
        )
        return dense(x).astype(jnp.float32)


class BatchNorm(nn.Module):
    """Batch norm over a weighted batch that may be spread over mapped axes (eps 1e-5, running averages as PyTorch's).

    Linen's own averages every device's or class's mean alike; here an image counts by its weight, so that padding
    and classes of unequal size leave the statistics as they are over one flat batch.

    Attributes:
      axis_name: Mapped axes (vmap or pmap) that the statistics are reduced over.
      momentum: Weight of the new batch in the running averages.
    """

    axis_name: Sequence[str] = ()
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, weights: jax.Array | None) -> jax.Array:
        dtype, x, features = x.dtype, x.astype(jnp.float32), x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if train:
            mean, var, count = self._statistics(x, weights)
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        inverse = jax.lax.rsqrt(var + 1e-5) * scale
        return ((x - _channels(mean, x)) * _channels(inverse, x) + _channels(bias, x)).astype(dtype)

    def _statistics(self, x, weights):
        axes = tuple(range(x.ndim - 1))
        weights = jnp.ones(x.shape[:1]) if weights is None else weights
        weight = weights.reshape(-1, *(1,) * (x.ndim - 1))
        count, total = weights.sum() * math.prod(x.shape[1:-1]), (x * weight).sum(axes)
        count, total = self._reduce((count, total))
        mean = total / jnp.maximum(count, 1)
        # Two passes: the batch may be large, and E[x^2] - E[x]^2 loses digits.
        square = self._reduce((weight * (x - _channels(mean, x)) ** 2).sum(axes))
        return mean, square / jnp.maximum(count, 1), count

    def _reduce(self, values):
        return jax.lax.psum(values, self.axis_name) if self.axis_name and not self.is_initializing() else values


def _channels(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))


class Norm(nn.Module):
    """The norm of a block, by name; eps is 1e-5 throughout.

    Attributes:
      kind: none | batch | layer (over H, W and D, affine per element) | instance (per channel) | group (4 groups).
      axis_name: Mapped axes that batch norm reduces over.
    """

    kind: str
    axis_name: Sequence[str] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, weights: jax.Array | None) -> jax.Array:
        if self.kind == "batch":
            return BatchNorm(self.axis_name, name="norm")(x, train, weights)
        # Linen's reduce in float32 whatever the activations are in.
        options: dict[str, Any] = {"epsilon": 1e-5, "dtype": x.dtype, "name": "norm"}
        with jax.numpy_dtype_promotion("standard"):  # and mix types while they do
            if self.kind == "layer":
                axes = (-3, -2, -1)
                return nn.LayerNorm(reduction_axes=axes, feature_axes=axes, **options)(x)
            if self.kind == "instance":
                return nn.GroupNorm(num_groups=None, group_size=1, **options)(x)
            if self.kind == "group":
                return nn.GroupNorm(num_groups=4, **options)(x)
        return x


def pool(x: jax.Array, kind: str, size: int = 2) -> jax.Array:
    """Pooling of size x size with that stride; an odd last row or column is dropped."""
    window = (size, size)
    if kind == "avg":
        return nn.pooling.pool(x, 0.0, jax.lax.add, window, window, "VALID") * (1 / size**2)
    if kind == "max" and size == 2 and backend.current() == "cpu":
        return _largest_of_four(x)
    if kind == "max":
        return nn.max_pool(x, window, strides=window)
    return x


def _largest_of_four(x: jax.Array) -> jax.Array:
    """Max pooling of 2x2, whose gradient is four times as fast on a CPU as that of a window; of equals the first."""
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    corners = [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    larger = lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b)  # noqa: E731
    return functools.reduce(larger, corners)
