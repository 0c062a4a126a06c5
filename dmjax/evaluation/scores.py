"""Scores that are fair between methods, from test accuracies alone (DD-Ranking, Li et al. 2025)."""

import math
from typing import NamedTuple


class Scores(NamedTuple):
    """What a condensed set is worth; None where an accuracy that it takes was not measured.

    Attributes:
      hard_label_recovery: Accuracy of the whole set minus that of the condensed one, with hard labels; low is good.
      improvement_over_random: Accuracy of the condensed set minus that of as many random images; high is good.
      label_robust: Both in one number of [0, 1]; high is good.
    """

    hard_label_recovery: float | None
    improvement_over_random: float | None
    label_robust: float | None


def scores(condensed: float, random: float | None, whole: float | None, weight: float = 0.5) -> Scores:
    """Scores from accuracies in [0, 1]; `weight` is that of the improvement over random images.

    The label-robust score is `(e^a - e^-1) / (e - e^-1)` with `a = weight * improvement - (1 - weight) * recovery`.
    """
    recovery = None if whole is None else whole - condensed
    improvement = None if random is None else condensed - random
    if recovery is None or improvement is None:
        return Scores(recovery, improvement, None)
    alpha = weight * improvement - (1 - weight) * recovery
    return Scores(recovery, improvement, (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1)))
