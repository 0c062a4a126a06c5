"""The cloud of features that the images of a class have in a network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dmjax import networks
from dmjax.methods.base import Problem, in_chunks


class Cloud(NamedTuple):
    """The features of the images of a class.

    Attributes:
      features: float32 [n, F].
      weights: float32 [n], 1 for an image and 0 for padding.
      activations: Of each of the layers that were asked for, float32 [n, ...].
      last_map: float32 [n, h, w, channels] of the last feature map; None where it is not wanted.
    """

    features: Any
    weights: Any
    activations: tuple[Any, ...] = ()
    last_map: Any = None


def observe(
    problem: Problem,
    variables: Any,
    images: jax.Array,
    weights: jax.Array,
    chunk: int | None = None,
    layers: tuple[int, ...] = (),
    with_map: bool = False,
) -> Cloud:
    """Embeds normalised, augmented images of one class.

    Args:
      problem: What the method works on.
      variables: Of the network.
      images: float32 [n, H, W, D].
      weights: float32 [n], 1 for an image and 0 for padding.
      chunk: How many images have their activations in memory, in the gradient as well; all where it is None. The
        features are the same where the network treats every image on its own, which batch norm does not.
      layers: Activations that are wanted, counted from 0.
      with_map: Whether the last feature map is wanted.
    """

    def of_part(images, weights):
        if not layers and not with_map:
            return Cloud(networks.embed(problem.network, variables, images, weights).astype(jnp.float32), weights)
        seen = networks.embed_all(problem.network, variables, images, weights)
        activations = tuple(seen.activations[layer] for layer in layers)
        return Cloud(seen.features, weights, activations, seen.last_map if with_map else None)

    parts = in_chunks(of_part, (images, weights), chunk)
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[: len(images)], parts)


def cross_entropy(
    problem: Problem,
    variables: Any,
    images: jax.Array,
    weights: jax.Array,
    label: jax.Array,
    chunk: int | None = None,
) -> jax.Array:
    """The mean cross entropy of images of one class in a network; arguments as for `observe`."""

    def of_part(images, weights):
        logits, _ = problem.network.apply(variables, images, train=True, weights=weights, mutable=["batch_stats"])
        labels = jnp.full(len(images), label)
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels) * weights

    return in_chunks(of_part, (images, weights), chunk).sum() / jnp.maximum(weights.sum(), 1)
