"""Every method on the same data, networks, evaluation and seeds, in one table (Zhao & Bilen, Table 1 and Figure 4).

    python -m dmjax.compare --config experiments/mnist.py --methods random herding dm whole --ipc 1 10 --runs 5

What is missing is run, what is there is kept: the same command goes on where it was interrupted, and tries again what
failed. A row is the mean and standard deviation over runs x networks. --config FILE names the experiment.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dmjax import cli, coreset, experiment, files, networks, plots, published, study
from dmjax.config import AUGMENTATIONS, CORESETS, DISTRIBUTION, GRADIENT, METHODS, AugmentConfig, Config
from dmjax.errors import UserError, near_misses
from dmjax.evaluate import evaluate, evaluate_whole
from dmjax.fields import flatten
from dmjax.progress import progress_bar
from dmjax.scores import scores
from dmjax.study import Study

_PAPERS_RUNS = 5
_WITHOUT_FLIP = "_".join(group for group in AUGMENTATIONS if group != "flip")


@dataclasses.dataclass(frozen=True)
class CompareConfig(Config):
    """What is compared."""

    ipc: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 1
    method: tyro.conf.Suppress[tyro.conf.Fixed[str]] = "dm"  # type: ignore[assignment]
    methods: tuple[str, ...] = ("random", "herding", "dm")
    """random, herding, kcenter, forgetting: real images; dc, dsa, dm: condensed; whole: the whole training set."""
    sizes: Annotated[tuple[int, ...], tyro.conf.arg(name="ipc")] = (1, 10, 50)
    """Images per class."""
    runs: int = _PAPERS_RUNS
    """Sets of each method and size, with the seeds --seed, --seed + 1, ..."""
    iterations_of: tuple[tuple[str, int], ...] = ()
    """Iterations by method or by method and size, as in dm 500 dsa-ipc10 20, where --iterations does not suit all."""
    learning_rates_of: tuple[tuple[str, float], ...] = ()
    """Learning rates of the synthetic images likewise, where --optimizer.learning-rate does not suit all."""
    json: Path | None = None
    """Write the rows to this file as well."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one size, over all its runs that have succeeded.

    Attributes:
      method: Its name.
      ipc: Images per class; None for the whole set.
      values: Test accuracies of all networks of all runs.
      seconds: Mean over runs of the time to make a set, training a network for it included and compilation and
        evaluation left out; for the whole set, that of training and testing one network.
      runs: How many there are.
    """

    method: str
    ipc: int | None
    values: tuple[float, ...]
    seconds: float
    runs: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        return float(np.std(self.values))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    with study.opened(CompareConfig, arguments, "python -m dmjax.compare", f"{__doc__}") as compare:
        varied = compare.varied
        if varied.json is not None:
            files.check_writable(varied.json)
        methods, sizes = tuple(dict.fromkeys(varied.methods)), sorted(set(varied.sizes))
        _check(compare, methods, sizes)
        every = [(method, size) for method in methods for size in ([None] if method == "whole" else sizes)]
        found: dict[tuple[str, int | None], list[dict[str, Any]]] = {cell: [] for cell in every}
        with progress_bar(None, "comparing", varied.progress, len(every) * varied.runs) as bar:
            for method, size in every:
                bar.set_postfix_str(f"{method} {size or ''}".strip())
                for result in _measure(compare, method, size):
                    found[method, size] += [result] if result is not None else []
                    bar.update()
        rows = [_row(method, size, of_cell) for (method, size), of_cell in found.items() if of_cell]
        report = [{**_to_dict(row, rows, compare.dataset.name), "settings": _settings(compare, row)} for row in rows]
        if varied.json is not None:
            files.write_json(varied.json, {"rows": report})
        _plot(compare.folder / "comparison.png", rows, compare.dataset.name)
        compare.finish({"rows": report}, _table(report))


def _check(compare: Study[CompareConfig], methods: Sequence[str], sizes: Sequence[int]) -> None:
    """Raises a `UserError` for what cannot work, before anything is computed."""
    varied = compare.varied
    sized = [name for name, _ in (*varied.iterations_of, *varied.learning_rates_of)]
    for name in (*methods, *(re.sub(r"-ipc[1-9]\d*$", "", name) for name in sized)):
        if name not in METHODS:
            raise UserError(f"unknown method {name!r}; {near_misses(name, list(METHODS))}")
    for name in sized:
        _, _, size = name.partition("-ipc")
        if size and int(size) not in sizes:
            raise UserError(f"{name} is for {size} images per class, which --ipc does not name")
    if not methods or not sizes or min(sizes) < 1:
        raise UserError("methods and ipc must name at least one each, and ipc be at least 1")
    for method in methods:
        if method in CORESETS:
            config = _config(compare, method, max(sizes), 0)
            coreset.check_method(config, compare.dataset, f"lower the largest of --ipc, or leave out {method}")
        for size in sizes if method != "whole" else ():
            compare.check(_config(compare, method, size, 0))
            for run in range(varied.runs):
                compare.check_run(_name(method, size, run), _config(compare, method, size, run))


def _of(given: Sequence[tuple[str, Any]], method: str, ipc: int, default: Any) -> Any:
    """What is given for a method at one size, or for the method; or the default."""
    return dict(given).get(f"{method}-ipc{ipc}", dict(given).get(method, default))


def _name(method: str, ipc: int, run: int) -> str:
    return f"{method}/ipc_{ipc}/run_{run}"


def _config(compare: Study[CompareConfig], method: str, ipc: int, run: int) -> Config:
    varied, config = compare.varied, compare.config
    config = dataclasses.replace(config, method=method, ipc=ipc, seed=config.seed + run)
    if method in CORESETS:
        return dataclasses.replace(config, iterations=None)
    rate = _of(varied.learning_rates_of, method, ipc, config.optimizer.learning_rate)
    return dataclasses.replace(
        config,
        iterations=_of(varied.iterations_of, method, ipc, config.iterations),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
    )


def _measure(compare: Study[CompareConfig], method: str, ipc: int | None) -> Iterator[dict[str, Any] | None]:
    """The accuracies of all runs at one size, each with the seconds that its set took to make."""
    runs = range(compare.varied.runs)
    if ipc is None:
        for run in runs:
            config = dataclasses.replace(compare.config, seed=compare.config.seed + run)
            measure = functools.partial(evaluate_whole, config, compare.dataset)
            result = compare.accuracy(f"{method}/run_{run}", measure)
            yield result and {**result, "making": result["training_seconds"] / len(result["values"])}
        return
    sets = compare.condense_together({_name(method, ipc, run): _config(compare, method, ipc, run) for run in runs})
    for run, (name, synthetic) in enumerate(sets.items()):
        if synthetic is None:
            yield None
            continue
        measure = functools.partial(
            evaluate,
            synthetic,
            compare.dataset,
            seed=compare.config.seed + run,
            progress=compare.config.progress,
            description=name,
            **flatten(compare.config.evaluation),
        )
        result = compare.accuracy(f"{name}/accuracy", measure, synthetic.digest())
        made = compare.cell(f"{name}/condense", dict)
        yield result and made and {**result, "making": made["condense_seconds"]}


def _row(method: str, ipc: int | None, results: list[dict[str, Any]]) -> Row:
    values = tuple(value for result in results for value in result["values"])
    return Row(method, ipc, values, float(np.mean([result["making"] for result in results])), len(results))


def _to_dict(row: Row, rows: list[Row], dataset: str) -> dict[str, Any]:
    return {
        "method": row.method,
        "ipc": row.ipc,
        "mean": row.mean,
        "std": row.std,
        "runs": row.runs,
        "values": list(row.values),
        "seconds": row.seconds,
        "published": published.accuracy(dataset, row.method, row.ipc),
        **_scores(row, rows),
    }


def _scores(row: Row, rows: list[Row]) -> dict[str, float]:
    """Those of `scores` that can be had: against random images of the same number, and against the whole set."""
    means = {(other.method, other.ipc): other.mean for other in rows}
    found = scores(row.mean, means.get(("random", row.ipc)), means.get(("whole", None)))
    return {name: score for name, score in found._asdict().items() if score is not None and row.ipc is not None}


_SETTINGS = {
    "all": ("network", "augment", "evaluation"),
    "whole": (),
    **dict.fromkeys(CORESETS, ("pretrained",)),
    "random": (),
    **dict.fromkeys(DISTRIBUTION, ("optimizer", "embedding", "iterations", "init", "batch_real")),
    **dict.fromkeys(GRADIENT, ("optimizer", "gradient", "iterations", "init", "batch_real")),
}
"""What matters to a method, by the first part of the names."""
_NO_MATTER = ("evaluation.every", "evaluation.random_real", "evaluation.whole_dataset", "pretrained.path")


def _settings(compare: Study[CompareConfig], row: Row) -> list[str]:
    """How the settings of a row differ from the papers', as `name value`."""
    own = experiment.resolve(compare.config if row.ipc is None else _config(compare, row.method, row.ipc, 0))
    strategy = _WITHOUT_FLIP if compare.dataset.name in published.WITHOUT_FLIP else AugmentConfig.strategy
    papers = Config(method=own.method, ipc=own.ipc, data=own.data, augment=AugmentConfig(strategy=strategy))
    papers = experiment.resolve(papers)
    if _create(compare, own) == _create(compare, papers):  # however it is written
        papers = dataclasses.replace(papers, network=own.network)
    ignored = {*_NO_MATTER, "evaluation.epochs" if row.method == "whole" else "evaluation.whole_epochs"}
    matters = {*_SETTINGS["all"], *_SETTINGS[row.method]}
    given, reference = flatten(own), flatten(papers)
    reference["evaluation.whole_epochs"] = None  # they do not say
    differing = [
        f"{name} {_shown(value)}"
        for name, value in given.items()
        if name.partition(".")[0] in matters and name not in ignored and value != reference[name]
    ]
    size = [] if own.data.image_size is None else [f"data.image_size {own.data.image_size}"]
    return [*size, *differing, *([f"runs {row.runs}"] if row.runs != _PAPERS_RUNS else [])]


def _create(compare: Study[CompareConfig], config: Config) -> Any:
    return networks.create(config.network, compare.dataset.num_classes, compare.dataset.image_shape)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(report: list[dict[str, Any]]) -> str:
    """Markdown; a star marks published figures whose settings were others than ours."""
    header = ["method", "images per class", "accuracy (%)", "published", "seconds", "IOR", "HLR", "LRS"]
    rows = []
    for row in report:
        star = "\\*" if row["settings"] else ""
        figure = "-" if row["published"] is None else f"{row['published']:.1f}{star}"
        fair = [row.get(name) for name in ("improvement_over_random", "hard_label_recovery", "label_robust")]
        shown = ["-" if score is None else f"{100 * score:.1f}" for score in fair]
        rows.append([row["method"], _size(row), study.percent(row), figure, f"{row['seconds']:.1f}", *shown])
    return "\n\n".join([study.markdown(header, rows), *_notes(report)])


def _notes(report: list[dict[str, Any]]) -> list[str]:
    """How the settings differ from the papers': what all sets have in common, then what some rows have besides."""
    if not any(row["published"] for row in report):
        return []  # nothing stands beside ours that could be mistaken
    sets = [row for row in report if row["ipc"] is not None] or report
    common = [s for s in sets[0]["settings"] if all(s in row["settings"] for row in sets)]
    notes = [f"\\* not the papers' settings: {', '.join(common)}"] if common else []
    rest: dict[str, list[str]] = {}
    for row in report:
        own = ", ".join(s for s in row["settings"] if s not in common)
        if own:
            rest.setdefault(own, []).append(f"{row['method']} {_size(row)}")
    return notes + [f"\\* {', '.join(of)}: {own}" for own, of in rest.items()]


def _size(row: dict[str, Any]) -> str:
    return "all" if row["ipc"] is None else str(row["ipc"])


def _plot(path: Path, rows: list[Row], dataset: str) -> None:
    """Accuracy against images per class, and against the seconds that a set took (Figure 4)."""
    by_size: dict[str, list[tuple[float, float, float, str]]] = {}
    by_seconds: dict[str, list[tuple[float, float, float, str]]] = {}
    for row in sorted((row for row in rows if row.ipc is not None), key=lambda row: row.ipc or 0):
        mean, std = 100 * row.mean, 100 * row.std
        by_size.setdefault(row.method, []).append((row.ipc or 0, mean, std, ""))
        by_seconds.setdefault(row.method, []).append((row.seconds, mean, std, str(row.ipc)))
    whole = next((row for row in rows if row.ipc is None), None)
    path.unlink(missing_ok=True)  # a picture of other rows
    if by_size:
        if whole is not None:
            sizes = sorted({row.ipc for row in rows if row.ipc is not None})
            by_size["whole"] = [(size, 100 * whole.mean, 100 * whole.std, "") for size in sizes]
        panels = [
            ("images per class", by_size),
            ("seconds to make a set (at each point: images per class)", by_seconds),
        ]
        plots.curves(path, [("test accuracy (%)", x, lines) for x, lines in panels], dataset)


if __name__ == "__main__":
    sys.exit(main())
