"""The optimizer of what a method learns: any of optax, by name."""

import dataclasses
import functools
import inspect
import math
from typing import Any

import jax
import numpy as np
import optax

from dmjax.common.errors import UserError, near_misses
from dmjax.config import NamedFields, Positive


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(NamedFields):
    """The optax optimizer of the synthetic images."""

    name: str = "sgd"
    """Any optimizer of optax that takes a learning_rate."""
    learning_rate: Positive | None = None
    """Learning rate (by default the method's, which may follow from the network)."""
    options: tuple[tuple[str, float], ...] = (("momentum", 0.5),)
    """Further arguments of that optimizer, as NAME VALUE pairs."""


def with_rate(config: OptimizerConfig, default: float) -> OptimizerConfig:
    """The same optimizer with a learning rate, where none is given; raises a `UserError` for one that optax has not."""
    if config.learning_rate is None:
        config = dataclasses.replace(config, learning_rate=default)
    create(config)
    return config


@functools.cache
def create(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds the configured optax optimizer; the learning rate is 1 where none is given.

    Raises:
      UserError: a name or an option that optax does not have, or a value that cannot be right.
    """
    rate = 1.0 if config.learning_rate is None else config.learning_rate
    name, options = config.name, dict(config.options)
    known = [n for n in dir(optax) if "learning_rate" in _parameters(getattr(optax, n)) and not n.startswith("_")]
    if name not in known:
        raise UserError(f"optimizer.name: optax has no optimizer {name!r}; {near_misses(name, known)}")
    accepted = inspect.signature(getattr(optax, name)).parameters
    if len(options) < len(config.options):
        raise UserError("optimizer.options gives one of them twice")
    for option, value in options.items():
        if option not in accepted:
            takes = ", ".join(p for p in accepted if p != "learning_rate")
            raise UserError(
                f"optimizer.options: optax.{name} has no option {option!r} (it has {takes}); "
                f"give its own after --optimizer.options, or none"
            )
        if not math.isfinite(value):
            raise UserError(f"optimizer.options {option} must be finite, not {value}")
        if option in ("momentum", "b1", "b2", "decay") and not 0 <= value < 1:
            raise UserError(f"optimizer.options {option} must be at least 0 and below 1, not {value:g}")
    try:
        optimizer = getattr(optax, name)(learning_rate=rate, **options)
        one = jax.ShapeDtypeStruct((1,), np.float32)  # no array: several processes have not found each other yet
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            jax.eval_shape(lambda g: optimizer.update(g, optimizer.init(g), g), one)  # some need more than a gradient
    except (TypeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"optimizer: optax.{name} with {options} cannot be used here: {reason}") from None
    return optimizer


def move(transformation: optax.GradientTransformation, learned: Any, gradients: Any, state: Any) -> tuple[Any, Any]:
    """Moves a tree of arrays against its gradients; returns it and the state of the optimizer."""
    with jax.numpy_dtype_promotion("standard"):  # which optax relies on
        updates, state = transformation.update(gradients, state, learned)
        return optax.apply_updates(learned, updates), state


def _parameters(thing: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(thing).parameters) if inspect.isfunction(thing) else ()
    except (TypeError, ValueError):
        return ()
