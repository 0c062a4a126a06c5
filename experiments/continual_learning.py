"""Class-incremental learning from a memory of condensed images (Zhao & Bilen, section 3.5 and Figures 6 and 7).

    python -m experiments.continual_learning --config experiments/cifar100.py --steps 5 --memory 20 \\
        --methods random herding dsa dm --orders 5 --iterations-of dsa 1000 dm 20000

The classes arrive in `--steps` equal parts, in `--orders` random orders. In each step `--memory` images of every new
class are made from the images of these classes alone and are added to the memory, which is not touched again. Then a
fresh network, with outputs for all classes from the first step on, is trained on the memory and tested on the test
images of all classes seen so far. All methods are judged with the same networks, evaluation (that of `dm`) and seeds.

What `dm` and `random` make of a class depends on the images of that class alone (unless the network has batch norm or
was trained), so that one set of theirs serves every order and every number of steps. Other methods condense each step
of each order on its own. What is there is kept: the same command goes on where it was interrupted.
Expected on CIFAR-100 after the last of 5 / 10 steps (paper): random 24.8 / 24.8, herding 28.2 / 27.4, DSA 31.7 / 30.5,
DM 34.4 / 34.6 %.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dmjax.common import plots
from dmjax.common.errors import UserError
from dmjax.config import Config, Count
from dmjax.data import sampling, synthetic_set
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.accuracy import Accuracy
from dmjax.methods import Method
from dmjax.methods.coreset import Coreset
from dmjax.run import study
from dmjax.run.study import Study
from dmjax.settings import cli, experiment, fields


@dataclasses.dataclass(frozen=True)
class ContinualLearning(Config):
    """What this study varies."""

    ipc: Annotated[Count, tyro.conf.arg(name="memory")] = 20
    """Images of every class that are kept."""
    method: tyro.conf.Suppress[tyro.conf.Fixed[Any]] = Config.method
    methods: tuple[str, ...] = ("random", "herding", "dsa", "dm")
    """Names of methods, or module:Class of one's own. A flag of a method is for all of them that have it."""
    steps: Count = 5
    """Equal parts that the classes arrive in."""
    orders: Count = 5
    """Orders of the classes, with the seeds --seed, --seed + 1, ..."""
    iterations_of: tuple[tuple[str, Count], ...] = ()
    """Iterations by method, as in dm 500 dsa 20, where --iterations does not suit all."""
    learning_rates_of: tuple[tuple[str, float], ...] = ()
    """Learning rates of the synthetic images likewise."""


def class_order(seed: int, num_classes: int) -> np.ndarray:
    """The order in which the classes arrive, int [C]; by NumPy's legacy generator, as in the authors' code."""
    return np.random.RandomState(seed).permutation(num_classes)


class Continual:
    """What several methods remember along several orders of the classes: `orders` are [orders][steps] arrays."""

    def __init__(self, opened: Study[ContinualLearning], named: dict[str, Method]):
        """Raises a `UserError` where the classes do not split into the steps."""
        varied, classes = opened.varied, opened.dataset.num_classes
        if classes % varied.steps:  # more steps than classes included
            possible = ", ".join(str(n) for n in range(1, classes + 1) if classes % n == 0)
            split = f"{opened.dataset.name} has {classes} classes, which do not split evenly into {varied.steps} steps"
            raise UserError(f"{split}; --steps may be {possible}")
        if varied.seed + varied.orders > 2**32:
            raise UserError(f"the seed of every order must be below 2**32; lower --seed {varied.seed}")
        self.study, self.methods, self._steps = opened, named, varied.steps
        for flag, field in (("iterations_of", "iterations"), ("learning_rates_of", "optimizer.learning_rate")):
            self.methods = experiment.tune(self.methods, flag, field, getattr(varied, flag))
        seeds = range(varied.seed, varied.seed + varied.orders)
        self.orders = [np.split(class_order(seed, classes), varied.steps) for seed in seeds]

    def check(self) -> None:
        """Raises a `UserError` for what cannot work, before anything is computed."""
        dataset, base = self.study.dataset, self.study.config
        sampling.check_enough(dataset, base.ipc, "lower --memory")
        if np.bincount(dataset.test_labels, minlength=dataset.num_classes).min() == 0:
            raise UserError(f"every class of {dataset.name} needs test images, since every step is tested")
        for name, method in self.methods.items():
            if not method.makes_set:
                raise UserError(f"{name} makes no set to remember; leave it out of --methods")
            self.study.check(self.config(name))
            if not self.serves_all(name) and self._steps == dataset.num_classes:
                raise UserError(f"{name} cannot learn from steps of one class; lower --steps, or leave it out")
            if method.uses_trained_networks() and base.pretrained.path is not None:
                raise UserError(f"{name} trains networks of every step; --pretrained.path holds one's, leave it out")
            for run, config in self._runs(name):
                self.study.check_run(run, config)

    def config(self, name: str, order: int = 0) -> Config:
        """The configuration of the runs of a method along an order."""
        base, method = self.study.config, self.methods[name]
        # A coreset looks at one network, which is that of its step, whatever the seed.
        networks = 1 if isinstance(method, Coreset) else base.pretrained.networks
        pretrained = dataclasses.replace(base.pretrained, networks=networks)
        return dataclasses.replace(base, method=method, seed=base.seed + order, pretrained=pretrained)

    def serves_all(self, name: str) -> bool:
        """Whether one set of all classes serves every order and every split."""
        config = experiment.resolve(self.config(name))
        return config.method.separates_classes(config)

    def _place(self, name: str, order: int) -> str:
        return f"{name.replace(':', '.')}/steps_{self._steps}/order_{order}"

    def _runs(self, name: str) -> Iterator[tuple[str, Config]]:
        """The runs of a method by their names: one for all, or one for each step of each order."""
        if self.serves_all(name):
            yield f"{name.replace(':', '.')}/all", self.config(name)
            return
        for order, step in itertools.product(range(len(self.orders)), range(self._steps)):
            yield f"{self._place(name, order)}/step_{step + 1}", self.config(name, order)

    def parts(self, name: str) -> list[list[SyntheticSet | None]]:
        """What each step of each order adds to the memory, with the labels and names of all classes; None if failed."""
        dataset, runs = self.study.dataset, self._runs(name)
        if self.serves_all(name):
            whole = self.study.condense(*next(runs))
            return [[whole and whole.of_classes(classes) for classes in steps] for steps in self.orders]

        def part(classes: np.ndarray) -> SyntheticSet | None:
            made = self.study.condense(*next(runs), dataset.of_classes(classes))
            return made and made.among(classes, dataset.class_names)

        return [[part(classes) for classes in steps] for steps in self.orders]

    def curve(self, name: str) -> list[dict[str, Any] | None]:
        """Accuracy after every step over orders x networks; None where no order got that far."""
        values: list[list[float]] = [[] for _ in range(self._steps)]
        for order, parts in enumerate(self.parts(name)):
            config, memory = dataclasses.replace(self.study.config, seed=self.study.config.seed + order), []
            for step, part in enumerate(parts):
                if part is None:
                    break  # what is missing is missing from then on
                memory.append(part)
                view = self.study.dataset.tested_on(np.concatenate(self.orders[order][: step + 1]))
                cell = f"{self._place(name, order)}/after_{step + 1}"
                result = self.study.set_accuracy(cell, synthetic_set.join(memory), config, view)
                values[step] += result["values"] if result else []
        return [_summary(of_step) if of_step else None for of_step in values]


def _summary(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation and values; the seconds stand in the cells."""
    return {name: value for name, value in Accuracy.of(values).to_dict().items() if name != "training_seconds"}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    names = cli.values_of(arguments, "methods")
    named, rest = experiment.parse_methods(tuple(dict.fromkeys(names or ContinualLearning.methods)), arguments)
    prog = "python -m experiments.continual_learning"
    with study.opened(ContinualLearning, rest, prog, f"{__doc__}", given=arguments) as opened:
        learning = Continual(opened, named)
        learning.check()
        curves = {name: learning.curve(name) for name in learning.methods}
        seen = np.cumsum([len(classes) for classes in learning.orders[0]]).tolist()
        _plot(opened.folder / "continual_learning.png", curves, seen, opened.dataset.name)
        table = _table(curves, seen, {name: learning.serves_all(name) for name in curves}, opened.varied)
        orders = [np.concatenate(steps).tolist() for steps in learning.orders]
        used = {name: fields.to_dict(experiment.resolve(learning.config(name)).method) for name in curves}
        opened.finish({"classes_seen": seen, "accuracy": curves, "methods": used, "orders": orders}, table)


def _table(curves, seen: list[int], serves_all: dict[str, bool], varied: ContinualLearning) -> str:
    """Markdown: accuracy in per cent by method and classes seen, and below it how the sets were made."""
    header = ["method", "sets", *(f"{n} classes" for n in seen[:-1]), f"all {seen[-1]} classes"]
    sets = {True: "one for all", False: "one a step"}
    rows = [[name, sets[serves_all[name]], *map(study.percent, curve)] for name, curve in curves.items()]
    about = (
        f"Test accuracy (%) on the classes seen: mean +- standard deviation over {varied.orders} orders x "
        f"{varied.evaluation.networks} networks, with {varied.ipc} images of each class in memory. One for all: the "
        "images of a class depend on that class alone, so that one set of all classes serves every order and every "
        "number of steps. One a step: every step of every order has a set of its own, from the images of its classes."
    )
    return f"{study.markdown(header, rows)}\n\n{about}"


def _plot(path: Path, curves, seen: list[int], title: str) -> None:
    """Accuracy in per cent against classes seen, one curve a method."""
    lines = {}
    for name, curve in curves.items():
        points = [(n, 100 * a["mean"], 100 * a["std"]) for n, a in zip(seen, curve, strict=True) if a is not None]
        lines |= {name: points} if points else {}
    path.unlink(missing_ok=True)  # a picture of other methods
    if lines:
        plots.curves(path, [("test accuracy (%)", "classes seen", lines)], title, logarithmic=False)


if __name__ == "__main__":
    sys.exit(main())
