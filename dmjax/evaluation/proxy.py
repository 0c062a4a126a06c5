"""Proxy sets: what networks are trained on in place of the whole set, so that they can be ranked sooner."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from dmjax.common import compilation
from dmjax.evaluation import ranking, testing, training
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.training import Plan, Recipe


class Proxy(NamedTuple):
    """What all networks are trained on.

    Attributes:
      name: In tables.
      examples: The set, on the device.
      recipe: How networks are trained on it.
      plan: For how long.
      digest: Tells it from other sets and other trainings.
      making: Seconds that the set took to make; None for the whole set.
    """

    name: str
    examples: Examples
    recipe: Recipe
    plan: Plan
    digest: str
    making: float | None = None


@dataclasses.dataclass(frozen=True)
class Trained(Accuracy):
    """Test accuracies of the trainings of one network, and in the same order those on the images held out."""

    validation: tuple[float, ...] = ()


def train(
    network: nn.Module,
    proxy: Proxy,
    keys: Sequence[jax.Array],
    tests: tuple[Examples, Examples],
    resume_file: Path | None = None,
) -> Trained:
    """Trains a network on a proxy set, once with each key, and tests it; all trainings are the same programs.

    Args:
      network: As for `training.train`.
      proxy: The set.
      keys: Of initialisation, order and augmentation.
      tests: Test images and those held out for validation, both by `on_device.place_test`.
      resume_file: Not used: a measurement that is interrupted begins anew.
    """

    def trained(key: jax.Array, steps: int) -> list[float]:
        state = training.start(network, proxy.plan, key, proxy.examples)
        state = training.advance(network, proxy.recipe, proxy.plan, state, key, proxy.examples, steps)
        return [testing.accuracy(network, state.variables, test) for test in tests]

    trained(keys[0], 1)  # traces and compiles, so that the clock sees training and testing alone
    start, compiled = time.perf_counter(), compilation.seconds()
    tested, validated = zip(*(trained(key, proxy.plan.total) for key in keys), strict=True)
    seconds = time.perf_counter() - start - (compilation.seconds() - compiled)
    return Trained(**vars(Accuracy.of(tested, seconds)), validation=validated)


def summarise(own: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """How a proxy ranks networks, compared with the whole set (Zhao & Bilen, Table 5), as JSON values.

    Args:
      own: What `train` gave on the proxy set, by the names of the networks, as JSON values.
      whole: The same on the whole set.

    Returns:
      `chosen`: The network with the highest validation accuracy, trained on the proxy; `accuracy`: its test accuracy,
      trained on the whole set; `tied`: how many have that validation accuracy. `top`: the networks that are highest by
      it; `rho_top`, `rho_all`: the correlation over them, and over all, between test accuracies, trained on the one and
      on the other; `seconds`: of all trainings; `test`, `validation`: the accuracies after training on the proxy, by
      the names of the networks. None where fewer than two networks were trained on both.
    """
    names = [name for name in own if name in whole]
    if len(names) < 2:
        return None
    validation = np.array([np.mean(own[name]["validation"]) for name in names])
    tested, reference = (np.array([of[name]["mean"] for name in names]) for of in (own, whole))
    top = ranking.best(validation, top_count(len(names)))
    return {
        "chosen": names[top[0]],
        "accuracy": float(reference[top[0]]),
        "tied": int((validation == validation.max()).sum()),
        "top": [names[i] for i in top],
        "rho_top": ranking.correlation(tested[top], reference[top])._asdict(),
        "rho_all": ranking.correlation(tested, reference)._asdict(),
        "seconds": sum(own[name]["training_seconds"] for name in names),
        "test": dict(zip(names, tested.tolist(), strict=True)),
        "validation": dict(zip(names, validation.tolist(), strict=True)),
    }


def top_count(count: int) -> int:
    """How many networks the paper's correlation is over: 5 % of them, here at least 5."""
    return min(count, max(5, math.ceil(0.05 * count)))
