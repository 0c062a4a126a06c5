"""Every method on the same data, networks, evaluation and seeds, in one table (Zhao & Bilen, Table 1 and Figure 4).

    python -m dmjax.compare --config experiments/mnist.py --methods random herding dm whole --ipc 1 10 --runs 5

What is missing is run, what is there is kept: the same command goes on where it was interrupted, and tries again what
failed. A row is the mean and standard deviation over runs x networks. --config FILE names the experiment.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dmjax import cli, coreset, files, networks, plots, published, study
from dmjax.config import CORESETS, DISTRIBUTION, GRADIENT, METHOD_DEFAULTS, Config, EvaluationConfig, flatten
from dmjax.errors import UserError, near_misses
from dmjax.evaluate import evaluate, evaluate_whole
from dmjax.progress import progress_bar
from dmjax.scores import Scores, scores
from dmjax.study import Study

METHODS = (*CORESETS, *GRADIENT, *DISTRIBUTION, "whole")


@dataclasses.dataclass(frozen=True)
class CompareConfig(Config):
    """What is compared."""

    ipc: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 1
    method: tyro.conf.Suppress[tyro.conf.Fixed[str]] = "dm"  # type: ignore[assignment]
    methods: tuple[str, ...] = ("random", "herding", "dm")
    """random, herding, kcenter, forgetting: real images; dc, dsa, dm: condensed; whole: the whole training set."""
    sizes: Annotated[tuple[int, ...], tyro.conf.arg(name="ipc")] = (1, 10, 50)
    """Images per class."""
    runs: int = 5
    """Sets of each method and size, with the seeds --seed, --seed + 1, ..."""
    iterations_of: tuple[tuple[str, int], ...] = ()
    """Iterations by method, as METHOD NUMBER pairs, where --iterations does not suit all."""
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
                for run in range(varied.runs):
                    bar.set_postfix_str(f"{method} {size or ''}".strip())
                    result = _measure(compare, method, size, run)
                    found[method, size] += [result] if result is not None else []
                    bar.update()
        rows = [_row(method, size, of_cell) for (method, size), of_cell in found.items() if of_cell]
        reduced = _reduced(varied, methods)
        report = [
            {**_to_dict(row, rows, compare.dataset.name), "settings": reduced.get(row.method, [])} for row in rows
        ]
        if varied.json is not None:
            files.write_json(varied.json, {"rows": report})
        _plot(compare.folder / "comparison.png", rows, compare.dataset.name)
        compare.finish({"rows": report}, _table(report, reduced))


def _check(compare: Study[CompareConfig], methods: Sequence[str], sizes: Sequence[int]) -> None:
    """Raises a `UserError` for what cannot work, before anything is computed."""
    varied = compare.varied
    for name in (*methods, *(name for name, _ in varied.iterations_of)):
        if name not in METHODS:
            raise UserError(f"unknown method {name!r}; {near_misses(name, list(METHODS))}")
    if not methods or not sizes or min(sizes) < 1 or varied.runs < 1:
        raise UserError("methods, ipc and runs must name at least one each, and ipc be at least 1")
    for method in methods:
        if method in CORESETS:
            coreset.check(compare.dataset, max(sizes), f"lower the largest of --ipc, or leave out {method}")
        if method != "whole":
            compare.check(_config(compare, method, max(sizes), 0))


def _config(compare: Study[CompareConfig], method: str, ipc: int, run: int) -> Config:
    iterations = dict(compare.varied.iterations_of).get(method, compare.config.iterations)
    base = dataclasses.replace(compare.config, method=method, ipc=ipc, seed=compare.config.seed + run)
    return dataclasses.replace(base, iterations=iterations if method not in CORESETS else None)


def _measure(compare: Study[CompareConfig], method: str, ipc: int | None, run: int) -> dict[str, Any] | None:
    """The accuracy of one set, and the seconds that it took to make."""
    name = f"{method}/ipc_{ipc}/run_{run}" if ipc else f"{method}/run_{run}"
    if ipc is None:
        config = dataclasses.replace(compare.config, seed=compare.config.seed + run)
        config = dataclasses.replace(config, network=networks.resolve(config.network))
        result = compare.cell(name, lambda: evaluate_whole(config, compare.dataset).to_dict())
        return result and {**result, "making": (result["seconds"] - result["compile_seconds"]) / len(result["values"])}
    synthetic = compare.condense(name, _config(compare, method, ipc, run))
    if synthetic is None:
        return None
    result = compare.cell(
        f"{name}/accuracy",
        lambda: evaluate(
            synthetic,
            compare.dataset,
            seed=compare.config.seed + run,
            progress=compare.config.progress,
            description=name,
            **flatten(compare.config.evaluation),
        ).to_dict(),
    )
    made = compare.cell(f"{name}/condense", dict)
    return result and made and {**result, "making": made["condense_seconds"]}


def _row(method: str, ipc: int | None, results: list[dict[str, Any]]) -> Row:
    values = tuple(value for result in results for value in result["values"])
    return Row(method, ipc, values, float(np.mean([result["making"] for result in results])), len(results))


def _to_dict(row: Row, rows: list[Row], dataset: str) -> dict[str, Any]:
    fair = _scores(row, rows)
    return {
        "method": row.method,
        "ipc": row.ipc,
        "mean": row.mean,
        "std": row.std,
        "runs": row.runs,
        "values": list(row.values),
        "seconds": row.seconds,
        "published": published.accuracy(dataset, row.method, row.ipc),
        **({} if fair is None else fair._asdict()),
    }


def _scores(row: Row, rows: list[Row]) -> Scores | None:
    """Against random images of the same number and the whole set, where both were measured."""
    means = {(other.method, other.ipc): other.mean for other in rows}
    random, whole = means.get(("random", row.ipc)), means.get(("whole", None))
    return None if None in (random, whole) or row.ipc is None else scores(row.mean, random, whole)


def _reduced(config: CompareConfig, methods: Sequence[str]) -> dict[str, list[str]]:
    """By method, how the settings differ from the papers'."""
    defaults, given = flatten(EvaluationConfig()), flatten(config.evaluation)
    relevant = ("networks", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay")
    differing = [f"{name} {given[name]:g}" for name in relevant if given[name] != defaults[name]]
    differing += [f"runs {config.runs}"] if config.runs != 5 else []
    reduced = {}
    for method in methods:
        own = list(differing)
        iterations = dict(config.iterations_of).get(method, config.iterations)
        if method in METHOD_DEFAULTS:
            if iterations not in (None, METHOD_DEFAULTS[method]["iterations"]):
                own.append(f"iterations {iterations}")
            if config.batch_real != Config.batch_real:
                own.append(f"batch_real {config.batch_real}")
        if own:
            reduced[method] = own
    return reduced


def _table(report: list[dict[str, Any]], reduced: dict[str, list[str]]) -> str:
    """Markdown; a star marks published figures whose settings were others than ours."""
    header = ["method", "images per class", "accuracy (%)", "published", "seconds", "IOR", "HLR", "LRS"]
    rows = []
    for row in report:
        star = "\\*" if row["settings"] else ""
        figure = "-" if row["published"] is None else f"{row['published']:.1f}{star}"
        fair = [row.get(name) for name in ("improvement_over_random", "hard_label_recovery", "label_robust")]
        shown = ["-" if score is None else f"{100 * score:.1f}" for score in fair]
        size = "all" if row["ipc"] is None else str(row["ipc"])
        rows.append([row["method"], size, study.percent(row), figure, f"{row['seconds']:.1f}", *shown])
    if not any(row["published"] for row in report):
        reduced = {}  # nothing stands beside ours that could be mistaken
    together: dict[str, list[str]] = {}
    for method, own in reduced.items():
        together.setdefault(", ".join(own), []).append(method)
    notes = [f"\\* not the papers' settings for {', '.join(of)}: {own}" for own, of in together.items()]
    return "\n\n".join([study.markdown(header, rows), *notes])


def _plot(path: Path, rows: list[Row], dataset: str) -> None:
    """Accuracy against images per class, and against the seconds that a set took (Figure 4)."""
    by_size: dict[str, list[tuple[float, float, float]]] = {}
    by_seconds: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row.ipc is not None:
            by_size.setdefault(row.method, []).append((row.ipc, 100 * row.mean, 100 * row.std))
            by_seconds.setdefault(row.method, []).append((max(row.seconds, 0.01), 100 * row.mean, 100 * row.std))
    whole = next((row for row in rows if row.ipc is None), None)
    if by_size:
        if whole is not None:
            sizes = {row.ipc for row in rows if row.ipc is not None}
            by_size["whole"] = [(size, 100 * whole.mean, 0.0) for size in sizes]
        panels = [("images per class", by_size), ("seconds to make a set", by_seconds)]
        plots.curves(path, [("test accuracy (%)", x, lines) for x, lines in panels], dataset)


if __name__ == "__main__":
    sys.exit(main())
