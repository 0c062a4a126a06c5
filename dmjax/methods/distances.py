"""Distances between two clouds of features: those of real images and those of synthetic ones.

Every distance takes features r [B, ...] with weights rw [B], features s [M, ...] with weights sw [M], and gives a
float32 scalar that is differentiable with respect to both. A weight is 1 for an image and 0 for what pads; a class that
is all padding on either side is at distance 0. Gradients are finite everywhere, also where the clouds are equal.

The real side enters through the functions of one cloud (`average`, `attention_map`, `local_covariance_of`,
`characteristic_function`) or through Gram matrices, so that without a gradient for it nothing of it is differentiated.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Kernel = Callable[[jax.Array, jax.Array], jax.Array]
"""Clouds [n, F] and [m, F] -> [n, m]."""

_EXACT = jax.lax.Precision.HIGHEST  # distances are small differences of large products
_LEAST_PHASE = 1e-12  # as the authors'


def mean(r: jax.Array, rw: jax.Array, s: jax.Array, sw: jax.Array) -> jax.Array:
    """Squared distance of the mean features, `||mu_r - mu_s||^2` (Zhao & Bilen 2023, equation 5)."""
    return _where_both(rw, sw, _square_distance(average(_flat(r), rw), average(_flat(s), sw)))


def attention_map(maps: jax.Array, exponent: float) -> jax.Array:
    """Where a layer looks: maps Z [n, h, w, channels] -> `a = sum_channels |Z|^p` of unit length [n, h * w].

    A map of zeros stays one. The gradient at Z = 0 is zero.
    """
    exponent = int(exponent) if exponent == int(exponent) else exponent  # products are 20 times as fast as a power
    return _normalised(_flat((_magnitude(maps.astype(jnp.float32)) ** exponent).sum(axis=-1)))


def kernel(
    r: jax.Array, rw: jax.Array, s: jax.Array, sw: jax.Array, bandwidths: Sequence[float] = (0.25, 0.5, 1, 2, 4)
) -> jax.Array:
    """Squared maximum mean discrepancy with a sum of Gaussian kernels (Gretton et al. 2012; Zhang et al. 2024, M3D).

    `mean k(r, r') + mean k(s, s') - 2 mean k(r, s)`, all pairs counted (the biased estimate, which is never negative),
    with `k(x, y) = sum_b exp(-||x - y||^2 / (2 (b * median)^2))`. The median is that of the distances between two real
    images, and no gradient flows through it; where it is zero, as with one image, it is taken as 1.

    Args:
      r: Features [B, ...].
      rw: [B].
      s: Features [M, ...].
      sw: [M].
      bandwidths: The factors b.
    """
    r, s = _flat(r), _flat(s)
    # Nothing changes by moving both clouds, but short vectors lose fewer digits.
    centre = jax.lax.stop_gradient(average(r, rw))[None]
    r, s = r - centre, s - centre
    median = jax.lax.stop_gradient(median_square_distance(r, rw))
    median = jnp.where(median > 0, median, 1)
    gaussians = functools.partial(_gaussians, scales=[2 * b**2 * median for b in bandwidths])
    return discrepancy(gaussians, r, rw, s, sw)


def discrepancy(kernel: Kernel, r: jax.Array, rw: jax.Array, s: jax.Array, sw: jax.Array) -> jax.Array:
    """`mean k(r, r') + mean k(s, s') - 2 mean k(r, s)` for any kernel; with `linear` it is `mean`.

    Args:
      kernel: k.
      r: Features [B, ...].
      rw: [B].
      s: Features [M, ...].
      sw: [M].
    """
    return _where_both(rw, sw, _quadratic(kernel, _flat(r), _shares(rw), _flat(s), _shares(sw)))


def linear(x: jax.Array, y: jax.Array) -> jax.Array:
    """Products [n, m] of vectors [n, F] and [m, F]."""
    return jnp.matmul(x, y.T, precision=_EXACT)


def median_square_distance(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Median of `||x_i - x_j||^2` over pairs of different images [n, F]: the smallest with half of the weight up to it.

    A pair weighs the product of its weights; 0 where there is no pair.
    """
    if len(x) < 2:
        return jnp.zeros(())
    pairs = np.triu_indices(len(x), 1)
    distances, weights = jax.lax.sort((_square_distances(x, x)[pairs], jnp.outer(weights, weights)[pairs]), num_keys=1)
    total = jnp.cumsum(weights)
    # argmax finds the first; without any weight that is a distance of padding.
    return jnp.where(total[-1] > 0, distances[jnp.argmax(total >= total[-1] / 2)], 0)


def covariance(r: jax.Array, rw: jax.Array, s: jax.Array, sw: jax.Array) -> jax.Array:
    """Squared distance of the covariances of features, `||Cov_r - Cov_s||_F^2` (Li et al. 2024, DSDM).

    Covariances are unbiased, those of fewer than two images are zero. For centred features they are sums of outer
    products, whose inner products are squares of those of the features: so there are matrices of n x n only, not F x F.
    """
    centred, scales = [], []
    for x, weights in ((_flat(r), rw), (_flat(s), sw)):
        centred.append(x - average(x, weights)[None])
        freedom = weights.sum() - 1
        scales.append(jnp.where(freedom > 0, weights / jnp.where(freedom > 0, freedom, 1), 0))
    return _where_both(rw, sw, _quadratic(lambda x, y: linear(x, y) ** 2, centred[0], scales[0], centred[1], scales[1]))


def local_covariance(r: jax.Array, rw: jax.Array, s: jax.Array, sw: jax.Array) -> jax.Array:
    """Squared distance of the covariances of channels within maps, `||C_r - C_s||_F^2` (Deng et al. 2024, IID).

    Args:
      r: Last feature maps [B, h, w, channels].
      rw: [B].
      s: Last feature maps [M, h, w, channels].
      sw: [M].
    """
    return _where_both(rw, sw, _square_distance(local_covariance_of(r, rw), local_covariance_of(s, sw)))


def local_covariance_of(maps: jax.Array, weights: jax.Array) -> jax.Array:
    """`C = mean_n Z_n Z_n^T` [channels, channels] of maps Z_n [channels, h * w] less the mean map of the batch.

    As in the authors' code, the sum over images is divided by their number n (not n - 1), and that over positions by
    nothing. Of one image it is zero.

    Args:
      maps: [n, h, w, channels].
      weights: [n].
    """
    maps = maps.astype(jnp.float32).reshape(len(maps), -1, maps.shape[-1])
    centred = maps - average(maps, weights)[None]
    weighted = centred * _shares(weights)[:, None, None]
    return jnp.einsum("npc,npd->cd", weighted, centred, precision=_EXACT)


def centralization(s: jax.Array, sw: jax.Array) -> jax.Array:
    """Squared distances of synthetic features from their mean, `sum_m ||s_m - mu_s||^2` (Deng et al. 2024, IID).

    A sum over images, as in the authors' code, which has dropped the paper's exponential function of it. It is zero
    for one image.
    """
    s = _flat(s)
    return ((s - average(s, sw)[None]) ** 2).sum(axis=-1) @ sw


def characteristic(
    r: jax.Array, rw: jax.Array, s: jax.Array, sw: jax.Array, frequencies: jax.Array, amplitude: float = 0.5
) -> jax.Array:
    """Distance of the characteristic functions of features of unit length (Wang et al. 2025, NCFM).

    `mean_t sqrt(alpha A + (1 - alpha) P)` with `A = (|Phi_r| - |Phi_s|)^2` of the amplitudes and
    `P = 2 (|Phi_r| |Phi_s| - Re Phi_r Re Phi_s - Im Phi_r Im Phi_s)` of the phases, which is taken as 1e-12 at least.
    As `A + P = |Phi_r - Phi_s|^2`, equal weights tell no more than the difference of the two functions.

    Args:
      r: Features [B, ...].
      rw: [B].
      s: Features [M, ...].
      sw: [M].
      frequencies: t [T, F], by the authors drawn from N(0, 1) for every class and step.
      amplitude: alpha, between 0 and 1.
    """
    real, synthetic = (characteristic_function(x, w, frequencies) for x, w in ((r, rw), (s, sw)))
    square = ((real - synthetic) ** 2).sum(axis=0)
    amplitudes = (_root((real**2).sum(axis=0)) - _root((synthetic**2).sum(axis=0))) ** 2
    # The phase as a difference of small numbers: as one of products it would lose what distinguishes similar clouds.
    phases = jnp.maximum(square - amplitudes, _LEAST_PHASE)
    return _where_both(rw, sw, _root(amplitude * amplitudes + (1 - amplitude) * phases).mean())


def characteristic_function(x: jax.Array, weights: jax.Array, frequencies: jax.Array) -> jax.Array:
    """`Phi(t) = mean_n exp(i <t, x_n / ||x_n||>)` as real and imaginary part [2, T].

    Args:
      x: Features [n, ...].
      weights: [n].
      frequencies: t [T, F].
    """
    angles = linear(_normalised(_flat(x)), frequencies)
    return jnp.stack([average(jnp.cos(angles), weights), average(jnp.sin(angles), weights)])


def average(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean [...] of x [n, ...]; zero where there is no weight."""
    return jnp.tensordot(_shares(weights), x, axes=1, precision=_EXACT)


def _shares(weights: jax.Array) -> jax.Array:
    """Weights [n] that sum to one; zeros stay zeros."""
    total = weights.sum()
    return weights / jnp.where(total > 0, total, 1)


def _where_both(rw: jax.Array, sw: jax.Array, distance: jax.Array) -> jax.Array:
    return jnp.where((rw.sum() > 0) & (sw.sum() > 0), distance, 0)


def _flat(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).reshape(len(x), -1)


def _square_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    return ((x - y) ** 2).sum()


def _square_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """`||x_i - y_j||^2` [n, m] of vectors [n, F] and [m, F], from their products."""
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None]
    distances = squares - 2 * linear(x, y)
    # Vectors that are equal up to rounding have no distance, and no gradients that would cancel up to rounding.
    return jnp.where(distances > 1e-6 * squares, distances, 0)


def _quadratic(kernel: Kernel, x: jax.Array, a: jax.Array, y: jax.Array, b: jax.Array) -> jax.Array:
    """`||sum_i a_i phi(x_i) - sum_j b_j phi(y_j)||^2` where `kernel` gives the inner products of phi."""

    def products(x, a, y, b):
        return a @ kernel(x, y) @ b

    return products(x, a, x, a) + products(y, b, y, b) - 2 * products(x, a, y, b)


def _gaussians(x: jax.Array, y: jax.Array, scales: Sequence[jax.Array]) -> jax.Array:
    """Sum over scales of `exp(-||x_i - y_j||^2 / scale)` [n, m]."""
    distances = _square_distances(x, y)
    return sum((jnp.exp(-distances / scale) for scale in scales), jnp.zeros_like(distances))


def _normalised(x: jax.Array) -> jax.Array:
    """Vectors [n, F] of unit length; those of zeros stay so and have no gradient."""
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)  # neither underflows nor overflows when squared
    square = (x**2).sum(axis=1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


@jax.custom_jvp
def _magnitude(x: jax.Array) -> jax.Array:
    """`|x|`, whose gradient at zero is zero."""
    return jnp.abs(x)


_magnitude.defjvps(lambda tangent, _, x: tangent * jnp.sign(x))


def _root(x: jax.Array) -> jax.Array:
    """Square root whose gradient at zero is zero."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
