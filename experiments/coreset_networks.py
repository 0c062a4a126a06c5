"""How long need the network be trained that a coreset is chosen by? Accuracy of the chosen images against its epochs.

    python -m experiments.coreset_networks --config experiments/mnist.py --method herding --ipc 10

`--epochs` lists the passes over the whole training set. Every set and every accuracy is kept in the working folder as
soon as it is there, so that the same command goes on where it was interrupted.
"""

import dataclasses
import sys

from dmjax.common import plots
from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.run import study
from dmjax.settings import cli, experiment, fields


@dataclasses.dataclass(frozen=True)
class CoresetNetworks(Config):
    """What this study varies."""

    epochs: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Epochs for which the networks are trained."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    with study.opened(CoresetNetworks, arguments, "python -m experiments.coreset_networks", f"{__doc__}") as opened:
        config, lengths = opened.config, sorted(set(opened.varied.epochs))
        if not lengths or lengths[0] < 1:
            raise UserError("epochs must be at least 1")
        if not experiment.resolve(config).method.uses_trained_networks():
            raise UserError("this method looks at no trained network; choose herding, kcenter or forgetting")
        configs = {n: fields.replace(config, {"pretrained.epochs": n, "pretrained.states": 1}) for n in lengths}
        for trained in configs.values():
            opened.check(trained)
        found = {}
        for n, trained in configs.items():
            synthetic = opened.condense(f"epochs_{n}", trained)
            accuracy = synthetic and opened.set_accuracy(f"epochs_{n}/accuracy", synthetic, trained)
            made = synthetic and opened.cell(f"epochs_{n}/condense", dict)
            found[n] = accuracy and made and {**accuracy, "choosing_seconds": made["condense_seconds"]}
        rows = [[str(n), study.percent(a), f"{a['choosing_seconds']:.0f}" if a else ""] for n, a in found.items()]
        points = [(n, 100 * a["mean"], 100 * a["std"]) for n, a in found.items() if a]
        if points:
            title = f"{opened.dataset.name}, {config.ipc} images per class"
            panel = "test accuracy (%)", "epochs of the network that chose", {"chosen": points}
            plots.curves(opened.folder / "coreset_networks.png", [panel], title)
        header = ["epochs", "accuracy (%)", "seconds to train and choose"]
        opened.finish({"epochs": {str(n): a for n, a in found.items()}}, study.markdown(header, rows))


if __name__ == "__main__":
    sys.exit(main())
