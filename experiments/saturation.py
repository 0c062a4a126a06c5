"""Accuracy and loss along the iterations of a run: from where on do more of them change nothing?

    python -m experiments.saturation --run runs/mnist --judged seed0.json seed1.json --published 89.7 0.6

The run was evaluated on its way (`--evaluation.every`). `--judged` names files of `dmjax.evaluate --json`, of longer
evaluations of this set or of sets with other seeds, and `--published` a mean and a standard deviation to hold them
against. Writes saturation.png and saturation.json, into the folder of the run or into `--out`.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from dmjax.common import files, plots
from dmjax.common.errors import UserError
from dmjax.evaluation.accuracy import Accuracy
from dmjax.reporting import source
from dmjax.run import study
from dmjax.settings import cli


@dataclasses.dataclass(frozen=True)
class Saturation:
    """What is drawn."""

    run: Path | None = None
    """The folder of a finished run."""
    judged: tuple[Path, ...] = ()
    """Files that `dmjax.evaluate --json` has written, each with one network."""
    published: tuple[float, ...] = ()
    """Mean and standard deviation, in per cent."""
    out: Path | None = None
    """The folder to write into."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "nothing was written")


def _main(arguments: list[str]) -> None:
    given = cli.parse(Saturation(), arguments, "python -m experiments.saturation", f"{__doc__}")
    if given.run is None:
        raise UserError("name the folder of a run with --run")
    if given.published and (len(given.published) != 2 or not all(0 <= value <= 100 for value in given.published)):
        raise UserError("--published takes a mean and a standard deviation, in per cent")
    if not (given.run / "config.json").is_file():
        raise UserError(f"{given.run} is no folder of a run")
    run = source.read(given.run)
    accuracy = [
        (line["iteration"], line["accuracy_mean"], line["accuracy_std"])
        for line in run.metrics
        if "accuracy_mean" in line
    ]
    end = ((run.results or {}).get("accuracy") or {}).get("synthetic")
    if end is not None:
        accuracy.append((run.iterations, end["mean"], end["std"]))
    loss = [(line["iteration"], line["loss"]) for line in run.metrics if "loss" in line]
    if len(accuracy) < 2 or not loss:
        raise UserError(
            f"{given.run} was not evaluated on its way: make it in a new --workdir with --evaluation.every, such as 100"
        )
    judged = [_judged(path) for path in given.judged]
    found: dict[str, Any] = {
        "config": run.about["config"],
        "machine": {name: run.about.get(name) for name in ("commit", "processor", "backend", "versions")},
        "seconds": (run.results or {}).get("seconds"),
        "accuracy": [{"iteration": i, "mean": mean, "std": std} for i, mean, std in accuracy],
        "judged": judged,
        "published": list(given.published),
        "loss": loss,
    }
    folder = given.out or given.run
    files.write_json(folder / "saturation.json", found)
    _plot(folder / "saturation.png", run, accuracy, loss, judged, given.published)
    rows = [[str(i), study.percent({"mean": mean, "std": std})] for i, mean, std in accuracy]
    rows += [[f"set {i + 1} of those judged longer", study.percent(one)] for i, one in enumerate(judged)]
    if len(judged) > 1:
        rows.append(["all of these", study.percent(Accuracy.pooled(judged).to_dict())])
    print(f"{study.markdown(['iterations', 'accuracy (%)'], rows)}\n\n{folder}/saturation.png, saturation.json")


def _judged(path: Path) -> dict[str, Any]:
    """The accuracy in a file of `dmjax.evaluate --json`, and for how many epochs networks were trained."""
    try:
        found = files.read_json(path)
        [accuracy] = found["networks"].values()
        return {
            "epochs": found["evaluation"]["epochs"],
            **{name: accuracy[name] for name in ("mean", "std", "values", "training_seconds")},
        }
    except (UserError, TypeError, KeyError, AttributeError, ValueError):
        raise UserError(f"{path} is no file of dmjax.evaluate --json with one network") from None


def _plot(path: Path, run: source.Run, accuracy, loss, judged, published) -> None:
    last, recipe = run.iterations, run.config.evaluation
    shown = {f"{recipe.networks} networks of {recipe.epochs} epochs": [(i, 100 * m, 100 * s) for i, m, s in accuracy]}
    if judged:
        pooled = Accuracy.pooled(judged)
        epochs = " or ".join(dict.fromkeys(str(one["epochs"]) for one in judged))
        name = f"{len(pooled.values)} networks of {epochs} epochs" + f", {len(judged)} sets" * (len(judged) > 1)
        shown[name] = [(last, 100 * pooled.mean, 100 * pooled.std)]
    if published:
        shown["published"] = [(accuracy[0][0], *published), (last, *published)]
    panels = [
        ("test accuracy (%)", "iterations", shown),
        ("loss", "iterations", {"loss": [(i, value, 0.0) for i, value in loss]}),
    ]
    title = f"{run.dataset.name}, {run.config.ipc} per class, {run.method}"
    plots.curves(path, panels, title, logarithmic=False)


if __name__ == "__main__":
    sys.exit(main())
