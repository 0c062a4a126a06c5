"""The two ceilings of the machine, which are measured before anything else."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dmjax.networks.layers import PRECISIONS


def simulate(num_devices: int) -> None:
    """Makes one CPU look like several devices; nothing may have been computed before."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)


def matmul_flops(precision: str, repeats: int) -> float:
    """Operations per second of the matrix product that the second convolution of CIFAR-10's ConvNet amounts to.

    The best of `repeats` counts.
    """
    rows, inner, columns = 256 * 16 * 16, 9 * 128, 128
    if jax.default_backend() != "cpu":
        rows *= 8  # fill the chip
    dtype, lax_precision = PRECISIONS[precision]
    a, b = _random((rows, inner), dtype), _random((inner, columns), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=lax_precision))
    return 2 * rows * inner * columns / _seconds(lambda: product(a, b), repeats)


def copy_bytes(repeats: int) -> float:
    """Bytes per second, read and written, of adding one to an array that no cache holds; the best of `repeats`."""
    size = 2**28 if jax.default_backend() == "cpu" else 2**30
    array = jnp.ones((size // 4,), jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    box = [array]

    def step():
        box[0] = add(box[0])
        return box[0]

    return 2 * size / _seconds(step, repeats)


def _random(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.jit(lambda: jax.random.normal(jax.random.key(0), shape).astype(dtype))()


def _seconds(function: Callable[[], jax.Array], repeats: int, calls: int = 5) -> float:
    """Least seconds of a call, as a ceiling wants it; several are in flight, so that the host does not count."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return min(times)
