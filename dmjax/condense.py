"""Condensing: from an experiment file to a synthetic set, its picture and its accuracy.

    python -m dmjax.condense --config experiments/tiny.py --ipc 1

--config FILE names the experiment; its values are the defaults of all other flags.
"""

import contextlib
import dataclasses
import sys
import time
from typing import Any

import numpy as np

from dmjax import artifacts, cli, compilation, coreset, experiment, files, loop, processes, signals
from dmjax.artifacts import SyntheticSet
from dmjax.config import CORESETS, Config, flatten
from dmjax.data import Dataset
from dmjax.data import load as load_dataset
from dmjax.evaluate import Accuracy, evaluate, evaluate_random_real, evaluate_whole
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
    config = _joined(experiment.resolve(config))
    with processes.watched(), _workdir(config) as workdir, signals.handled():
        return loop.run(config, _load(config), workdir).synthetic


def _joined(config: Config) -> Config:
    """Joins the other processes, if there are any; only the first one shows progress."""
    processes.start(config.distributed)
    values = flatten(config)
    processes.agree("configuration", {name: values[name] for name in values.keys() - _OF_EACH_PROCESS})
    return dataclasses.replace(config, progress=config.progress and processes.is_first())


def _workdir(config: Config) -> contextlib.AbstractContextManager[Workdir | None]:
    """The workdir in the first process, and nothing in the others."""
    return processes.together(lambda: Workdir(config) if processes.is_first() else contextlib.nullcontext())


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
    with processes.watched(), _workdir(config) as workdir:
        results = _finished(workdir) if workdir else None
        if processes.from_first(np.bool_(results is not None)):
            if workdir:
                print(f"{workdir.path} is finished; remove it, or choose another --workdir, to run again")
        else:
            results = _run(config, workdir)
    if workdir and results:
        print(_table(results))
        print(f"files: {workdir.path}/  (synthetic.npz, images/, results.json, metrics.jsonl, tensorboard/)")


def _finished(workdir: Workdir) -> dict[str, Any] | None:
    """The results of a run that is finished and whole; a set that is not is made again from the last checkpoint."""
    results = files.read_json(workdir.results) if artifacts.is_readable(workdir.synthetic) else None
    return results if isinstance(results, dict) and "accuracy" in results else None


def _run(config: Config, workdir: Workdir | None) -> dict[str, Any] | None:
    """Condenses and evaluates; returns and writes results.json, in the first process."""
    dataset = _load(config)
    if (
        config.evaluation.random_real and config.init != "real" and config.method not in CORESETS
    ):  # say so before condensing rather than after
        coreset.check(dataset, config.ipc, "compare with none by --evaluation.random-real false")
    synthetic, clock = loop.run(config, dataset, workdir)
    processes.stop()
    if workdir is None:
        return None
    start, compiled = time.perf_counter(), compilation.seconds()
    accuracies: dict[str, Accuracy | None] = {
        "synthetic": evaluate(
            synthetic, dataset, seed=config.seed, progress=config.progress, description="synthetic images"
        ),
        "random_real": evaluate_random_real(config, dataset, config.ipc) if config.evaluation.random_real else None,
        "whole_dataset": evaluate_whole(config, dataset) if config.evaluation.whole_dataset else None,
    }
    compiling = compilation.seconds() - compiled
    results = {
        "dataset": dataset.name,
        "method": config.method,
        "network": dataclasses.asdict(config.network),
        "ipc": config.ipc,
        "iterations": synthetic.metadata["iterations"],
        "seed": config.seed,
        "seconds": {
            "condense": clock.condense,
            "evaluate": time.perf_counter() - start - compiling,
            "compile": clock.compile + compiling,
        },
        "iterations_per_second": synthetic.metadata["iterations"] / clock.condense,
        "accuracy": {name: accuracy and accuracy.to_dict() for name, accuracy in accuracies.items()},
    }
    files.write_json(workdir.results, results)
    return results


def _table(results: dict[str, Any]) -> str:
    """The accuracies for the screen."""
    seconds = results["seconds"]
    epochs = {
        "synthetic": "condensed" if results["iterations"] else "chosen",
        "random_real": "random real",
        "whole_dataset": "whole training set",
    }
    images = {"synthetic": results["ipc"], "random_real": results["ipc"], "whole_dataset": "all"}
    made = f"{results['iterations']} iterations" if results["iterations"] else "chosen"
    lines = [
        f"{results['dataset']}, {results['method']}, {made} in {seconds['condense']:.1f} s "
        f"(+ {seconds['compile']:.1f} s to compile, {seconds['evaluate']:.1f} s to evaluate)",
        f"{'training images':<20} {'per class':>9}   test accuracy",
    ]
    for name, label in epochs.items():
        accuracy = results["accuracy"][name]
        if accuracy is not None:
            shown = Accuracy(accuracy["mean"], accuracy["std"], tuple(accuracy["values"]))
            lines.append(f"{label:<20} {images[name]:>9}   {shown}  ({len(shown.values)} networks)")
    return "\n".join(lines)


cli.make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
