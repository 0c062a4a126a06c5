"""Networks: one file a family; every network is a Flax module with `embed(x)` and `__call__(x)`.

Both take `train` (batch statistics instead of running ones) and `weights` (how much an image counts in them).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmjax.config import NetworkConfig
from dmjax.errors import UserError, near_misses
from dmjax.networks import convnet

FAMILIES = {"ConvNet": convnet.create}


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
    if config.name not in FAMILIES:
        raise UserError(f"unknown network {config.name!r}; {near_misses(config.name, list(FAMILIES))}")
    return FAMILIES[config.name](config, num_classes, image_shape, axis_name)


def init(network: nn.Module, key: jax.Array, image_shape: Sequence[int]) -> Any:
    """Fresh variables: {"params": ...}, and {"batch_stats": ...} with batch norm."""
    return network.init(key, jnp.zeros((1, *image_shape)), train=True)


def embed(network: nn.Module, variables: Any, images: jax.Array, weights: jax.Array) -> jax.Array:
    """Features [n, F] of normalised images [n, H, W, D], with the batch's own statistics in batch norm."""
    features, _ = network.apply(variables, images, train=True, weights=weights, method="embed", mutable=["batch_stats"])
    return features
