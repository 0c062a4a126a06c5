"""Embeddings from trained networks instead of random ones (Zhao & Bilen, Table 4), by their validation accuracy.

    python -m experiments.embedding_distributions --config experiments/cifar10.py --ipc 50

Networks are trained on the whole set once (`--pretrained.*`), and a set is condensed with those of each group of
`--bounds` (fractions; by default 0.1 to 0.7 in steps of a tenth, and above), with all of them, and with random ones.
Expected (paper, CIFAR-10): all groups are close to each other, and random networks are as good as the trained ones.
"""

import dataclasses
import itertools
import sys

from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.evaluation import pretrained
from dmjax.methods.distribution import DM
from dmjax.run import study
from dmjax.settings import cli, experiment


@dataclasses.dataclass(frozen=True)
class EmbeddingDistributions(Config):
    """What this study varies."""

    bounds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
    """Validation accuracies between two of which a group lies, rising."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "the same command again goes on from here")


def _main(arguments: list[str]) -> None:
    prog = "python -m experiments.embedding_distributions"
    with study.opened(EmbeddingDistributions, arguments, prog, f"{__doc__}") as embeddings:
        config, bounds = embeddings.config, embeddings.varied.bounds
        if not isinstance(config.method, DM):
            raise UserError("this study is of distribution matching; leave out --method")
        if len(bounds) < 2 or list(bounds) != sorted(set(bounds)):
            raise UserError("bounds must be two or more rising fractions")
        embeddings.check(config)
        every = pretrained.states(experiment.resolve(config), embeddings.dataset)
        match = config.method.match
        groups = {"random": dataclasses.replace(match, networks="random", accuracy=None)}
        for low, high in itertools.pairwise(bounds):
            groups[f"{low:g}-{high:g}"] = dataclasses.replace(match, networks="pool", accuracy=(low, high))
        groups["all"] = dataclasses.replace(match, networks="pool", accuracy=None)
        rows, found = [], {}
        for name, match in groups.items():
            states = 0 if name == "random" else len(pretrained.within(every, match.accuracy))
            if name != "random" and not states:
                rows.append([name, "0", "no such network"])
                continue
            method = dataclasses.replace(config.method, match=match)
            synthetic = embeddings.condense(name, dataclasses.replace(config, method=method))
            found[name] = synthetic and embeddings.set_accuracy(f"{name}/accuracy", synthetic, config)
            rows.append([name, str(states or "fresh"), study.percent(found[name])])
        embeddings.finish({"groups": found}, study.markdown(["validation accuracy", "networks", "test accuracy"], rows))


if __name__ == "__main__":
    sys.exit(main())
