"""A user's own network: a Flax module by its import path, `my_package.my_module:MyNetwork`.

It needs `embed(x)` and `__call__(x)`; `train` and `weights` are passed where it takes them, and those of the options
and of `num_classes`, `axis_name`, `precision` that are fields of it.
"""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmjax.common import imports
from dmjax.common.errors import UserError

_OFFERED = ("num_classes", "axis_name", "precision")  # need not be fields, as what a user asks for must


def load(path: str) -> type[nn.Module]:
    """The class that an import path names; raises a `UserError` that says what is missing."""
    found, class_name = imports.load(path, "network.name"), path.partition(":")[2]
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"network.name {path!r}: {class_name} is no Flax module")
    for method in ("embed", "__call__"):
        if not callable(getattr(found, method, None)):
            raise UserError(f"network.name {path!r}: {class_name} needs a method {method}(x)")
    return found


def create(path: str, options: dict[str, Any], image_shape: Sequence[int]) -> nn.Module:
    """Makes the user's network of those options that it has, and tries it on the shapes of two images.

    Raises:
      UserError: it cannot be imported, made or run, or does not give what it should.
    """
    made_by = load(path)
    fields = {f for f in inspect.signature(made_by).parameters if f not in ("parent", "name")}
    for name in options:
        if name not in (*fields, *_OFFERED):
            raise UserError(f"network.{name} is not a field of {path}")
    taken = {name: value for name, value in options.items() if name in fields}
    try:
        network = Custom(made_by(**taken))
        alone = Custom(made_by(**{name: value for name, value in taken.items() if name != "axis_name"}))
        variables, features, logits = jax.eval_shape(lambda: _try(alone, image_shape))
    except Exception as error:
        raise UserError(f"network.name {path!r} does not run: {imports.describe(error, made_by)}") from error
    if not variables.get("params"):
        raise UserError(f"network.name {path!r} has no parameters to draw")
    if logits.shape != (2, options["num_classes"]):
        raise UserError(
            f"network.name {path!r} gives logits {logits.shape} for 2 images of {options['num_classes']} classes"
        )
    if features.shape[:1] != (2,):
        raise UserError(f"network.name {path!r} gives features {features.shape} for 2 images: the first axis is theirs")
    able = "axis_name" in fields and "weights" in inspect.signature(made_by.embed).parameters
    if "batch_stats" in variables and options["axis_name"] and not able:
        raise UserError(
            f"network.name {path!r} has batch norm, whose statistics are over all classes when condensing: give it a "
            "field axis_name and embed an argument weights, as dmjax.networks.layers.BatchNorm takes them"
        )
    return network


def digest(path: str) -> str:
    """A digest of the source of the network's module."""
    return hashlib.sha256(inspect.getsource(inspect.getmodule(load(path))).encode()).hexdigest()


def _try(network: nn.Module, image_shape: Sequence[int]) -> tuple[Any, jax.Array, jax.Array]:
    images = jnp.zeros((2, *image_shape))
    variables = network.init(jax.random.key(0), images, train=True)
    features, _ = network.apply(variables, images, train=True, method="embed", mutable=["batch_stats"])
    return variables, features, network.apply(variables, images)


class Custom(nn.Module):
    """Gives a user's network the signatures of ours.

    Attributes:
      inner: The user's network.
    """

    inner: nn.Module

    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, F]."""
        features = _call(self.inner.embed, x, train, weights)
        return features.reshape(features.shape[0], -1)

    def __call__(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> logits [n, num_classes]."""
        return _call(self.inner, x, train, weights)


def _call(function: Any, x: jax.Array, train: bool, weights: jax.Array | None) -> jax.Array:
    accepted = inspect.signature(function).parameters
    offered = {"train": train, "weights": weights}
    return function(x, **{name: value for name, value in offered.items() if name in accepted})
