"""Every method on the same data, networks, evaluation and seeds, in one table (Zhao & Bilen, Table 1 and Figure 4).

    python -m dmjax.compare --config experiments/mnist.py --methods random herding dm whole --ipc 1 10 --runs 5

What is missing is run, what is there is kept: the same command goes on where it was interrupted, and tries again what
failed. A row is the mean and standard deviation over runs x networks. --config FILE names the experiment.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dmjax import methods, networks
from dmjax.common import files, plots
from dmjax.common.errors import UserError, near_misses
from dmjax.common.progress import progress_bar
from dmjax.config import ALL_GROUPS, AugmentConfig, Config, Count, Range
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.judge import Accuracy, judge_whole
from dmjax.evaluation.scores import scores
from dmjax.methods import Method
from dmjax.run import study
from dmjax.run.own_evaluation import judge_own
from dmjax.run.study import Study
from dmjax.settings import cli, experiment, fields

_PAPERS_RUNS = 5
_PAPERS_SIZES = (1, 10, 50)
_DIGITS = ("digits", "mnist", "svhn", "svhn_cropped")  # whose images the papers do not mirror


@dataclasses.dataclass(frozen=True)
class CompareConfig(Config):
    """What is compared."""

    ipc: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 1
    method: tyro.conf.Suppress[tyro.conf.Fixed[Any]] = Config.method
    methods: tuple[str, ...] = methods.COMPARED
    """Names of methods, or module:Class of one's own. A flag of a method is for all of them that have it."""
    sizes: Annotated[tuple[Count, ...], tyro.conf.arg(name="ipc")] = _PAPERS_SIZES
    """Images per class."""
    runs: Annotated[int, Range(1, 1000)] = _PAPERS_RUNS
    """Sets of each method and size, with the seeds --seed, --seed + 1, ..."""
    iterations_of: tuple[tuple[str, Count], ...] = ()
    """Iterations by method or by method and size, as in dm 500 dsa-ipc10 20, where --iterations does not suit all."""
    learning_rates_of: tuple[tuple[str, float], ...] = ()
    """Learning rates of the synthetic images likewise, where --optimizer.learning-rate does not suit all."""
    json: Path | None = None
    """Write the rows to this file as well."""


class Comparison:
    """A study of several methods, each with its own settings."""

    def __init__(self, opened: Study[CompareConfig], named: dict[str, Method]):
        self.study, self.varied, self.methods = opened, opened.varied, named
        self.sizes = sorted(set(self.varied.sizes))

    def config(self, name: str, ipc: int, run: int = 0) -> Config:
        """The configuration of one run of a method."""
        base = self.study.config
        method, varied = self.methods[name], self.varied
        chosen = {
            "iterations": _chosen(varied.iterations_of, name, ipc),
            "optimizer.learning_rate": _chosen(varied.learning_rates_of, name, ipc),
        }
        method = fields.replace(method, {field: value for field, value in chosen.items() if value is not None})
        return dataclasses.replace(base, method=method, ipc=ipc, seed=base.seed + run)

    def check(self) -> None:
        """Raises a `UserError` for what cannot work, before anything is computed."""
        varied = self.varied
        if not self.methods or not self.sizes or self.sizes[0] < 1:
            raise UserError("methods and ipc must name at least one each, and ipc be at least 1")
        for flag, field in (("iterations_of", "iterations"), ("learning_rates_of", "optimizer.learning_rate")):
            for cell, _ in getattr(varied, flag):
                name, size = re.fullmatch(r"(.*?)(?:-ipc([1-9]\d*))?", cell).groups()  # type: ignore[union-attr]
                if name not in self.methods:
                    known = f"{near_misses(name, list(self.methods))}"
                    raise UserError(f"{flag}: {name!r} is not among the methods that are compared; {known}")
                if size and int(size) not in self.sizes:
                    raise UserError(f"{flag}: {cell} is for {size} images per class, which --ipc does not name")
                if field not in fields.flatten(self.methods[name]):
                    raise UserError(f"{flag}: {name} has no {field}")
        for name, method in self.methods.items():
            for size in self.sizes if method.makes_set else ():
                config = experiment.resolve(self.config(name, size))
                method.check(config, self.study.dataset, f"lower the largest of --ipc, or leave out {name}")
                self.study.check(config)
                for run in range(varied.runs):
                    self.study.check_run(_cell(name, size, run), self.config(name, size, run))

    def measure(self, name: str, ipc: int | None) -> Iterator[dict[str, Any] | None]:
        """The accuracies of all runs at one size, each with the seconds that its set took to make."""
        runs, base = range(self.varied.runs), self.study.config
        if ipc is None:
            for run in runs:
                config = experiment.resolve(dataclasses.replace(base, seed=base.seed + run))
                measure = functools.partial(judge_whole, config, self.study.dataset)
                result = self.study.accuracy(f"{name}/run_{run}", measure)
                yield result and {**result, "making": result["training_seconds"] / len(result["values"])}
            return
        sets = self.study.condense_together({_cell(name, ipc, run): self.config(name, ipc, run) for run in runs})
        for run, (cell, synthetic) in enumerate(sets.items()):
            if synthetic is None:
                yield None
                continue
            config = dataclasses.replace(base, seed=base.seed + run)
            result = self.study.set_accuracy(f"{cell}/accuracy", synthetic, config)
            made = self.study.cell(f"{cell}/condense", dict)
            own = self._own_accuracy(name, ipc, run, synthetic)
            yield result and made and {**result, "making": made["condense_seconds"], "own": own}

    def _own_accuracy(self, name: str, ipc: int, run: int, synthetic: SyntheticSet) -> dict[str, Any] | None:
        """The accuracy of a set by its method's own evaluation; None where it has none, or where that fails."""
        config = experiment.resolve(self.config(name, ipc, run))
        if config.method.own_evaluation is None:
            return None
        measure = functools.partial(judge_own, config, self.study.dataset, synthetic)
        return self.study.accuracy(f"{_cell(name, ipc, run)}/own", measure, synthetic.digest())

    def settings(self, name: str, ipc: int | None, runs: int) -> list[str]:
        """How the settings of a row differ from the papers', as `name value`."""
        base, method = self.study.config, self.methods[name]
        own = experiment.resolve(base if ipc is None else self.config(name, ipc))
        without_flip = self.study.dataset.name in _DIGITS
        strategy = ALL_GROUPS.replace("flip_", "") if without_flip else ALL_GROUPS
        papers = Config(method=type(own.method)(), ipc=own.ipc, data=own.data, augment=AugmentConfig(strategy=strategy))
        papers = experiment.resolve(papers)
        if self._network(own) == self._network(papers):  # however it is written
            papers = dataclasses.replace(papers, network=own.network)
        matters = {"network", "augment", "evaluation", *(["pretrained"] if method.uses_trained_networks() else [])}
        own_fields = fields.flatten(own.method) if ipc is not None else {}
        ignored = {*_NO_MATTER, "evaluation.epochs" if ipc is None else "evaluation.whole_epochs"}
        reference = {**fields.flatten(papers), "evaluation.whole_epochs": None}  # the papers do not say
        differing = [
            f"{field} {_shown(value)}"
            for field, value in fields.flatten(own).items()
            if (field.partition(".")[0] in matters or field in own_fields)
            and field not in ignored
            and value != reference[field]
        ]
        size = [] if own.data.image_size is None else [f"data.image_size {own.data.image_size}"]
        return [*size, *differing, *([f"runs {runs}"] if runs != _PAPERS_RUNS else [])]

    def _network(self, config: Config) -> Any:
        dataset = self.study.dataset
        return networks.create(config.network, dataset.num_classes, dataset.image_shape)

    def rows(self, found: Mapping[tuple[str, int | None], Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The rows of the table, as JSON values, from the results of all runs that have succeeded.

        `seconds` is the mean over runs of the time to make a set, training a network for it included, compilation and
        evaluation left out; for the whole set, that of training and testing one network.
        """
        rows = [self._row(name, size, results) for (name, size), results in found.items() if results]
        bounds = {name: method.bound for name, method in self.methods.items() if method.bound}
        means = {(bounds.get(row["method"]), row["ipc"]): row["mean"] for row in rows}
        for row in rows:
            ipc = row["ipc"]
            fair = scores(row["mean"], means.get(("lower", ipc)), means.get(("upper", None)))._asdict()
            row |= {name: score for name, score in fair.items() if score is not None and ipc is not None}
            row["settings"] = self.settings(row["method"], ipc, row["runs"])
        return rows

    def _row(self, name: str, ipc: int | None, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        own = [result["own"] for result in results if result.get("own")]
        return {
            "method": name,
            "ipc": ipc,
            **_pooled(results),
            **({"own_evaluation": {"name": self.methods[name].own_evaluation, **_pooled(own)}} if own else {}),
            "runs": len(results),
            "seconds": float(np.mean([result["making"] for result in results])),
            "published": _published(self.methods[name], self.study.dataset.name, ipc),
            "published_note": self.methods[name].published_note,
        }


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    names = cli.values_of(arguments, "methods")
    named, rest = experiment.parse_methods(dict.fromkeys(CompareConfig.methods if names is None else names), arguments)
    with study.opened(CompareConfig, rest, "python -m dmjax.compare", f"{__doc__}", arguments) as opened:
        compare, varied = Comparison(opened, named), opened.varied
        if varied.json is not None:
            files.check_writable(varied.json)
        compare.check()
        cells = [(name, size) for name, m in named.items() for size in (compare.sizes if m.makes_set else [None])]
        found: dict[tuple[str, int | None], list[dict[str, Any]]] = {cell: [] for cell in cells}
        with progress_bar(None, "comparing", varied.progress, len(cells) * varied.runs) as bar:
            for name, size in cells:
                bar.set_postfix_str(f"{name} {size or ''}".strip())
                for result in compare.measure(name, size):
                    found[name, size] += [result] if result is not None else []
                    bar.update()
        rows = compare.rows(found)
        if varied.json is not None:
            files.write_json(varied.json, {"rows": rows})
        _plot(opened.folder / "comparison.png", rows, opened.dataset.name)
        opened.finish({"rows": rows}, _table(rows))


def _pooled(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and all values of the accuracies of several runs."""
    values, top5 = ([v for result in results for v in result.get(name, ())] for name in ("values", "top5"))
    accuracy = Accuracy.of(values, top5=top5).to_dict()
    return {name: value for name, value in accuracy.items() if name != "training_seconds"}


def _chosen(given: Sequence[tuple[str, Any]], name: str, ipc: int) -> Any:
    """What is given for a method at one size, or for the method; None where nothing is."""
    return dict(given).get(f"{name}-ipc{ipc}", dict(given).get(name))


def _cell(name: str, ipc: int, run: int) -> str:
    return f"{name.replace(':', '.')}/ipc_{ipc}/run_{run}"


def _published(method: Method, dataset: str, ipc: int | None) -> float | None:
    """The published accuracy in per cent, by images per class; None where there is none."""
    figures = vars(type(method)).get("published", {}).get(dataset)  # those that it has from another one are not its own
    if figures is None or (ipc is not None and ipc not in _PAPERS_SIZES):
        return None
    return figures[_PAPERS_SIZES.index(ipc or 1)]


_NO_MATTER = ("evaluation.every", "evaluation.random_real", "evaluation.whole_dataset", "pretrained.path")
"""Fields that do not change an accuracy."""


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(report: list[dict[str, Any]]) -> str:
    """Markdown; a star marks published figures whose settings were others than ours."""
    further = {
        "own evaluation (%)": lambda row: study.percent(row["own_evaluation"]) if "own_evaluation" in row else "-",
        "top-5 (%)": lambda row: f"{100 * np.mean(row['top5']):.1f}" if "top5" in row else "-",
    }
    further = {name: shown for name, shown in further.items() if any(shown(row) != "-" for row in report)}
    header = ["method", "images per class", "accuracy (%)", *further, "published", "seconds", "IOR", "HLR", "LRS"]
    rows = []
    for row in report:
        star = "\\*" if row["settings"] else ""
        figure = "-" if row["published"] is None else f"{row['published']:.1f}{star}"
        fair = [row.get(name) for name in ("improvement_over_random", "hard_label_recovery", "label_robust")]
        shown = ["-" if score is None else f"{100 * score:.1f}" for score in fair]
        cells = [column(row) for column in further.values()]
        rows.append([row["method"], _size(row), study.percent(row), *cells, figure, f"{row['seconds']:.1f}", *shown])
    return "\n\n".join([study.markdown(header, rows), *_notes(report)])


def _notes(report: list[dict[str, Any]]) -> list[str]:
    """How the settings differ from the papers': what all sets have in common, then what some rows have besides."""
    if not any(row["published"] for row in report):
        return []  # nothing stands beside ours that could be mistaken
    sets = [row for row in report if row["ipc"] is not None] or report
    common = [s for s in sets[0]["settings"] if all(s in row["settings"] for row in sets)]
    notes = [f"\\* not the papers' settings: {', '.join(common)}"] if common else []
    notes += dict.fromkeys(
        f"\\* published for {row['method']}: {row['published_note']}"
        for row in report
        if row["published"] and row["published_note"]
    )
    rest: dict[str, list[str]] = {}
    for row in report:
        own = ", ".join(s for s in row["settings"] if s not in common)
        if own:
            rest.setdefault(own, []).append(f"{row['method']} {_size(row)}")
    return notes + [f"\\* {', '.join(of)}: {own}" for own, of in rest.items()]


def _size(row: dict[str, Any]) -> str:
    return "all" if row["ipc"] is None else str(row["ipc"])


def _plot(path: Path, rows: Sequence[dict[str, Any]], dataset: str) -> None:
    """Accuracy against images per class, and against the seconds that a set took (Figure 4)."""
    by_size: dict[str, list[tuple[float, float, float, str]]] = {}
    by_seconds: dict[str, list[tuple[float, float, float, str]]] = {}
    sets = sorted((row for row in rows if row["ipc"] is not None), key=lambda row: row["ipc"])
    for row in sets:
        name, mean, std = row["method"], 100 * row["mean"], 100 * row["std"]
        by_size.setdefault(name, []).append((row["ipc"], mean, std, ""))
        by_seconds.setdefault(name, []).append((row["seconds"], mean, std, str(row["ipc"])))
    path.unlink(missing_ok=True)  # a picture of other rows
    if sets:
        for whole in (row for row in rows if row["ipc"] is None):
            line = [(row["ipc"], 100 * whole["mean"], 100 * whole["std"], "") for row in sets]
            by_size[whole["method"]] = sorted(set(line))
        seconds = "seconds to make a set (at each point: images per class)"
        panels = [("images per class", by_size), (seconds, by_seconds)]
        plots.curves(path, [("test accuracy (%)", x, lines) for x, lines in panels], dataset)


if __name__ == "__main__":
    sys.exit(main())
