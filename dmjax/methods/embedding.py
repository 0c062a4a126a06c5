"""Where the networks come from that embed images: random ones, or states of networks trained on the whole set.

A method draws one network an iteration to compare features in, and, where it wants one, an expert that classifies the
synthetic images. Trained networks are fixed, so that they are loaded once and held by all devices (`Bank`); the queue
of networks that train along is a state of its own (`dmjax.methods.network_queue`).
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax import networks
from dmjax.evaluation import pretrained
from dmjax.evaluation.pool_folder import State
from dmjax.methods.base import Problem
from dmjax.methods.match_config import TRAINED

_LATER = 0.1  # of a training: how much later the expert of a state may be (TGDD: 6 of 60 epochs)


class Bank(NamedTuple):
    """Trained networks on the devices.

    Attributes:
      states: Variables of K states [K, ...], those of one network after those of the other.
      drawn: int32 [D], the states that are drawn to embed images; where networks are interpolated, the initial ones.
      first: int32 [K], the first state that may be the expert of a state.
      last: int32 [K], the last one; of an initial state the end of its interpolation too.
    """

    states: Any
    drawn: Any
    first: Any
    last: Any


def bank(problem: Problem, source: str, expert: str, accuracy: tuple[float, float] | None) -> Bank | None:
    """Loads, and trains where they are missing, the networks of a source; None for a source that needs none.

    Args:
      problem: What the method works on. Without a data set, random networks take the place of trained ones.
      source: One of `dmjax.methods.match_config.TRAINED`; anything else needs no trained networks.
      expert: "later" for experts a little further in the training of the same network, else its last state.
      accuracy: Bounds of the validation accuracy of the states that are drawn; None for all.

    Raises:
      UserError: no state is within the bounds.
    """
    if source not in TRAINED:
        return None
    if problem.trained is None:
        return _stand_in(problem, source)
    every = problem.trained.all()
    kept = [_kept(of_one, source) for of_one in every]
    flat = [state for of_one in kept for state in of_one]
    numbers = {id(state): i for i, state in enumerate(flat)}
    wanted = flat
    if source == "pool" and accuracy is not None:
        wanted = pretrained.select(every, accuracy)
    elif source == "interpolated":
        wanted = [of_one[0] for of_one in kept]
    experts = [_experts(state, of_one, expert) for of_one in kept for state in of_one]
    chosen = (wanted, [first for first, _ in experts], [last for _, last in experts])
    return Bank(pretrained.stack(flat), *(np.array([numbers[id(s)] for s in of], np.int32) for of in chosen))


def _kept(states: list[State], source: str) -> list[State]:
    """Of the states of one network those that are needed."""
    return {"pool": states, "trained": states[-1:], "interpolated": [states[0], states[-1]]}[source]


def _experts(state: State, states: list[State], expert: str) -> tuple[State, State]:
    """The first and the last state of the same network that may be the expert of a state."""
    if expert != "later":
        return states[-1], states[-1]
    end = state.step + _LATER * states[-1].step
    return state, max((s for s in states if s.step <= end), key=lambda s: s.step)


def _stand_in(problem: Problem, source: str) -> Bank:
    """Random networks in the shape of a bank, for programs that are only compiled or timed."""
    settings = problem.config.pretrained
    assert settings.networks is not None, "the configuration is not resolved"
    assert settings.states is not None, "the configuration is not resolved"
    each = {"pool": settings.states + 1, "trained": 1, "interpolated": 2}[source]
    count = settings.networks * each
    keys = jax.random.split(jax.random.key(0), settings.networks)
    init = jax.jit(jax.vmap(lambda key: networks.init(problem.network, key, problem.image_shape)))
    states = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf), each, axis=0), init(keys))
    numbers = np.arange(count, dtype=np.int32)
    last = numbers // each * each + each - 1
    return Bank(states, numbers[::each] if source == "interpolated" else numbers, last, last)


class Drawn(NamedTuple):
    """The networks of one iteration.

    Attributes:
      variables: Of the network that features are compared in.
      expert: Variables of the network that classifies the synthetic images.
    """

    variables: Any
    expert: Any


def draw(bank: Bank, key: jax.Array, interpolated: bool, own_expert: bool = False) -> Drawn:
    """Draws a network and its expert.

    Args:
      bank: The trained networks.
      key: PRNG key.
      interpolated: The network lies on the straight line between the initial and the last parameters of one that was
        trained, at a uniformly drawn point (DANCE; Zhang et al. 2024), its normalisation included.
      own_expert: The network is its own expert.
    """
    keys = [key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)]
    index = bank.drawn[jax.random.randint(keys[0], (), 0, len(bank.drawn))]
    expert_index = jax.random.randint(keys[1], (), bank.first[index], bank.last[index] + 1)
    variables, expert = at(bank.states, index), at(bank.states, expert_index)
    if interpolated:
        variables = interpolate(variables, at(bank.states, bank.last[index]), jax.random.uniform(keys[2]))
    return Drawn(variables, variables if own_expert else expert)


def at(stacked: Any, index: jax.Array) -> Any:
    """One of the networks of a stack."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def interpolate(first: Any, last: Any, share: jax.Array) -> Any:
    """`share` of the first network and the rest of the last one, leaf by leaf."""
    return jax.tree.map(lambda a, b: share * a + (1 - share) * b, first, last)


def random(problem: Problem, key: jax.Array) -> Any:
    """Variables of a freshly initialised network."""
    return networks.init(problem.network, key, problem.image_shape)


def with_fresh(problem: Problem, drawn: Drawn, key: jax.Array, share: float) -> Drawn:
    """The same draw, whose network is a freshly initialised one in a share of the iterations."""
    if share == 0:
        return drawn
    fresh_key, coin_key = jax.random.split(key)
    fresh = jax.random.uniform(coin_key) < share
    variables = jax.lax.cond(fresh, lambda: random(problem, fresh_key), lambda: drawn.variables)
    return drawn._replace(variables=variables)
