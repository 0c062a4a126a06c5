"""How well one ranking agrees with another: Spearman's rank correlation, with a bootstrap interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Correlation(NamedTuple):
    """A rank correlation in [-1, 1]; None where it is not defined, since all values of one side are equal.

    Attributes:
      rho: Spearman's.
      low: Lower end of the interval.
      high: Upper end of the interval.
      points: Over how many pairs.
    """

    rho: float | None
    low: float | None
    high: float | None
    points: int

    def __str__(self) -> str:
        if self.rho is None:
            return "-"
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.rho:.2f}{interval}"


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rho over the last axis of x and y [..., n]; equal values share their mean rank; NaN if all are equal.

    It is that of `scipy.stats.spearmanr`, but of many samples at once, and exactly 1 for equal rankings.
    """
    from scipy.stats import rankdata  # imported where it is needed: it takes half a second

    a, b = (rankdata(values, axis=-1) - (np.shape(values)[-1] + 1) / 2 for values in (x, y))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def correlation(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Spearman's rho of pairs, and the interval between two percentiles of it over resampled pairs.

    Args:
      x: One value a pair, [n].
      y: The other, [n].
      samples: How often n of the pairs are drawn with replacement; draws in which rho is not defined do not count.
      level: Fraction of the draws that is inside the interval.
      seed: Of the draws.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    rho = float(spearman(x, y)) if len(x) > 1 else np.nan
    if np.isnan(rho):
        return Correlation(None, None, None, len(x))
    drawn = np.random.default_rng(seed).integers(len(x), size=(samples, len(x)))
    resampled = spearman(x[drawn], y[drawn])
    tail = (1 - level) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Correlation(rho, float(low), float(high), len(x))


def best(values: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, from the largest on; of equal ones the first comes first."""
    return np.argsort(-np.asarray(values, float), kind="stable")[:count]
