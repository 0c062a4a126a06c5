"""Larger sets against random selection (Zhao & Bilen, Figure 5): accuracy, also relative to the whole training set.

    python -m experiments.larger_sets --config experiments/cifar10.py

`--sizes` lists the images per class, by default those of the paper. On CIFAR-10 the learning rate is 10 unless given,
the paper's from 100 images per class on; elsewhere it is that of the method. Every set and every accuracy is kept in
the working folder as soon as it is there, so that the same command goes on where it was interrupted.
Expected on CIFAR-10 (paper): 67.0 / 71.2 / 76.1 / 79.8 / 80.8 % at 100 / 200 / 500 / 1000 / 1250 images per class, of
84.8 % on the whole set.
"""

import dataclasses
import functools
import sys
from typing import Any

from dmjax.common import plots
from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.data import sampling
from dmjax.evaluation.judge import judge_random_real, judge_whole
from dmjax.run import study
from dmjax.settings import cli, experiment, fields

_CIFAR10_RATE = 10.0
CONDENSED, RANDOM, WHOLE = "condensed", "random real", "whole training set"


@dataclasses.dataclass(frozen=True)
class LargerSets(Config):
    """What this study varies."""

    sizes: tuple[int, ...] = (100, 200, 500, 1000, 1250)
    """Images per class."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    with study.opened(LargerSets, arguments, "python -m experiments.larger_sets", f"{__doc__}") as larger:
        dataset, sizes = larger.dataset, sorted(set(larger.varied.sizes))
        config = fields.fill(larger.config, default_rate(dataset.name))
        settings = experiment.resolve(config)
        if not sizes or min(sizes) < 1:
            raise UserError("sizes must be images per class, at least 1")
        larger.check(dataclasses.replace(config, ipc=max(sizes)))
        sampling.check_enough(dataset, max(sizes), "lower the largest of --sizes")
        whole = larger.accuracy("whole", functools.partial(judge_whole, settings, dataset))
        found: dict[tuple[str, int], dict[str, Any] | None] = {}
        for size in sizes:
            measure = functools.partial(judge_random_real, settings, dataset, size)
            found[RANDOM, size] = larger.accuracy(f"ipc_{size}/random", measure)
            synthetic = larger.condense(f"ipc_{size}", dataclasses.replace(config, ipc=size))
            if synthetic is not None:
                found[CONDENSED, size] = larger.set_accuracy(f"ipc_{size}/condensed", synthetic, config)
        rows = [[str(size), *(study.percent(found.get((of, size))) for of in (CONDENSED, RANDOM))] for size in sizes]
        table = study.markdown(["images per class", CONDENSED, RANDOM], [*rows, ["all", study.percent(whole), ""]])
        _plot(larger.folder / "larger_sets.png", found, whole, sizes, dataset.name)
        results = {of: {str(size): found.get((of, size)) for size in sizes} for of in (CONDENSED, RANDOM)}
        larger.finish({**results, WHOLE: whole}, table)


def default_rate(dataset: str) -> dict[str, float]:
    """The learning rate by its field, where it is not the method's."""
    return {"optimizer.learning_rate": _CIFAR10_RATE} if dataset == "cifar10" else {}


def _plot(path, found, whole, sizes, name) -> None:
    """Accuracy in per cent on the left, relative to the whole set on the right."""

    def points(of, scale):
        there = ((size, found.get((of, size))) for size in sizes)
        return [(size, a["mean"] * scale, a["std"] * scale) for size, a in there if a is not None]

    def panel(label, scale):
        lines = {of: points(of, scale) for of in (CONDENSED, RANDOM)}
        if whole is not None:
            lines[WHOLE] = [(size, whole["mean"] * scale, 0.0) for size in sizes]
        return label, "images per class", {of: line for of, line in lines.items() if line}

    panels = [panel("test accuracy (%)", 100)]
    if whole is not None and whole["mean"] > 0:
        panels.append(panel("relative to the whole set (%)", 100 / whole["mean"]))
    if all(lines for *_, lines in panels):
        plots.curves(path, panels, name)


if __name__ == "__main__":
    sys.exit(main())
