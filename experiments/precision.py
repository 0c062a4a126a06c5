"""Does lower precision cost accuracy? Sets condensed and judged in each precision: one table.

    python -m experiments.precision --config experiments/mnist.py --ipc 1

`--precisions` lists them. A CPU rounds operands to tf32 by itself, so that what a GPU computes by default can be tried
there; its bfloat16 is real, and slow. Every set and every accuracy is kept in the working folder as soon as it is
there, so that the same command goes on where it was interrupted.
"""

import dataclasses
import sys

from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.run import study
from dmjax.settings import cli


@dataclasses.dataclass(frozen=True)
class Precision(Config):
    """What this study varies."""

    precisions: tuple[str, ...] = ("float32", "tf32", "bfloat16")
    """Precisions of `--network.precision`."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    with study.opened(Precision, arguments, "python -m experiments.precision", f"{__doc__}") as opened:
        config, precisions = opened.config, tuple(dict.fromkeys(opened.varied.precisions))
        if not precisions:
            raise UserError("name at least one precision after --precisions")
        configs = {
            name: dataclasses.replace(config, network=dataclasses.replace(config.network, precision=name))
            for name in precisions
        }
        for of_precision in configs.values():
            opened.check(of_precision)
        found = {}
        for name, of_precision in configs.items():
            synthetic = opened.condense(name, of_precision)
            found[name] = synthetic and opened.set_accuracy(f"{name}/accuracy", synthetic, of_precision)
        rows = [[name, study.percent(accuracy)] for name, accuracy in found.items()]
        opened.finish({"precisions": found}, study.markdown(["precision", "accuracy (%)"], rows))


if __name__ == "__main__":
    sys.exit(main())
