"""Condensing: from an experiment file to a synthetic set, its picture and its accuracy.

    python -m dmjax.condense --config experiments/tiny.py --ipc 1

--config FILE names the experiment; its values are the defaults of all other flags.
"""

import contextlib
import dataclasses
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dmjax import reporting
from dmjax.common import backend, compilation, files, signals
from dmjax.common.errors import NonFiniteLoss, UserError
from dmjax.config import Config, DataConfig
from dmjax.data import Dataset, sampling, synthetic_set
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.judge import judge, judge_random_real, judge_whole
from dmjax.run import loop, processes, report
from dmjax.run.own_evaluation import judge_own
from dmjax.run.record import Result, Snapshot
from dmjax.run.workdir import Workdir, check_layout
from dmjax.settings import cli, experiment


def condense(
    config: Config, dataset: Dataset | None = None, on_chunk: Callable[[Snapshot], Any] | None = None
) -> SyntheticSet:
    """Condenses as configured; goes on where an earlier run in the same workdir was interrupted.

    Args:
      config: What to do. It is written to `config.workdir`; with None nothing is written, and the losses of all
        iterations are in the metadata of the set.
      dataset: The real images; by default those of `config.data`.
      on_chunk: Called after every `config.chunk` iterations with a `Snapshot` (`dmjax.run.record`): `iteration`, the
        `losses` of the iterations since the call before, and `synthetic()`, which returns the set as it is now. The
        result has the same bytes with it. Methods that choose real images, without iterations, never call it.

    Raises:
      UserError: the input is at fault.
      KeyboardInterrupt: after a checkpoint was written.
    """
    if config.runs != 1:
        raise UserError(f"condense makes one set, condense_runs makes the {config.runs} that runs asks for")
    return condense_runs(config, dataset, on_chunk)[0]


def condense_runs(
    config: Config, dataset: Dataset | None = None, on_chunk: Callable[[Snapshot], Any] | None = None
) -> list[SyntheticSet]:
    """Condenses `config.runs` sets with consecutive seeds, as one program; otherwise as `condense`."""
    if dataset is not None:
        config = dataclasses.replace(config, data=DataConfig(source="memory", name=dataset.name))
    config = experiment.resolve(config)
    if not config.method.makes_set:
        raise UserError("this method makes no set; dmjax.evaluation.judge.judge_whole measures its accuracy")
    with signals.handled(), _prepared(config) as (configs, workdirs):
        results = loop.run(configs, dataset or processes.load_dataset(config), workdirs, on_chunk)
    for result in results:
        if isinstance(result, NonFiniteLoss):
            raise result
    made = [result for result in results if isinstance(result, Result)]
    return [result.synthetic if config.workdir else result.with_losses() for result in made]


@contextlib.contextmanager
def _prepared(config: Config) -> Iterator[tuple[list[Config], list[Workdir | None]]]:
    """Joins the other processes, if there are any, and claims the folders of all runs.

    Yields:
      The configurations of the runs, and their workdirs: None where nothing is to be written.
    """
    config = processes.join(config)
    check_layout(config)
    configs = experiment.runs(config)
    writes = processes.is_first() and config.workdir is not None
    with processes.watched(), contextlib.ExitStack() as stack:
        workdirs = processes.together(
            lambda: [stack.enter_context(Workdir(config)) if writes else None for config in configs]
        )
        yield configs, workdirs


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    compilation.use_cache()
    given, default = experiment.parse(Config, arguments, "python -m dmjax.condense", f"{__doc__}")
    backend.split_cpu(given.distributed)
    config = experiment.resolve(given, default)
    written, failures = [], []
    with _prepared(config) as (configs, workdirs):
        dataset = processes.load_dataset(config)
        finished = processes.together(lambda: [w and _finished(w, configs[0], dataset) for w in workdirs])
        missing = ~processes.from_first(np.array([results is not None for results in finished]))
        for workdir in itertools.compress(workdirs, ~missing):
            if workdir:
                print(f"{workdir.path} is finished; remove it, or choose another --workdir, to run again")
        if missing.any():
            chosen = list(itertools.compress(configs, missing)), list(itertools.compress(workdirs, missing))
            written, failures = _run_and_judge(*chosen, dataset)
    results = [results for results in (*finished, *written) if results]
    if results:  # which the first process has
        report.show(config, sorted(results, key=lambda r: r["seed"]))
        if config.runs > 1:
            assert config.workdir is not None
            reporting.try_to_write(config.workdir)
    for failure in failures:
        raise failure


def _finished(workdir: Workdir, config: Config, dataset: Dataset) -> dict[str, Any] | None:
    """The results of a run that is finished; a set that is damaged is made again from the last checkpoint."""
    made = not config.method.makes_set or synthetic_set.is_readable(workdir.synthetic)
    results = files.read_json(workdir.results) if made else None
    if not isinstance(results, dict) or "accuracy" not in results:
        return None
    workdir.describe(config, dataset)  # raises where the data have changed
    if not (workdir.path / reporting.NAME).exists():  # the run was killed before, or is of an older version
        reporting.try_to_write(workdir.path)
    return results


def _run_and_judge(
    configs: list[Config], workdirs: list[Workdir | None], dataset: Dataset
) -> tuple[list[dict[str, Any]], list[NonFiniteLoss]]:
    """Condenses and evaluates. Returns what it wrote to each results.json, in the first process, and the failures."""
    config = configs[0]
    if config.method.makes_set:  # what cannot work is said before condensing rather than after
        config.method.check(config, dataset)
        if config.evaluation.random_real:
            sampling.check_enough(dataset, config.ipc, "compare with none by --evaluation.random-real false")
        results = loop.run(configs, dataset, workdirs)
    else:
        results = [None] * len(configs)
    processes.stop()
    written = [
        _judge(config, dataset, workdir, result)
        for config, workdir, result in zip(configs, workdirs, results, strict=True)
        if workdir is not None and not isinstance(result, NonFiniteLoss)
    ]
    return written, [result for result in results if isinstance(result, NonFiniteLoss)]


def _judge(config: Config, dataset: Dataset, workdir: Workdir, made: Result | None) -> dict[str, Any]:
    """Evaluates a set, or the whole training set; writes and returns what results.json holds."""
    compiled, partial = compilation.seconds(), workdir.evaluations
    accuracies: dict[str, Accuracy | None] = dict.fromkeys(("synthetic", "random_real", "whole_dataset"))
    if made is not None:
        set_file = partial / "synthetic.json"
        accuracies["synthetic"] = judge(config, dataset, made.synthetic, "synthetic images", set_file)
        own = judge_own(config, dataset, made.synthetic, partial / "own.json")
        accuracies |= {} if own is None else {"own": own}
        if config.evaluation.random_real:
            random_file, factor = partial / "random_real.json", made.synthetic.factor
            accuracies["random_real"] = judge_random_real(config, dataset, config.ipc, random_file, factor)
    if config.evaluation.whole_dataset or made is None:
        workdir.describe(config, dataset)
        accuracies["whole_dataset"] = judge_whole(config, dataset, partial / "whole_dataset.json")
    results = report.results(config, dataset, made, accuracies, compilation.seconds() - compiled)
    files.write_json(workdir.results, results)
    shutil.rmtree(partial, ignore_errors=True)
    reporting.try_to_write(workdir.path)
    return results


cli.make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
