"""Every method on the same data, networks, evaluation and seeds, in one table (Zhao & Bilen, Table 1 and Figure 4).

    python -m dmjax.compare --config experiments/mnist.py --methods random herding dm whole --ipc 1 10 --runs 5

    python -m dmjax.compare --config experiments/mnist.py --methods random dm --protocols dm idc --robustness true

What is missing is run, what is there is kept: the same command goes on where it was interrupted, and tries again what
failed. A row is the mean and standard deviation over runs x networks. --config FILE names the experiment. Rows of one
table can be compared: they have the same protocol and the same kind of labels. Random real images stand beside sets of
every factor, packed as these are.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from dmjax import methods, reporting
from dmjax.common import files
from dmjax.common.errors import UserError, near_misses
from dmjax.common.progress import progress_bar
from dmjax.config import Config, Count, ProtocolName, Range
from dmjax.data import sampling
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import protocols
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.judge import judge_random_real, judge_whole
from dmjax.evaluation.scores import scores
from dmjax.methods import Method
from dmjax.run import comparison, papers, study
from dmjax.run.own_evaluation import judge_own
from dmjax.run.study import Study
from dmjax.settings import cli, experiment, fields


@dataclasses.dataclass(frozen=True)
class CompareConfig(Config):
    """What is compared."""

    ipc: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 1
    method: tyro.conf.Suppress[tyro.conf.Fixed[Any]] = Config.method
    methods: tuple[str, ...] = methods.COMPARED
    """Names of methods, or module:Class of one's own. A flag of a method is for all of them that have it."""
    sizes: Annotated[tuple[Count, ...], tyro.conf.arg(name="ipc")] = papers.SIZES
    """Images per class."""
    runs: Annotated[int, Range(1, 1000)] = papers.RUNS
    """Sets of each method and size, with the seeds --seed, --seed + 1, ..."""
    iterations_of: tuple[tuple[str, Count], ...] = ()
    """Iterations by method or by method and size, as in dm 500 dsa-ipc10 20, where --iterations does not suit all."""
    learning_rates_of: tuple[tuple[str, float], ...] = ()
    """Learning rates of the synthetic images likewise, where --optimizer.learning-rate does not suit all."""
    protocols: tuple[ProtocolName, ...] = ()
    """Ways of evaluating every set (by default the one of --evaluation). What else --evaluation has is for all."""
    robustness: bool = False
    """Also evaluate every set without augmentation, for the augmentation-robust score (ARS)."""
    json: Path | None = None
    """Write the rows to this file as well."""


class Result(NamedTuple):
    """One set, or the whole training set, judged by one protocol, as JSON values.

    Attributes:
      accuracy: As `Accuracy.to_dict` gives it.
      plain: The same without augmentation; None where it was not asked for.
      own: The accuracy by the method's own evaluation; None where it has none.
      seconds: That the set took to make; for the whole set, to train and test one network.
      factor: Of the set.
      labels: What networks learned from, for a heading.
    """

    accuracy: dict[str, Any]
    plain: dict[str, Any] | None
    own: dict[str, Any] | None
    seconds: float
    factor: int
    labels: str


class Cell(NamedTuple):
    """What a row of the table is about.

    Attributes:
      protocol: Of the evaluation.
      method: Its name.
      size: Images per class; None for the whole training set.
      packed: Factor of the random real images that stand beside sets of this factor; None for sets of the method.
    """

    protocol: str
    method: str
    size: int | None
    packed: int | None = None


class Comparison:
    """A study of several methods, each with its own settings."""

    def __init__(self, opened: Study[CompareConfig], named: dict[str, Method]):
        self.study, self.varied, self.methods = opened, opened.varied, named
        self.sizes = sorted(set(self.varied.sizes))
        self.usual = opened.config.evaluation.protocol or protocols.DEFAULT
        self.protocols = tuple(dict.fromkeys(self.varied.protocols or [self.usual]))
        self.lower = next((name for name, method in named.items() if method.bound == "lower"), None)

    def judged_by(self, protocol: str, run: int = 0, plain: bool = False) -> Config:
        """The resolved configuration by which all sets of a run are judged, or that without augmentation."""
        base, evaluation = self.study.config, self.study.config.evaluation
        if protocol != self.usual:
            evaluation = dataclasses.replace(self.study.given.evaluation, protocol=protocol)
        config = experiment.resolve(dataclasses.replace(base, evaluation=evaluation, seed=base.seed + run))
        if not plain:
            return config
        off = dataclasses.replace(config.evaluation, strategy="none", cutmix=0.0, mixup=0.0, resized_crop=0.0)
        return dataclasses.replace(config, evaluation=off)

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
        for protocol in self.protocols:
            self.judged_by(protocol)
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
                if self.lower is not None:
                    packed = size * config.method.factor_of(config, self.study.dataset.image_shape) ** 2
                    remedy = f"lower the largest of --ipc or the factor of {name}, or leave out {self.lower}"
                    sampling.check_enough(self.study.dataset, packed, remedy)
                for run in range(varied.runs):
                    self.study.check_run(comparison.cell_name(name, size, run), self.config(name, size, run))

    def measure(self, name: str, ipc: int | None) -> Iterator[dict[Cell, Result]]:
        """Every run of a method at one size by every protocol, as far as it succeeds."""
        runs = range(self.varied.runs)
        if ipc is None:
            for run in runs:
                yield self._judged(name, None, lambda protocol, run=run: self._whole(name, protocol, run))
            return
        sets = self.study.condense_together(
            {comparison.cell_name(name, ipc, run): self.config(name, ipc, run) for run in runs}
        )
        for run, (cell, synthetic) in enumerate(sets.items()):
            made = synthetic and self.study.cell(f"{cell}/condense", dict)
            if synthetic is None or made is None:
                yield {}
                continue
            one = functools.partial(self._set, cell, synthetic, made["condense_seconds"], run)
            judged = self._judged(name, ipc, one)
            own = self._own_accuracy(name, ipc, run, synthetic)
            first = next(iter(judged), None)  # that evaluation is the same whatever the protocol
            yield {key: result._replace(own=own) if key == first else result for key, result in judged.items()}

    def measure_packed(self, ipc: int, factor: int) -> Iterator[dict[Cell, Result]]:
        """Random real images that are packed as sets of a factor are, drawn anew for every network."""
        assert self.lower is not None
        for run in range(self.varied.runs):
            cell = comparison.cell_name(f"{self.lower}_factor_{factor}", ipc, run)
            one = functools.partial(self._packed, cell, ipc, factor, run)
            yield self._judged(self.lower, ipc, one, factor)

    def _judged(
        self, name: str, ipc: int | None, judge: Callable[[str], Result | None], packed: int | None = None
    ) -> dict[Cell, Result]:
        """What `judge` gives for each protocol, where it succeeds."""
        results = {Cell(protocol, name, ipc, packed): judge(protocol) for protocol in self.protocols}
        return {cell: result for cell, result in results.items() if result is not None}

    def _whole(self, name: str, protocol: str, run: int) -> Result | None:
        measure = functools.partial(judge_whole, self.judged_by(protocol, run), self.study.dataset)
        file = f"{name}/run_{run}" + ("" if protocol == self.usual else f"_{protocol}")
        result = self.study.accuracy(file, measure)
        if result is None:
            return None
        return Result(
            result, None, None, result["training_seconds"] / len(result["values"]), 1, comparison.LABELS["hard"]
        )

    def _set(self, cell: str, synthetic: SyntheticSet, seconds: float, run: int, protocol: str) -> Result | None:
        measure = lambda config, file: self.study.set_accuracy(f"{cell}/{file}", synthetic, config)  # noqa: E731
        soft = synthetic.labels.ndim == 2
        return self._with_plain(measure, protocol, run, seconds, synthetic.factor, soft)

    def _packed(self, cell: str, ipc: int, factor: int, run: int, protocol: str) -> Result | None:
        def measure(config: Config, file: str) -> dict[str, Any] | None:
            judge = functools.partial(judge_random_real, config, self.study.dataset, ipc, factor=factor)
            return self.study.accuracy(f"{cell}/{file}", judge)

        return self._with_plain(measure, protocol, run, 0.0, factor, soft=False)

    def _with_plain(
        self,
        measure: Callable[[Config, str], dict[str, Any] | None],
        protocol: str,
        run: int,
        seconds: float,
        factor: int,
        soft: bool,
    ) -> Result | None:
        """What `measure(config, file)` gives with augmentation, and without it where that is asked for."""
        config, file = self.judged_by(protocol, run), "accuracy" if protocol == self.usual else f"accuracy_{protocol}"
        accuracy = measure(config, file)
        plain = measure(self.judged_by(protocol, run, plain=True), f"{file}_plain") if self.varied.robustness else None
        if accuracy is None or (plain is None and self.varied.robustness):
            return None
        labels = config.evaluation.labels
        assert labels is not None, "the configuration is not resolved"
        return Result(
            accuracy, plain, None, seconds, factor, comparison.LABELS["soft" if soft and labels == "stored" else labels]
        )

    def packed(self, found: Mapping[Cell, Sequence[Result]]) -> list[tuple[int, int]]:
        """The sizes and factors of sets beside which no random real images stand yet, where these are compared."""
        there = {(cell.size, r.factor): cell.method for cell, results in found.items() for r in results if cell.size}
        beside = {(c.size, r.factor) for c, results in found.items() for r in results if c.method == self.lower}
        return [] if self.lower is None else sorted(key for key in there if key not in beside)

    def _own_accuracy(self, name: str, ipc: int, run: int, synthetic: SyntheticSet) -> dict[str, Any] | None:
        """The accuracy of a set by its method's own evaluation; None where it has none, or where that fails."""
        config = experiment.resolve(self.config(name, ipc, run))
        if config.method.own_evaluation is None:
            return None
        measure = functools.partial(judge_own, config, self.study.dataset, synthetic)
        return self.study.accuracy(f"{comparison.cell_name(name, ipc, run)}/own", measure, synthetic.digest())

    def settings(self, name: str, ipc: int | None, runs: int, protocol: str | None = None) -> list[str]:
        """How the settings of a row differ from the papers', as `name value`."""
        own = experiment.resolve(self.study.config if ipc is None else self.config(name, ipc))
        own = dataclasses.replace(own, evaluation=self.judged_by(protocol or self.usual).evaluation)
        return papers.differing(own, self.study.dataset, ipc is None, runs)

    def rows(self, found: Mapping[Cell, Sequence[Result]]) -> list[dict[str, Any]]:
        """The rows of the table, as JSON values, from the results of all runs that have succeeded.

        `seconds` is the mean over runs of the time to make a set, training a network for it included, compilation and
        evaluation left out; for the whole set, that of training and testing one network. Scores compare with random
        images of the same protocol and factor.
        """
        rows = [self._row(cell, results) for cell, results in found.items() if results]
        bounds = {name: method.bound for name, method in self.methods.items() if method.bound}
        found_of = {(bounds.get(row["method"]), row["protocol"], row["ipc"], row["factor"]): row for row in rows}
        for row in rows:
            protocol, ipc, factor = row["protocol"], row["ipc"], row["factor"]
            random = found_of.get(("lower", protocol, ipc, factor), {})
            whole = found_of.get(("upper", protocol, None, 1), {})
            plain = row.get("plain", {}).get("mean"), random.get("plain", {}).get("mean")
            fair = scores(row["mean"], random.get("mean"), whole.get("mean"), plain=plain)._asdict()
            row |= {name: score for name, score in fair.items() if score is not None and ipc is not None}
            row["settings"] = self.settings(row["method"], ipc, row["runs"], protocol)
        return rows

    def _row(self, cell: Cell, results: Sequence[Result]) -> dict[str, Any]:
        method, dataset = self.methods[cell.method], self.study.dataset
        own = [result.own for result in results if result.own is not None]
        plain = [result.plain for result in results if result.plain is not None]
        height, width, _ = dataset.image_shape
        per_class = float(np.mean(dataset.counts)) if cell.size is None else cell.size
        return {
            "method": cell.method,
            "ipc": cell.size,
            "protocol": cell.protocol,
            "labels": results[0].labels,
            "factor": results[0].factor,
            "pixels": round(per_class * height * width),
            **_pooled([result.accuracy for result in results]),
            **({"plain": _pooled(plain)} if plain else {}),
            **({"own_evaluation": {"name": method.own_evaluation, **_pooled(own)}} if own else {}),
            "runs": len(results),
            "seconds": float(np.mean([result.seconds for result in results])),
            "published": None if cell.packed else papers.published(method, dataset.name, cell.size),
            "published_note": method.published_note,
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
        found: dict[Cell, list[Result]] = {}
        print(_intent(compare), flush=True)
        with progress_bar(None, "comparing", varied.progress, len(cells) * varied.runs) as bar:
            for name, size in cells:
                bar.set_postfix_str(f"{name} {size or ''}".strip())
                for results in compare.measure(name, size):
                    _add(found, results)
                    bar.update()
            for size, factor in compare.packed(found):
                bar.set_postfix_str(f"{compare.lower} {size}, factor {factor}")
                for results in compare.measure_packed(size, factor):
                    _add(found, results)
        rows = compare.rows(found)
        if varied.json is not None:
            files.write_json(varied.json, {"rows": rows})
        comparison.plot(opened.folder / "comparison.png", rows, opened.dataset.name)
        try:
            opened.finish({"rows": rows}, comparison.table(rows))
        finally:  # where something failed too: the rest is there
            reporting.try_to_write(opened.folder)


def _intent(compare: Comparison) -> str:
    """What is about to be computed, for whoever did not mean that much."""
    sets = sum(method.makes_set for method in compare.methods.values()) * len(compare.sizes) * compare.varied.runs
    names, sizes = " ".join(compare.methods), " ".join(map(str, compare.sizes))
    runs = compare.varied.runs
    return (
        f"{compare.study.dataset.name}: {names}, at {sizes} images per class, {runs} run(s) each, judged by "
        f"{' '.join(compare.protocols)}: {sets} sets; what is already there is kept"
    )


def _add(found: dict[Cell, list[Result]], results: Mapping[Cell, Result]) -> None:
    for cell, result in results.items():
        found.setdefault(cell, []).append(result)


def _pooled(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and all values of the accuracies of several runs."""
    accuracy = Accuracy.pooled(results).to_dict()
    return {name: value for name, value in accuracy.items() if name != "training_seconds"}


def _chosen(given: Sequence[tuple[str, Any]], name: str, ipc: int) -> Any:
    """What is given for a method at one size, or for the method; None where nothing is."""
    return dict(given).get(f"{name}-ipc{ipc}", dict(given).get(name))


if __name__ == "__main__":
    sys.exit(main())
