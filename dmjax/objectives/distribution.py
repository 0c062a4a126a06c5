"""Distribution matching: the empirical maximum mean discrepancy of Zhao & Bilen, equations 5 and 6."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Embed = Callable[[jax.Array, jax.Array], jax.Array]


def class_loss(
    embed: Embed,
    real: jax.Array,
    real_weights: jax.Array,
    synthetic: jax.Array,
    synthetic_weights: jax.Array,
    real_chunk: int | None = None,
    synthetic_chunk: int | None = None,
) -> jax.Array:
    """Squared distance between the mean embeddings of the real and the synthetic images of one class.

    No gradient flows through the real images.

    Args:
      embed: Maps augmented images [n, H, W, D] and weights [n] to features [n, F].
      real: Augmented real images [B, H, W, D].
      real_weights: [B], 1 for an image and 0 for padding.
      synthetic: Augmented synthetic images [M, H, W, D].
      synthetic_weights: [M], likewise.
      real_chunk: Real images to embed at once; all where it is None.
      synthetic_chunk: The same for synthetic images, whose embeddings are then computed again for the gradient.

    Returns:
      Scalar: `sum_F (mean_B embed(real) - mean_M embed(synthetic))^2`, 0 for a class that is all padding.
    """
    chex.assert_rank([real, synthetic], 4)
    chex.assert_equal_shape_suffix([real, synthetic], 3)
    target = jax.lax.stop_gradient(mean_embedding(embed, jax.lax.stop_gradient(real), real_weights, real_chunk))
    return jnp.sum((target - mean_embedding(embed, synthetic, synthetic_weights, synthetic_chunk)) ** 2)


def mean_embedding(embed: Embed, images: jax.Array, weights: jax.Array, chunk: int | None) -> jax.Array:
    """Weighted mean [F] of the features of images [n, H, W, D]; zero where all weights are.

    With a chunk, only that many images have their activations in memory, in the gradient as well. The result is the
    same where `embed` treats every image on its own, which batch norm does not.
    """
    n = len(images)
    total = jnp.maximum(weights.sum(), 1)
    if chunk is None or chunk >= n:
        return _weighted_sum(embed, images, weights) / total
    chunks = -(-n // chunk)
    size = -(-n // chunks)  # as even as possible, so that little is padded
    images = jnp.pad(images, [(0, chunks * size - n)] + [(0, 0)] * 3)
    weights = jnp.pad(weights, (0, chunks * size - n))
    part = jax.checkpoint(lambda args: _weighted_sum(embed, *args))
    parts = jax.lax.map(part, jax.tree.map(lambda x: x.reshape(chunks, size, *x.shape[1:]), (images, weights)))
    return parts.sum(axis=0) / total


def _weighted_sum(embed: Embed, images: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum [F] over images of weight times feature, in float32 whatever the network computes in."""
    return (embed(images, weights).astype(jnp.float32) * weights[:, None]).sum(axis=0)
