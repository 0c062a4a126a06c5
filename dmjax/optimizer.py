"""The optimizer of the synthetic images: any of optax, by name."""

import inspect
from typing import Any

import optax

from dmjax.config import OptimizerConfig
from dmjax.errors import UserError, near_misses


def create(config: OptimizerConfig) -> optax.GradientTransformation:
    """Builds the configured optax optimizer; raises a `UserError` for names and options that optax does not have."""
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
        return getattr(optax, name)(learning_rate=config.learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: optax.{name} does not accept {options}: {error}") from None


def _parameters(thing: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(thing).parameters) if inspect.isfunction(thing) else ()
    except (TypeError, ValueError):
        return ()
