"""What gives what: distribution matching, and one idea of later methods at a time, at equal cost.

    python -m experiments.ablation --config experiments/cifar10.py --ipc 1 --seconds 300

Every row is judged by the same evaluation, stores as many pixels, and may take as many `--seconds` to make a set, of
which a part of the time to train networks is taken that its `--runs` sets share. How many iterations that is, a pilot
of a few of them measures, before anything else is made. All rows but `dm` and those that say so have two times two
training images in each stored one; `--rows` chooses among them, and takes any method by its name, with its own settings
but for what flags say. Random real images are judged beside them. Every set and every accuracy is kept in the working
folder as soon as it is there, so that the same command goes on where it was interrupted.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

from dmjax import methods
from dmjax.common import plots
from dmjax.common.errors import UserError, near_misses
from dmjax.config import Config, Count, Positive
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.judge import judge_random_real
from dmjax.run import loop, study
from dmjax.settings import cli, experiment, fields

FACTOR = 2
_CALIBRATED = {"match.networks": "pool", "match.calibration": 1.0, "match.expert": "later"}
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dm": ("as published", {"factor": 1}),
    "factor": ("more images in each", {}),
    "composite": ("stronger augmentation", {"match.strategy": "color_crop_cutout", "match.composite": True}),
    "pool": ("networks along their training", {"match.networks": "pool"}),
    "interpolated": ("networks between start and end", {"match.networks": "interpolated"}),
    "queue": ("networks that train along", {"match.networks": "queue"}),
    "calibration": ("an expert's cross entropy", _CALIBRATED),
    "covariance": ("distance of covariances too", {"match.distance": "covariance"}),
    "kernel": ("distance of all moments", {"match.distance": "kernel", "match.weight": 10.0}),
    "attention": ("distance of attention maps too", {"match.distance": "attention"}),
    "ncf": ("distance of characteristic functions", {"match.distance": "ncf", "match.weight": 300.0}),
    "adam": ("optimizer", {"optimizer.name": "adam", "optimizer.options": (), "optimizer.learning_rate": 0.05}),
    "average": ("mean of the images along the way", {"average": 0.2}),
    "factor 4": ("still more images in each", {"factor": 4}),
    "blend": ("four ideas together", {}),
}
"""What each row is for, and its settings on top of distribution matching with the factor; the last is a method."""
_METHOD = ("a method, its own settings but for the flags", {})


@dataclasses.dataclass(frozen=True)
class Ablation(Config):
    """What this study varies."""

    rows: tuple[str, ...] = tuple(ROWS)
    """Rows of the table."""
    runs: Count = 3
    """Sets of each row, with the seeds --seed, --seed + 1, ..."""
    seconds: Positive = 300.0
    """Of a set, without compilation: its iterations, and its part of the training of networks."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    with study.opened(Ablation, arguments, "python -m experiments.ablation", f"{__doc__}") as ablation:
        varied, names = ablation.varied, tuple(dict.fromkeys(ablation.varied.rows))
        if not names:
            raise UserError("rows: give at least one row after --rows, or leave it out for all")
        for name in names:
            if name not in (*ROWS, *methods.built_in()):
                raise UserError(f"rows: there is no {name!r}; {near_misses(name, [*ROWS, *methods.built_in()])}")
        configs = {name: config_of(ablation.config, name) for name in names}
        for config in configs.values():
            ablation.check(config)
        factors = {name: factor_of(ablation, config) for name, config in configs.items()}
        pilots = {
            name: ablation.cell(f"{name}/pilot", functools.partial(_pilot, ablation, config))
            for name, config in configs.items()
        }
        random = {factor: _random(ablation, factor) for factor in sorted(set(factors.values()))}
        found = {name: _row(ablation, name, configs[name], pilot) for name, pilot in pilots.items() if pilot}
        rows = [
            {"row": "random", "factor": factor, "about": "real images", "accuracy": accuracy}
            for factor, accuracy in random.items()
        ]
        rows += [
            {"row": name, "factor": factors[name], "about": ROWS.get(name, _METHOD)[0], **row}
            for name, row in found.items()
            if row is not None
        ]
        rows = [row for row in rows if row["accuracy"] is not None]
        title = f"{ablation.dataset.name}, {ablation.config.ipc} stored images per class, {varied.seconds:g} s a set"
        bars = [(_label(row), 100 * row["accuracy"]["mean"], 100 * row["accuracy"]["std"]) for row in rows]
        plots.bars(ablation.folder / "ablation.png", bars, "test accuracy (%)", title)
        ablation.finish({"rows": rows}, _table(rows))


def config_of(base: Config, name: str) -> Config:
    """The configuration of a row: that of the experiment, whose method is distribution matching with one idea."""
    own = ROWS.get(name, _METHOD)[1]
    alone = name in methods.built_in() and not own
    method = fields.carry_over(base.method, methods.create(name if alone else "match"))
    changes = {} if alone else {"factor": FACTOR, **own}
    return dataclasses.replace(base, method=fields.replace(method, changes))


def factor_of(ablation: study.Study, config: Config) -> int:
    """The factor of the sets of a row."""
    config = experiment.resolve(config)
    return config.method.factor_of(config, ablation.dataset.image_shape)


def _random(ablation: study.Study, factor: int) -> dict[str, Any] | None:
    """As many random real images as the sets of all runs of a row are judged with."""
    settings = experiment.resolve(ablation.config)
    evaluation = dataclasses.replace(settings.evaluation, networks=settings.evaluation.networks * ablation.varied.runs)
    settings = dataclasses.replace(settings, evaluation=evaluation)
    measure = functools.partial(judge_random_real, settings, ablation.dataset, settings.ipc, factor=factor)
    return ablation.accuracy(f"random/factor_{factor}", measure)


def _row(ablation: study.Study, name: str, config: Config, pilot: Mapping[str, Any]) -> dict[str, Any] | None:
    """The accuracies of all sets of a row, and what a set cost; None where something failed."""
    runs, seconds = ablation.varied.runs, ablation.varied.seconds
    shared = pilot["pretrain_seconds"] / runs
    iterations = int((seconds - shared) / pilot["seconds_per_iteration"])
    if iterations < 1:
        print(f"{name}: left out, its networks alone take {shared:.0f} of {seconds:g} s a set", file=sys.stderr)
        return None
    method = dataclasses.replace(config.method, iterations=iterations)
    seeds = {f"{name}/run_{run}": config.seed + run for run in range(runs)}
    configs = {run: dataclasses.replace(config, method=method, seed=seed) for run, seed in seeds.items()}
    accuracies, took = [], []
    for run, synthetic in ablation.condense_together(configs).items():
        judged = dataclasses.replace(ablation.config, seed=seeds[run])
        accuracy = synthetic and ablation.set_accuracy(f"{run}/accuracy", synthetic, judged)
        made = ablation.cell(f"{run}/condense", dict)
        if accuracy is None or made is None:
            return None
        accuracies.append(accuracy)
        took.append(made["condense_seconds"] - pilot["pretrain_seconds"])
    return {
        "accuracy": Accuracy.pooled(accuracies).to_dict(),
        "iterations": iterations,
        "condense_seconds": sum(took) / runs,
        "pretrain_seconds": shared,
    }


def _pilot(ablation: study.Study, config: Config) -> dict[str, Any]:
    """Seconds of an iteration, without compilation, and of the training of the networks that it takes."""
    resolved = experiment.resolve(config)
    few = dataclasses.replace(resolved.method, iterations=2 * resolved.chunk)
    [result] = loop.run([dataclasses.replace(resolved, method=few, workdir=None)], ablation.dataset, [None])
    if isinstance(result, Exception):
        raise result
    seconds = result.clock.condense / few.iterations
    return {"seconds_per_iteration": seconds, "pretrain_seconds": result.pretrain}


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['row']}, {row['factor']}x{row['factor']}" if row["row"] == "random" else row["row"]


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    header = ["row", "idea", "factor", "accuracy (%)", "iterations", "seconds", "and for networks"]
    cells = [
        [
            row["row"],
            row["about"],
            str(row["factor"]),
            study.percent(row["accuracy"]),
            str(row.get("iterations", "-")),
            *(f"{row[name]:.0f}" if name in row else "-" for name in ("condense_seconds", "pretrain_seconds")),
        ]
        for row in rows
    ]
    return study.markdown(header, cells)


if __name__ == "__main__":
    sys.exit(main())
