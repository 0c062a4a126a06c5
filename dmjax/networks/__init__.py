"""Networks: one file a family; every network is a Flax module with `embed(x)` and `__call__(x)`.

Both take `train` (batch statistics instead of running ones) and `weights` (how much an image counts in them).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from dmjax.common.errors import UserError
from dmjax.config import NetworkConfig
from dmjax.networks import base, custom
from dmjax.networks.families import FAMILIES, OPTIONS, condensing_rate, on_top_of, resolve, settled, short_name
from dmjax.networks.pools import POOLS

__all__ = [
    "FAMILIES",
    "OPTIONS",
    "POOLS",
    "Embedding",
    "augmenting_precision",
    "condensing_rate",
    "create",
    "embed",
    "embed_all",
    "has_batch_norm",
    "has_last_map",
    "init",
    "may_have_batch_norm",
    "num_activations",
    "on_top_of",
    "resolve",
    "settled",
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
    config = settled(resolve(config))
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


def may_have_batch_norm(config: NetworkConfig) -> bool:
    """What is known before the network is built, in which one of someone's own counts as one that has."""
    return config.norm == "batch" or ":" in config.name


def augmenting_precision(network: nn.Module) -> jax.lax.Precision:
    """Of the matrix products that augment images for a network: exact for one that computes in float32."""
    exact = getattr(network, "precision", "float32") == "float32"  # one of someone's own need not have the field
    return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.HIGH


def embed(network: nn.Module, variables: Any, images: jax.Array, weights: jax.Array) -> jax.Array:
    """Features [n, F] of normalised images [n, H, W, D], with the batch's own statistics in batch norm."""
    features, _ = network.apply(variables, images, train=True, weights=weights, method="embed", mutable=["batch_stats"])
    return features


class Embedding(NamedTuple):
    """What a network makes of n images on the way to its logits; float32.

    Attributes:
      features: [n, F], as `embed` gives them.
      activations: The outputs of its activation functions in the order of computation, [n, h, w, channels] or [n, F];
        () where a network of someone's own notes none.
      last_map: [n, h, w, channels], the last feature map that has positions; None where there is none, as in an MLP. It
        is what most families flatten; ResNet18 averages it first.
    """

    features: jax.Array
    activations: tuple[jax.Array, ...]
    last_map: jax.Array | None


def embed_all(network: nn.Module, variables: Any, images: jax.Array, weights: jax.Array) -> Embedding:
    """As `embed`, with what the network noted on the way; in float32, whatever it computes in.

    A network of someone's own notes what goes through `networks.base.activated` and `networks.base.last_map`; where its
    submodules do, their notes come in the order of the submodules' names.
    """
    features, noted = network.apply(
        variables, images, train=True, weights=weights, method="embed", mutable=["batch_stats", base.NOTES]
    )
    maps = _notes(noted, base.LAST_MAP)
    return jax.tree.map(
        lambda x: x.astype(jnp.float32),
        Embedding(features, _notes(noted, base.ACTIVATED), maps[-1] if maps else None),
    )


def num_activations(network: nn.Module, image_shape: Sequence[int]) -> int:
    """How many activations `embed_all` gives for images of `image_shape` = (H, W, D); nothing is computed."""
    return len(_notes(_noted(network, image_shape), base.ACTIVATED))


def has_last_map(network: nn.Module, image_shape: Sequence[int]) -> bool:
    """Whether `embed_all` gives a last map for images of `image_shape` = (H, W, D); nothing is computed."""
    return bool(_notes(_noted(network, image_shape), base.LAST_MAP))


def _noted(network: nn.Module, image_shape: Sequence[int]) -> Any:
    """The shapes of what a network notes; a first run, in which batch norm does not yet reduce over mapped axes."""
    images = jnp.zeros((1, *image_shape))
    start = lambda key: network.init(key, images, train=True, method="embed", mutable=True)  # noqa: E731
    return jax.eval_shape(start, jax.random.key(0))


def _notes(collections: Any, name: str) -> tuple[Any, ...]:
    """Everything that was noted under a name, in order within a module and by name between modules."""
    notes: Any = flax.traverse_util.flatten_dict(collections.get(base.NOTES, {}))
    return tuple(note for path in sorted(notes) if path[-1] == name for note in notes[path])
