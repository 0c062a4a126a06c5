"""An accuracy: of several networks trained alike, with mean and standard deviation over them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dmjax.common import html

BEST = "best over epochs (chosen on the test images)"
"""How the best accuracy over epochs is labelled wherever it is shown."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Test accuracies in [0, 1].

    Attributes:
      mean: The mean over networks.
      std: The population standard deviation over networks.
      values: The accuracy of each network.
      training_seconds: Seconds to train and test all networks, over all starts, without compilation; on a CPU two
        networks are trained at the same time.
      top5: The top-5 accuracy of each network; empty for data sets of fewer than 50 classes.
      best: The best accuracy of each network over the epochs, chosen on the test images; empty where not asked for.
    """

    mean: float
    std: float
    values: tuple[float, ...]
    training_seconds: float = 0.0
    top5: tuple[float, ...] = ()
    best: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        values: Iterable[float],
        seconds: float = 0.0,
        top5: Iterable[float] = (),
        best: Iterable[float] = (),
    ) -> "Accuracy":
        """Summarises the accuracies of single networks."""
        values = tuple(values)
        return cls(float(np.mean(values)), float(np.std(values)), values, seconds, tuple(top5), tuple(best))

    @classmethod
    def pooled(cls, results: Sequence[Mapping[str, Any]]) -> "Accuracy":
        """Summarises several accuracies, as `to_dict` gives them."""
        together = {name: [v for r in results for v in r.get(name, ())] for name in ("values", "top5", "best")}
        return cls.of(seconds=sum(result.get("training_seconds", 0.0) for result in results), **together)

    def __str__(self) -> str:
        top5 = f", top-5 {_percent(self.top5)}" if self.top5 else ""
        best = f", {BEST} {_percent(self.best)}" if self.best else ""
        return f"{_percent(self.values)}{top5}{best}"

    def __repr__(self) -> str:
        return f"Accuracy({self}, {len(self.values)} networks)"

    def _repr_html_(self) -> str:
        """What a notebook shows: mean and standard deviation over networks, and a table of each network's accuracy."""
        every = {"test accuracy (%)": self.values, "top-5 (%)": self.top5, f"{BEST} (%)": self.best}
        rows = {name: [f"{100 * value:.1f}" for value in values] for name, values in every.items() if values}
        networks = [f"network {i + 1}" for i in range(len(self.values))]
        return html.line(f"test accuracy {self} ({len(self.values)} networks)") + html.table(networks, rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; those of `top5` and `best` only where they were measured."""
        every = {n: list(v) if isinstance(v, tuple) else v for n, v in dataclasses.asdict(self).items()}
        return {name: value for name, value in every.items() if value != [] or name not in ("top5", "best")}


def _percent(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f} +- {100 * np.std(values):.1f} %"
