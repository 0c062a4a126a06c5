"""When a network that is trained along with a set starts anew: once its error has stopped falling."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_NO_ERROR = 1e30  # before there is a sum of errors


class Patience(NamedTuple):
    """When the network starts anew: after as many steps without a lower error as errors are averaged.

    Attributes:
      errors: float32 [window], the errors on the last real batches, in turn.
      steps: int32 scalar, steps of this network.
      lowest: float32 scalar, smallest sum of `errors`.
      since: int32 scalar, steps since then.
      lengths: int32 [3], steps that the last networks took to their smallest sum, the newest first; 0 for none.
    """

    errors: Any
    steps: Any
    lowest: Any
    since: Any
    lengths: Any


def new_patience(window: int, lengths: jax.Array) -> Patience:
    """That of a network which has not taken a step."""
    return Patience(jnp.zeros(window), jnp.int32(0), jnp.float32(_NO_ERROR), jnp.int32(0), lengths)


def note_error(patience: Patience, error: jax.Array) -> tuple[Patience, jax.Array]:
    """Counts one more step with this error; returns the new count, and whether the network starts anew."""
    errors, steps, lowest, since, lengths = patience
    window = len(errors)
    errors, steps = errors.at[steps % window].set(error), steps + 1
    total = errors.sum()
    lower = (steps == window) | ((steps > window) & (total < lowest))
    since = jnp.where(lower | (steps < window), 0, since + 1)
    restart = since > window
    length = steps - since  # up to the smallest sum
    anew = new_patience(window, jnp.concatenate([length[None], lengths[:2]]))
    same = Patience(errors, steps, jnp.where(lower, total, lowest), since, lengths)
    return jax.tree.map(lambda a, b: jnp.where(restart, a, b), anew, same), restart
