"""Condensing: from an experiment file to a synthetic set, its picture and its accuracy.

    python -m dmjax.condense --config experiments/tiny.py --ipc 1

--config FILE names the experiment; its values are the defaults of all other flags.
"""

import contextlib
import dataclasses
import itertools
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmjax import artifacts, cli, compilation, coreset, experiment, files, loop, processes, signals
from dmjax.artifacts import SyntheticSet
from dmjax.config import CORESETS, Config
from dmjax.data import Dataset
from dmjax.data import load as load_dataset
from dmjax.errors import NonFiniteLoss, UserError
from dmjax.evaluate import Accuracy, evaluate, evaluate_random_real, evaluate_whole
from dmjax.fields import flatten
from dmjax.record import Clock, Result
from dmjax.workdir import Workdir

# What may differ between the processes of one run.
_OF_EACH_PROCESS = {
    *("workdir", "progress", "data.path", "data.test_path", "data.cache"),
    *("distributed.coordinator", "distributed.process_id", "distributed.timeout"),
}


def condense(config: Config) -> SyntheticSet:
    """Condenses as configured, writing to `config.workdir`; goes on where an earlier run was interrupted.

    Raises:
      UserError: the input is at fault.
      KeyboardInterrupt: after a checkpoint was written.
    """
    if config.runs != 1:
        raise UserError(f"condense makes one set, condense_runs makes the {config.runs} that runs asks for")
    return condense_runs(config)[0]


def condense_runs(config: Config) -> list[SyntheticSet]:
    """Condenses `config.runs` sets with consecutive seeds, as one program; otherwise as `condense`."""
    config = _joined(experiment.resolve(config))
    if config.method == "whole":
        raise UserError(
            "method whole makes no set; dmjax.evaluate.evaluate_whole(config, dmjax.data.load(config.data)) judges it"
        )
    _check_layout(config)
    configs = experiment.runs(config)
    with processes.watched(), _workdirs(configs) as workdirs, signals.handled():
        results = loop.run_together(configs, _load(config), workdirs)
    _raise_failures(results)
    return [result.synthetic for result in results if isinstance(result, Result)]


def _raise_failures(results: Sequence[Result | NonFiniteLoss]) -> None:
    for result in results:
        if isinstance(result, NonFiniteLoss):
            raise result


def _joined(config: Config) -> Config:
    """Joins the other processes, if there are any; only the first one shows progress."""
    processes.start(config.distributed)
    values = flatten(config)
    processes.agree("configuration", {name: values[name] for name in values.keys() - _OF_EACH_PROCESS})
    return dataclasses.replace(config, progress=config.progress and processes.is_first())


@contextlib.contextmanager
def _workdirs(configs: Sequence[Config]) -> Iterator[list[Workdir | None]]:
    """The workdirs of the runs in the first process, and as many times nothing in the others."""
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            yield processes.together(lambda: [stack.enter_context(Workdir(config)) for config in configs])
        else:
            yield processes.together(lambda: [None] * len(configs))


def _load(config: Config) -> Dataset:
    dataset = processes.together(lambda: load_dataset(config.data, config.progress))
    summary = (dataset.class_names, dataset.image_shape, dataset.counts, dataset.mean, dataset.std)
    processes.agree("data set", summary)
    return dataset


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    compilation.use_cache()
    config, default = experiment.parse(Config, arguments, "python -m dmjax.condense", f"{__doc__}")
    config = _joined(experiment.resolve(config, default))
    _check_layout(config)
    configs = experiment.runs(config)
    with processes.watched(), _workdirs(configs) as workdirs:
        finished = [_finished(workdir, config.method) if workdir else None for workdir in workdirs]
        missing = ~processes.from_first(np.array([results is not None for results in finished]))
        for workdir in itertools.compress(workdirs, ~missing):
            if workdir:
                print(f"{workdir.path} is finished; remove it, or choose another --workdir, to run again")
        chosen = list(itertools.compress(configs, missing)), list(itertools.compress(workdirs, missing))
        made, failures = _run(*chosen) if missing.any() else ([], [])
    results = [results for results in (*finished, *made) if results]
    if results:  # which the first process has
        _report(config, sorted(results, key=lambda r: r["seed"]))
    for failure in failures:
        raise failure


def _finished(workdir: Workdir, method: str) -> dict[str, Any] | None:
    """The results of a run that is finished; a set that is damaged is made again from the last checkpoint."""
    made = method == "whole" or artifacts.is_readable(workdir.synthetic)
    results = files.read_json(workdir.results) if made else None
    return results if isinstance(results, dict) and "accuracy" in results else None


def _run(
    configs: Sequence[Config], workdirs: Sequence[Workdir | None]
) -> tuple[list[dict[str, Any]], list[NonFiniteLoss]]:
    """Condenses and evaluates. Returns what it wrote to each results.json, in the first process, and the failures."""
    config, dataset = configs[0], _load(configs[0])
    if (
        config.evaluation.random_real and config.init != "real" and config.method not in CORESETS
    ):  # say so before condensing rather than after
        coreset.check(dataset, config.ipc, "compare with none by --evaluation.random-real false")
    whole = config.method == "whole"
    results = [None] * len(configs) if whole else loop.run_together(configs, dataset, workdirs)
    processes.stop()
    written = [
        _evaluate(config, dataset, workdir, result)
        for config, workdir, result in zip(configs, workdirs, results, strict=True)
        if workdir is not None and not isinstance(result, NonFiniteLoss)
    ]
    return written, [result for result in results if isinstance(result, NonFiniteLoss)]


def _evaluate(config: Config, dataset: Dataset, workdir: Workdir, made: Result | None) -> dict[str, Any]:
    """Evaluates a set, or the whole training set; writes and returns what results.json holds."""
    compiled, kept = compilation.seconds(), workdir.evaluations
    accuracies: dict[str, Accuracy | None] = dict.fromkeys(("synthetic", "random_real", "whole_dataset"))
    if made is not None:
        accuracies["synthetic"] = evaluate(
            made.synthetic,
            dataset,
            seed=config.seed,
            progress=config.progress,
            description="synthetic images",
            kept=kept / "synthetic.json",
        )
        if config.evaluation.random_real:
            accuracies["random_real"] = evaluate_random_real(config, dataset, config.ipc, kept / "random_real.json")
    if config.evaluation.whole_dataset or made is None:
        workdir.describe(config, dataset)
        accuracies["whole_dataset"] = evaluate_whole(config, dataset, kept / "whole_dataset.json")
    clock = made.clock if made else Clock()
    iterations = made.synthetic.metadata["iterations"] if made else 0
    results = {
        "dataset": dataset.name,
        "method": config.method,
        "network": dataclasses.asdict(config.network),
        "ipc": config.ipc if made else None,
        "iterations": iterations,
        "seed": config.seed,
        "seconds": {
            "condense": clock.condense,
            "evaluate": sum(accuracy.training_seconds for accuracy in accuracies.values() if accuracy),
            "compile": clock.compile + compilation.seconds() - compiled,
        },
        "iterations_per_second": iterations / clock.condense if iterations else 0.0,
        "accuracy": {name: accuracy and accuracy.to_dict() for name, accuracy in accuracies.items()},
    }
    files.write_json(workdir.results, results)
    shutil.rmtree(kept, ignore_errors=True)
    return results


def _check_layout(config: Config) -> None:
    """Raises a `UserError` where folders of several seeds would come into that of one run or of a study."""
    if config.runs > 1 and config.workdir is not None and (config.workdir / "config.json").exists():
        raise UserError(f"{config.workdir} holds a run or a study; choose another --workdir for several seeds")


def _report(config: Config, results: list[dict[str, Any]]) -> None:
    """Prints the table of a run; of several runs that of all their networks, which is written as well."""
    if config.runs == 1:
        print(_table(results[0]))
        print(f"files: {config.workdir}/  ({_contents(config.workdir)})")
        return
    pooled = {
        **results[0],
        "seed": [r["seed"] for r in results],
        "seconds": {name: sum(r["seconds"][name] for r in results) for name in results[0]["seconds"]},
        "accuracy": {
            name: first and _pooled([r["accuracy"][name] for r in results]).to_dict()
            for name, first in results[0]["accuracy"].items()
        },
    }
    files.write_json(config.workdir / "runs.json", pooled)
    print(_table(pooled))
    contents = _contents(config.workdir / f"seed_{results[0]['seed']}")
    print(f"files: {config.workdir}/  (runs.json, and for every seed seed_*/: {contents})")


def _contents(folder: Path) -> str:
    """What a run has written that a user looks at."""
    names = ("synthetic.npz", "images", "results.json", "metrics.jsonl", "tensorboard")
    there = [folder / name for name in names if (folder / name).exists()]
    return ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in there)


def _pooled(accuracies: Sequence[dict[str, Any]]) -> Accuracy:
    values = [value for accuracy in accuracies for value in accuracy["values"]]
    return Accuracy.of(values, sum(accuracy["training_seconds"] for accuracy in accuracies))


def _table(results: dict[str, Any]) -> str:
    """The accuracies for the screen."""
    seconds = results["seconds"]
    epochs = {
        "synthetic": "condensed" if results["iterations"] else "chosen",
        "random_real": "random real",
        "whole_dataset": "whole training set",
    }
    images = {"synthetic": results["ipc"], "random_real": results["ipc"], "whole_dataset": "all"}
    made = f"{results['iterations']} iterations in" if results["iterations"] else "chosen in"
    made = made if results["ipc"] else "nothing to make,"
    sets = f"{len(results['seed'])} sets, " if isinstance(results["seed"], list) else ""
    lines = [
        f"{results['dataset']}, {results['method']}, {sets}{made} {seconds['condense']:.1f} s "
        f"(+ {seconds['compile']:.1f} s to compile, {seconds['evaluate']:.1f} s to evaluate)",
        f"{'training images':<20} {'per class':>9}   test accuracy",
    ]
    for name, label in epochs.items():
        accuracy = results["accuracy"][name]
        if accuracy is not None:
            shown = Accuracy.of(accuracy["values"])
            lines.append(f"{label:<20} {images[name]:>9}   {shown}  ({len(shown.values)} networks)")
    return "\n".join(lines)


cli.make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
