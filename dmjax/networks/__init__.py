"""Networks: one file a family; every network is a Flax module with `embed(x)` and `__call__(x)`.

Both take `train` (batch statistics instead of running ones) and `weights` (how much an image counts in them).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmjax.common.errors import UserError
from dmjax.config import NetworkConfig
from dmjax.networks import custom
from dmjax.networks.families import FAMILIES, OPTIONS, condensing_rate, on_top_of, resolve, short_name
from dmjax.networks.pools import POOLS

__all__ = [
    "FAMILIES",
    "OPTIONS",
    "POOLS",
    "condensing_rate",
    "create",
    "embed",
    "has_batch_norm",
    "init",
    "on_top_of",
    "resolve",
    "short_name",
]


def create(
    config: NetworkConfig, num_classes: int, image_shape: Sequence[int], axis_name: Sequence[str] = ()
) -> nn.Module:
    """Builds the configured network for images of `image_shape` = (H, W, D).

    Args:
      config: Family and options.
      num_classes: Outputs of the classifier.
      image_shape: (H, W, D).
      axis_name: Mapped axes that batch norm reduces its statistics over.

    Raises:
      UserError: unknown family, or options that do not fit the images.
    """
    config = resolve(config)
    options = {name: getattr(config, name) for name in OPTIONS}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    shared = {"num_classes": num_classes, "axis_name": tuple(axis_name), "precision": config.precision}
    if ":" in config.name:
        return custom.create(config.name, shared | given, image_shape)
    family = FAMILIES[config.name]
    side, smallest = min(image_shape[:2]), family.smallest[image_shape[2] == 1]
    if side < smallest:
        raise UserError(
            f"{config.name} needs images of at least {smallest}x{smallest}, these are {image_shape[0]}x{image_shape[1]}"
        )
    return family.make(**shared, **family.fit(given, image_shape))


def init(network: nn.Module, key: jax.Array, image_shape: Sequence[int]) -> Any:
    """Fresh variables: {"params": ...}, and {"batch_stats": ...} with batch norm."""
    return network.init(key, jnp.zeros((1, *image_shape)), train=True)


def has_batch_norm(network: nn.Module, image_shape: Sequence[int]) -> bool:
    """Whether a network keeps statistics of batches, so that no image can be treated on its own."""
    return "batch_stats" in jax.eval_shape(lambda: init(network, jax.random.key(0), image_shape))


def embed(network: nn.Module, variables: Any, images: jax.Array, weights: jax.Array) -> jax.Array:
    """Features [n, F] of normalised images [n, H, W, D], with the batch's own statistics in batch norm."""
    features, _ = network.apply(variables, images, train=True, weights=weights, method="embed", mutable=["batch_stats"])
    return features
