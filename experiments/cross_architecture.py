"""Learn on one network, test on all (Zhao & Bilen, Table 3): one table and one heat map.

    python -m experiments.cross_architecture --config experiments/cifar10.py --ipc 50

`--learn` and `--test` name the networks, by default those of the paper, all with batch norm. Every set and every
accuracy is kept in the working folder as soon as it is there, so that the same command goes on where it was
interrupted and tries again what failed. Each network condenses with its own default learning rate.
Expected at 50 images per class of CIFAR-10 (paper): 65.2 / 61.3 / 59.9 / 57.0 % learned on the ConvNet and tested on
ConvNet / AlexNet / VGG11 / ResNet18.
"""

import dataclasses
import functools
import sys

import numpy as np

from dmjax import networks
from dmjax.common import plots
from dmjax.common.errors import UserError
from dmjax.config import Config, NetworkConfig
from dmjax.evaluation.judge import judge_random_real
from dmjax.run import study
from dmjax.settings import cli, experiment

RANDOM = "random real"


@dataclasses.dataclass(frozen=True)
class CrossArchitecture(Config):
    """What this study varies."""

    learn: tuple[str, ...] = ("ConvNetBN", "AlexNetBN", "VGG11BN", "ResNet18BN_AP")
    """Networks to condense with."""
    test: tuple[str, ...] = ("ConvNetBN", "AlexNetBN", "VGG11BN", "ResNet18BN")
    """Networks to train on each of the sets."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    prog = "python -m experiments.cross_architecture"
    with study.opened(CrossArchitecture, arguments, prog, f"{__doc__}") as cross:
        config, dataset = cross.config, cross.dataset

        def network(name: str) -> NetworkConfig:
            return networks.resolve(NetworkConfig(name=name, precision=config.network.precision))

        learn, test = (tuple(dict.fromkeys(names)) for names in (cross.varied.learn, cross.varied.test))
        if not learn or not test:
            raise UserError("name at least one network after --learn and --test")
        if dataclasses.replace(cross.varied.network, precision="float32") != networks.resolve(
            dataclasses.replace(cross.default.network, precision="float32")
        ):
            raise UserError("the networks are those of --learn and --test; leave out --network.* but the precision")
        for name in learn:
            cross.check(dataclasses.replace(config, network=network(name)))
        for name in test:
            networks.create(network(name), dataset.num_classes, dataset.image_shape)
        found = {}
        if config.evaluation.random_real:
            for name in test:
                of_network = dataclasses.replace(config, network=network(name))
                measure = functools.partial(judge_random_real, experiment.resolve(of_network), dataset, config.ipc)
                found[RANDOM, name] = cross.accuracy(f"random/{name}", measure)
        for learned in learn:
            synthetic = cross.condense(learned, dataclasses.replace(config, network=network(learned)))
            for name in test if synthetic else ():
                of_network = dataclasses.replace(config, network=network(name))
                found[learned, name] = cross.set_accuracy(f"{learned}/{name}", synthetic, of_network)
        rows = [row for row in (RANDOM, *learn) if any(r == row for r, _ in found)]
        table = [[row, *(study.percent(found.get((row, name))) for name in test)] for row in rows]
        means = [[100 * (found.get((row, name)) or {"mean": np.nan})["mean"] for name in test] for row in rows]
        title = f"{dataset.name}, {config.ipc} images per class"
        plots.heat_map(cross.folder / "heat_map.png", np.array(means), rows, test, title)
        results = {row: {name: found.get((row, name)) for name in test} for row in rows}
        cross.finish({"learned_and_tested": results}, study.markdown(["learned on \\ tested on", *test], table))


if __name__ == "__main__":
    sys.exit(main())
