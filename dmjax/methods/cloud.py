"""The cloud of features that the images of a class have in a network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dmjax import networks
from dmjax.methods import distances
from dmjax.methods.base import Problem, in_chunks


class Cloud(NamedTuple):
    """The features of the images of a class.

    Attributes:
      features: float32 [n, F].
      weights: float32 [n], 1 for an image and 0 for padding.
      attention: Where each of the layers that were asked for looks, float32 [n, h * w].
      last_map: float32 [n, h, w, channels] of the last feature map; None where it is not wanted.
      losses: float32 [n], the cross entropy of each image; None where it is not wanted.
    """

    features: Any
    weights: Any
    attention: tuple[Any, ...] = ()
    last_map: Any = None
    losses: Any = None


def observe(
    problem: Problem,
    variables: Any,
    images: jax.Array,
    weights: jax.Array,
    chunk: int | None = None,
    layers: tuple[int, ...] = (),
    exponent: float = 1.0,
    with_map: bool = False,
    label: jax.Array | None = None,
) -> Cloud:
    """Embeds normalised, augmented images of one class.

    Args:
      problem: What the method works on.
      variables: Of the network.
      images: float32 [n, H, W, D].
      weights: float32 [n], 1 for an image and 0 for padding.
      chunk: How many images are embedded at once; all where it is None. The features are the same where the network
        treats every image on its own, which batch norm does not.
      layers: Activations, counted from 0, whose attention maps are wanted.
      exponent: Of these maps.
      with_map: Whether the last feature map is wanted.
      label: The class of the images, int32 scalar, where their losses are wanted; the network must have `classify`.
    """

    def of_part(images, weights):
        cloud, features = features_of(images, weights)
        if label is None:
            return cloud
        logits = problem.network.apply(variables, features, method="classify")
        return cloud._replace(losses=_losses(logits, label))

    def features_of(images, weights):
        if not layers and not with_map:
            features = networks.embed(problem.network, variables, images, weights)
            return Cloud(features.astype(jnp.float32), weights), features
        seen = networks.embed_all(problem.network, variables, images, weights)
        # Made here and not later: the activations of all images together are large.
        attention = tuple(distances.attention_map(seen.activations[layer], exponent) for layer in layers)
        return Cloud(seen.features, weights, attention, seen.last_map if with_map else None), seen.features

    parts = in_chunks(of_part, (images, weights), chunk, problem.chunks.recompute)
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
        return _losses(logits, label) * weights

    return in_chunks(of_part, (images, weights), chunk, problem.chunks.recompute).sum() / jnp.maximum(weights.sum(), 1)


def _losses(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The cross entropy [n] of logits [n, C] of images of one class."""
    labels = jnp.full(len(logits), label)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
