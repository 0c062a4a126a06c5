"""Architecture search (Zhao & Bilen, section 3.6, Table 5 and Figure F8): does a small set rank networks as the whole?

    python -m experiments.architecture_search --config experiments/cifar10.py

ConvNets of a grid (by default the paper's 720) are trained on proxy sets, one of each of `--methods`, on the whole set
for as many iterations (early stopping), and on the whole set for `--evaluation.whole-epochs`. A tenth of the training
images is held out for validation and is in none of these sets. `--widths`, `--depths`, `--activations`, `--norms` and
`--poolings` name another grid, `--subset N` draws N of its networks. The defaults are the paper's, whatever the
experiment says of them: 50 images per class, batches of 250, 200 and 100 epochs, 5 trainings each.
Expected on CIFAR-10 (paper), rank correlation over the best 5 %: random -0.04, dsa 0.68, dm 0.76, early stopping 0.11.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import tyro

from dmjax import networks
from dmjax.common import plots
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import Config, Count, NetworkConfig, NonNegative, Strategy
from dmjax.data import Dataset, sampling
from dmjax.evaluation import on_device, ranking, training
from dmjax.evaluation.proxy import Proxy, summarise, train
from dmjax.run import study
from dmjax.run.study import Study
from dmjax.settings import cli, experiment, fields

Norm = Literal["none", "batch", "layer", "instance", "group"]
EARLY, WHOLE = "early stopping", "whole"
_HELD_OUT = 0.1
_PAPERS = {"ipc": 50, "evaluation.networks": 5, "evaluation.epochs": 200, "evaluation.whole_epochs": 100}
_PAPERS |= {"evaluation.batch_size": 250}
_NOTE = """Test accuracy: of the network that is ranked first by validation accuracy, after training on the whole set.
rho: Spearman's, of test accuracies after training on the set of this row and on the whole set, over the networks that
are highest by validation accuracy on the former, and over all; in brackets bootstrap intervals of 95 %. Seconds: to
train and test all networks, without compiling."""


@dataclasses.dataclass(frozen=True)
class ArchitectureSearch(Config):
    """What this study varies."""

    method: tyro.conf.Suppress[tyro.conf.Fixed[Any]] = Config.method
    methods: tuple[str, ...] = ("random", "herding", "dsa", "dm")
    """Methods that make the proxy sets, with the configured network. A flag of a method is for all that have it."""
    widths: tuple[Count, ...] = (32, 64, 128, 256)
    """Channels of every block."""
    depths: tuple[Count, ...] = (1, 2, 3, 4)
    """Numbers of blocks; networks that are too deep for the images are left out."""
    activations: tuple[Literal["sigmoid", "relu", "leakyrelu", "swish"], ...] = ("sigmoid", "relu", "leakyrelu")
    """After every norm."""
    norms: tuple[Norm, ...] = ("none", "batch", "layer", "instance", "group")
    """After every convolution."""
    poolings: tuple[Literal["none", "max", "avg"], ...] = ("none", "max", "avg")
    """At the end of every block."""
    subset: NonNegative = 0
    """How many networks of the grid to draw, by the seed; 0: all."""
    whole_strategy: Strategy | None = None
    """Augmentation where the whole set is trained on to the end (by default that of the proxy sets; the paper says only
    that these and early stopping have it)."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    names = cli.values_of(arguments, "methods")
    methods = dict.fromkeys(ArchitectureSearch.methods if names is None else names)
    named, rest = experiment.parse_methods(methods, arguments)
    prog = "python -m experiments.architecture_search"
    with study.opened(ArchitectureSearch, _with_papers(rest), prog, f"{__doc__}", arguments) as search:
        # From here on everything, the method's own networks included, sees only what is not held out.
        search.dataset, *held_out = sampling.hold_out(search.dataset, _HELD_OUT, search.config.seed)
        architectures, impossible = choose(search.varied, search.dataset)
        runs = {name: dataclasses.replace(search.config, method=method) for name, method in named.items()}
        for name, config in runs.items():
            search.check(config)
            search.check_run(_file(name), config)
        print(f"{len(architectures)} networks; {impossible} of the grid cannot be for these images", flush=True)
        proxies = _proxies(search, runs)
        found = _train_all(search, architectures, proxies, held_out)
        rows = [_row(p, summary) for p in proxies if (summary := summarise(found[p.name], found[WHOLE]))]
        settings = {name: fields.to_dict(experiment.resolve(config).method) for name, config in runs.items()}
        sizes = {"networks": len(architectures), "impossible": impossible, "validation_images": len(held_out[1])}
        _plot(search.folder / "architecture_search.png", rows, search.dataset.name)
        search.finish({**sizes, "rows": rows, "methods": settings}, _table(rows))


def _with_papers(arguments: list[str]) -> list[str]:
    """The arguments, with flags for those of the paper's settings that they do not give."""
    missing = {name: value for name, value in _PAPERS.items() if cli.values_of(arguments, name) is None}
    return [*arguments, *(f"--{name.replace('_', '-')}={value}" for name, value in missing.items())]


def grid(varied: ArchitectureSearch) -> list[NetworkConfig]:
    """All networks of the grid, each once."""
    axes = varied.widths, varied.depths, varied.activations, varied.norms, varied.poolings
    options = itertools.product(*(dict.fromkeys(axis) for axis in axes))
    return [NetworkConfig("ConvNet", *values, precision=varied.network.precision) for values in options]


def choose(varied: ArchitectureSearch, dataset: Dataset) -> tuple[dict[str, NetworkConfig], int]:
    """The networks to train by their short names, and how many of the grid cannot be for these images.

    Raises:
      UserError: there are too few to be ranked, or fewer than the subset asks for.
    """
    every, possible, reason = grid(varied), [], ""
    for config in every:
        try:
            networks.create(config, dataset.num_classes, dataset.image_shape)
            possible.append(config)
        except UserError as error:
            reason = f" ({error})"
    if len(possible) < 2:
        left = f"only {len(possible)} of the {len(every)} networks of the grid can be for these images"
        raise UserError(f"{left}{reason}; name more after --widths, --depths, ...")
    if varied.subset == 1 or varied.subset > len(possible):
        raise UserError(f"subset must be 2 to {len(possible)} networks, or 0 for all, not {varied.subset}")
    order = np.random.default_rng(varied.seed).permutation(len(possible))  # it also decides between equals in a ranking
    chosen = [possible[i] for i in order[: varied.subset or None]]
    return {networks.short_name(config): config for config in chosen}, len(every) - len(possible)


def _proxies(search: Study[ArchitectureSearch], runs: Mapping[str, Config]) -> list[Proxy]:
    """The set of each method that does not fail; the whole set, for as many steps; the whole set, to the end."""
    dataset, settings = search.dataset, experiment.resolve(search.config).evaluation
    recipe = training.make_recipe(settings, search.config.augment)
    assert settings.epochs is not None
    found = []
    for name, config in runs.items():
        synthetic = search.condense(_file(name), config)
        made = synthetic and search.cell(f"{_file(name)}/condense", dict)
        if synthetic and made:
            examples = on_device.place(synthetic)
            plan = training.make_plan(recipe, len(examples.labels), settings.epochs)
            found.append(Proxy(name, examples, recipe, plan, synthetic.digest(), made["condense_seconds"]))
    whole = on_device.place_whole(dataset)
    plan = training.make_plan(recipe, len(whole.labels), settings.whole_epochs)
    proxys = training.make_plan(recipe, search.config.ipc * dataset.num_classes, settings.epochs)
    early = plan._replace(total=proxys.total, drops=proxys.drops)
    strategy = search.varied.whole_strategy or recipe.augment.strategy
    to_the_end = recipe._replace(augment=dataclasses.replace(recipe.augment, strategy=strategy))
    return [
        *found,
        Proxy(EARLY, whole, recipe, early, f"{early.total} steps"),
        Proxy(WHOLE, whole, to_the_end, plan, f"{plan.total} steps, {strategy}"),
    ]


def _train_all(
    search: Study[ArchitectureSearch],
    architectures: Mapping[str, NetworkConfig],
    proxies: Sequence[Proxy],
    held_out: Sequence[np.ndarray],
) -> dict[str, dict[str, Any]]:
    """{name of a proxy: {short name of a network: its cell}}, of those that did not fail.

    One network after the other, so that proxy sets of one size share its programs, which are then forgotten.
    """
    dataset, key = search.dataset, jax.random.fold_in(jax.random.key(search.config.seed), 3)  # that of judging
    keys = [jax.random.fold_in(key, i) for i in range(search.config.evaluation.networks)]
    real = (dataset.test_images, dataset.test_labels), held_out
    tests = [on_device.place_test(*labelled, dataset.mean, dataset.std) for labelled in real]
    found: dict[str, dict[str, Any]] = {proxy.name: {} for proxy in proxies}
    with progress_bar(None, "training", search.varied.progress, len(architectures) * len(proxies)) as bar:
        for name, config in architectures.items():
            network = networks.create(config, dataset.num_classes, dataset.image_shape)
            for proxy in proxies:
                measure = functools.partial(train, network, proxy, keys, tests)
                cell = search.accuracy(f"{_file(proxy.name)}/{name}", measure, proxy.digest)
                found[proxy.name] |= {} if cell is None else {name: cell}
                bar.update()
            jax.clear_caches()
    return found


def _file(name: str) -> str:
    return name.replace(":", ".").replace(" ", "_")


def _row(proxy: Proxy, summary: dict[str, Any]) -> dict[str, Any]:
    """A line of the table, as JSON values."""
    about = {"images": len(proxy.examples.labels), "iterations": proxy.plan.total, "making": proxy.making}
    return {"proxy": proxy.name, **summary, **about}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    top, count = (rows[0][f"rho_{of}"]["points"] for of in ("top", "all")) if rows else (0, 0)
    header = ["trained on", "test accuracy (%)", f"rho, top {top}", f"rho, all {count}", "images", "iterations"]
    header += ["seconds", "seconds to make the set", "best network"]
    cells = []
    for row in rows:
        rhos = (f"{ranking.Correlation(**row[rho])}" for rho in ("rho_top", "rho_all"))
        making = "-" if row["making"] is None else f"{row['making']:.1f}"
        numbers = f"{row['images']}", f"{row['iterations']}", f"{row['seconds']:.1f}", making
        cells.append([row["proxy"], f"{100 * row['accuracy']:.1f}", *rhos, *numbers, row["chosen"]])
    return f"{study.markdown(header, cells)}\n\n{_NOTE}"


def _plot(path, rows, dataset: str) -> None:
    """A panel for each proxy: test accuracy of every network, trained on it and on the whole set (Figure F8)."""
    panels = []
    for row in (row for row in rows if row["proxy"] != WHOLE):
        rho = ranking.Correlation(**row["rho_top"])._replace(low=None)
        x, y = ([100 * of["test"][name] for name in row["test"]] for of in (row, rows[-1]))  # the last is the whole set
        panels.append((f"{row['proxy']}, rho {rho}", x, y, [name in row["top"] for name in row["test"]]))
    path.unlink(missing_ok=True)  # a picture of other rows
    if panels:
        axes = "test accuracy, trained on the proxy (%)", "trained on the whole set (%)"
        plots.against(path, panels, *axes, f"the {sum(panels[0][-1])} best by validation", dataset)


if __name__ == "__main__":
    sys.exit(main())
