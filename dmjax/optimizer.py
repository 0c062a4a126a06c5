"""The optimizer of the synthetic images: any of optax, by name."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dmjax.config import OptimizerConfig
from dmjax.errors import UserError, near_misses


def create(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds the configured optax optimizer, with the paper's learning rate of 1 where none is given.

    Raises:
      UserError: a name or an option that optax does not have.
    """
    rate = 1.0 if config.learning_rate is None else config.learning_rate
    name, options = config.name, dict(config.options)
    known = [n for n in dir(optax) if "learning_rate" in _parameters(getattr(optax, n)) and not n.startswith("_")]
    if name not in known:
        raise UserError(f"optimizer.name: optax has no optimizer {name!r}; {near_misses(name, known)}")
    accepted = inspect.signature(getattr(optax, name)).parameters
    for option in options:
        if option not in accepted:
            takes = ", ".join(p for p in accepted if p != "learning_rate")
            raise UserError(
                f"optimizer.options: optax.{name} has no option {option!r} (it has {takes}); "
                f"give its own after --optimizer.options, or none"
            )
    try:
        optimizer = getattr(optax, name)(learning_rate=rate, **options)
        one = jnp.zeros((1,))
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            jax.eval_shape(lambda g: optimizer.update(g, optimizer.init(g), g), one)  # some need more than a gradient
    except (TypeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"optimizer: optax.{name} with {options} cannot be used here: {reason}") from None
    return optimizer


def _parameters(thing: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(thing).parameters) if inspect.isfunction(thing) else ()
    except (TypeError, ValueError):
        return ()
