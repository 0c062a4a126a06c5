"""What a run tells at its end: results.json, and the table on the screen."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmjax import methods
from dmjax.common import files
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.evaluation.accuracy import Accuracy
from dmjax.run.record import Clock, Result


def results(
    config: Config,
    dataset: Dataset,
    made: Result | None,
    accuracies: Mapping[str, Accuracy | None],
    compile_seconds: float,
) -> dict[str, Any]:
    """What results.json holds.

    Args:
      config: The configuration of the run.
      dataset: The real data.
      made: What was condensed; None where no set is made.
      accuracies: Accuracy on the set, on as many random real images, and on the whole set, as far as measured; and that
        of the set by the method's own evaluation, "own", where it has one.
      compile_seconds: Seconds that the evaluation spent on compiling.
    """
    clock = made.clock if made else Clock()
    iterations = config.method.iterations if made else 0
    return {
        "dataset": dataset.name,
        "method": methods.identifier(config.method),
        "network": dataclasses.asdict(config.network),
        "ipc": config.ipc if made else None,
        "iterations": iterations,
        "seed": config.seed,
        "seconds": {
            "condense": clock.condense,
            "pretrain": made.pretrain if made else 0.0,
            "evaluate": sum(accuracy.training_seconds for accuracy in accuracies.values() if accuracy),
            "compile": clock.compile + compile_seconds,
        },
        "iterations_per_second": iterations / clock.condense if iterations else 0.0,
        "accuracy": {name: accuracy and accuracy.to_dict() for name, accuracy in accuracies.items()},
    }


def show(config: Config, results: Sequence[dict[str, Any]]) -> None:
    """Prints the table of a run; of several runs that of all their networks, which is written to runs.json as well."""
    assert config.workdir is not None
    own = config.method.own_evaluation
    if config.runs == 1:
        print(_table(results[0], own))
        print(f"files: {config.workdir}/  ({_contents(config.workdir)})")
        return
    pooled = {
        **results[0],
        "seed": [r["seed"] for r in results],
        "seconds": {name: sum(r["seconds"][name] for r in results) for name in results[0]["seconds"]},
        "accuracy": {
            name: first and Accuracy.pooled([r["accuracy"][name] for r in results]).to_dict()
            for name, first in results[0]["accuracy"].items()
        },
    }
    files.write_json(config.workdir / "runs.json", pooled)
    print(_table(pooled, own))
    contents = _contents(config.workdir / f"seed_{results[0]['seed']}")
    print(f"files: {config.workdir}/  (report.html, runs.json, and for every seed seed_*/: {contents})")


def _contents(folder: Path) -> str:
    """What a run has written that a user looks at."""
    names = ("report.html", "synthetic.npz", "images", "results.json", "metrics.jsonl", "tensorboard")
    there = [folder / name for name in names if (folder / name).exists()]
    return ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in there)


def labels(results: dict[str, Any], own_evaluation: str | None) -> dict[str, str]:
    """What the accuracies of a run are called, those that were measured, by their names in results.json."""
    known = {
        "synthetic": "condensed" if results["iterations"] else "chosen",
        "own": f"condensed, by {own_evaluation}",
        "random_real": "random real",
        "whole_dataset": "whole training set",
    }
    return {name: label for name, label in known.items() if results["accuracy"].get(name) is not None}


def per_class(results: dict[str, Any], name: str) -> int | str:
    """Training images per class behind one of the accuracies."""
    return "all" if name == "whole_dataset" else results["ipc"]


def advice(results: dict[str, Any]) -> list[str]:
    """A line for a set that is no better than random images; none for other results."""
    condensed, random = (results["accuracy"].get(name) for name in ("synthetic", "random_real"))
    if not results["iterations"] or condensed is None or random is None or condensed["mean"] > random["mean"]:
        return []
    return [
        "the condensed images are no better than random ones: try, in another --workdir, a lower learning rate "
        "(--optimizer.learning-rate, of most methods) where they look like noise, more --iterations where they have "
        "hardly changed; --evaluation.whole-dataset true shows what all images reach"
    ]


def _table(results: dict[str, Any], own_evaluation: str | None) -> str:
    """The accuracies for the screen."""
    seconds, iterations, ipc = results["seconds"], results["iterations"], results["ipc"]
    shown = labels(results, own_evaluation)
    width = max(20, *(len(label) for label in shown.values()))
    made = f"{iterations} iterations in" if iterations else "chosen in"
    made = made if ipc else "nothing to make,"
    sets = f"{len(results['seed'])} sets, " if isinstance(results["seed"], list) else ""
    pretrain = f"{seconds['pretrain']:.1f} s to train networks for it, " if seconds["pretrain"] else ""
    lines = [
        f"{results['dataset']}, {results['method']}, {sets}{made} {seconds['condense']:.1f} s "
        f"(+ {pretrain}{seconds['compile']:.1f} s to compile, {seconds['evaluate']:.1f} s to evaluate)",
        f"{'training images':<{width}} {'per class':>9}   test accuracy",
    ]
    for name, label in shown.items():
        accuracy = Accuracy.pooled([results["accuracy"][name]])
        how_often = f"  ({len(accuracy.values)} networks)" if len(accuracy.values) > 1 or name != "own" else ""
        lines.append(f"{label:<{width}} {per_class(results, name):>9}   {accuracy}{how_often}")
    return "\n".join([*lines, *advice(results)])
