"""Distribution matching: the empirical maximum mean discrepancy of Zhao & Bilen, equations 5 and 6."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Embed = Callable[[jax.Array, jax.Array], jax.Array]


def class_loss(
    embed: Embed, real: jax.Array, real_weights: jax.Array, synthetic: jax.Array, synthetic_weights: jax.Array
) -> jax.Array:
    """Squared distance between the mean embeddings of the real and the synthetic images of one class.

    No gradient flows through the real images.

    Args:
      embed: Maps augmented images [n, H, W, D] and weights [n] to features [n, F].
      real: Augmented real images [B, H, W, D].
      real_weights: [B], 1 for an image and 0 for padding.
      synthetic: Augmented synthetic images [M, H, W, D].
      synthetic_weights: [M], likewise.

    Returns:
      Scalar: `sum_F (mean_B embed(real) - mean_M embed(synthetic))^2`, 0 for a class that is all padding.
    """
    chex.assert_rank([real, synthetic], 4)
    chex.assert_equal_shape_suffix([real, synthetic], 3)
    target = jax.lax.stop_gradient(_mean(embed(jax.lax.stop_gradient(real), real_weights), real_weights))
    return jnp.sum((target - _mean(embed(synthetic, synthetic_weights), synthetic_weights)) ** 2)


def _mean(features: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean [F] of features [n, F]; zero where all weights are."""
    return (features * weights[:, None]).sum(axis=0) / jnp.maximum(weights.sum(), 1)
