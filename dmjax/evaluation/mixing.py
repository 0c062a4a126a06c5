"""What is done to a batch besides its augmentation: mixing with a permutation of itself, and a teacher's labels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmjax.evaluation.recipe import Recipe

DRAWS = 4


def mix(
    key: jax.Array, recipe: Recipe, images: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes every image of a batch, and its label, with those of another one: by a box (CutMix), by a sum (MixUp).

    One draw serves the batch: whether it is mixed, and how. The partners are a permutation of its images.

    Args:
      key: PRNG key.
      recipe: The probabilities.
      images: float32 [n, H, W, D].
      labels: float32 [n, C].
      weights: [n], 1 for images and 0 for what pads the batch; the images are in front.
    """
    partner_key, key = jax.random.split(key)
    order = jax.random.uniform(partner_key, weights.shape)
    partner = jnp.argsort(jnp.where(weights > 0, order, 2.0))  # what pads is nobody's partner but its own
    share = shares(jax.random.uniform(key, (DRAWS,)), recipe.cutmix, recipe.mixup, images.shape[1:3])
    kept = share.mean()
    mixed = share[None, :, :, None] * images + (1 - share[None, :, :, None]) * images[partner]
    return mixed, kept * labels + (1 - kept) * labels[partner]


def shares(u: jax.Array, cutmix: float, mixup: float, size: tuple[int, ...]) -> jax.Array:
    """The share [H, W] that each pixel of an image keeps when it is mixed; a pure function of its draws.

    Args:
      u: Uniform numbers [4] of [0, 1): which kind, the share that is kept, and the centre of the box.
      cutmix: Probability of a box that comes from the partner: 0 in it, 1 outside. Its sides are those of the image
        times the root of the share that is not kept; where it reaches over the border it is cut.
      mixup: Probability of the same share everywhere.
      size: (H, W).
    """
    sides = jnp.array(size, jnp.float32)
    half = jnp.floor(jnp.floor(sides * jnp.sqrt(1 - u[1])) / 2)
    centre = jnp.minimum(jnp.floor(u[2:4] * sides), sides - 1)
    rows, columns = (jnp.arange(side, dtype=jnp.float32) for side in size)
    inside = [(x >= c - h) & (x < c + h) for x, c, h in zip((rows, columns), centre, half, strict=True)]
    box = jnp.where(inside[0][:, None] & inside[1][None, :], 0.0, 1.0)
    blend = jnp.where(u[0] < cutmix + mixup, u[1], 1.0)
    return jnp.where(u[0] < cutmix, box, blend)


def teach(network: nn.Module, teachers: Any, images: jax.Array, temperature: float) -> jax.Array:
    """Soft labels [n, C]: the mean over trained networks of their softmax of logits / temperature.

    Args:
      network: The module of all of them.
      teachers: Their variables, [K, ...] each.
      images: Normalised images [n, H, W, D].
      temperature: Above 1 labels are softer. The network that learns them has the temperature 1.
    """
    one = lambda variables: jax.nn.softmax(network.apply(variables, images) / temperature)  # noqa: E731
    return jax.lax.stop_gradient(jax.lax.map(one, teachers).mean(axis=0))
