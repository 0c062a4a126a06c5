"""Scores that are fair between methods, from test accuracies alone (DD-Ranking, Li et al. 2025)."""

import math
from typing import NamedTuple


class Scores(NamedTuple):
    """What a condensed set is worth; None where an accuracy that it takes was not measured.

    Attributes:
      hard_label_recovery: Accuracy of the whole set minus that of the condensed one, with hard labels; low is good.
      improvement_over_random: Accuracy of the condensed set minus that of as many random images; high is good.
      label_robust: Both in one number of [0, 1]; high is good.
      augmentation_robust: The improvement over random images with augmentation and without, in one number of [0, 1];
        high is good.
    """

    hard_label_recovery: float | None = None
    improvement_over_random: float | None = None
    label_robust: float | None = None
    augmentation_robust: float | None = None


def scores(
    condensed: float,
    random: float | None,
    whole: float | None,
    weight: float = 0.5,
    plain: tuple[float | None, float | None] = (None, None),
) -> Scores:
    """Scores from accuracies in [0, 1].

    Both robust scores are `(e^a - e^-1) / (e - e^-1)`: the label-robust one with `a = weight * improvement -
    (1 - weight) * recovery`, the augmentation-robust one with `a = weight * improvement + (1 - weight) * improvement
    without augmentation`.

    Args:
      condensed: Of networks trained on the condensed set.
      random: On as many random images, by the same evaluation.
      whole: On the whole set.
      weight: Of the improvement over random images.
      plain: On the condensed set and on the random images, without augmentation.
    """
    recovery = None if whole is None else whole - condensed
    improvement = None if random is None else condensed - random
    label = augmentation = None
    if recovery is not None and improvement is not None:
        label = _normalised(weight * improvement - (1 - weight) * recovery)
    if improvement is not None and plain[0] is not None and plain[1] is not None:
        augmentation = _normalised(weight * improvement + (1 - weight) * (plain[0] - plain[1]))
    return Scores(recovery, improvement, label, augmentation)


def _normalised(alpha: float) -> float:
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
