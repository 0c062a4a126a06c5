"""Random choices that are made inside compiled code."""

import jax
import jax.numpy as jnp


def without_replacement(key: jax.Array, count: jax.Array, size: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Draws `batch` distinct indices below `count` uniformly (all of them where `count` is smaller).

    Args:
      key: PRNG key.
      count: int32 scalar, how many of the `size` slots are occupied; the first ones are.
      size: Number of slots (static).
      batch: Number of indices (static, at most `size`).

    Returns:
      Indices int32 [batch], and weights float32 [batch]: 1 for an index below `count`, 0 for a filler.
    """
    slots = jnp.arange(size, dtype=jnp.int32)
    bits = jax.lax.bitcast_convert_type(jax.random.bits(key, (size,)) >> 1, jnp.int32)
    # Occupied slots carry a random number >= 0, the others -1: the largest `batch` are a uniform draw.
    _, indices = jax.lax.top_k(jnp.where(slots < count, bits, -1), batch)
    weights = (jnp.arange(batch, dtype=jnp.int32) < count).astype(jnp.float32)
    return indices, weights
