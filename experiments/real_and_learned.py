"""A picture of learned images below real ones: one column a class, above the first real image, below the learned.

    python -m experiments.real_and_learned --synthetic runs/tiny/synthetic.npz

The data are read again, as the run that made the set read them. Writes real_and_learned.png beside the set or to
`--out`.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from dmjax.common import plots
from dmjax.common.errors import UserError
from dmjax.data import load as load_dataset
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.judge import check_fits
from dmjax.settings import cli, fields


@dataclasses.dataclass(frozen=True)
class RealAndLearned:
    """What is drawn."""

    synthetic: Path | None = None
    """The set, a file synthetic.npz."""
    out: Path | None = None
    """The picture."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "nothing was written")


def _main(arguments: list[str]) -> None:
    arguments = cli.first_is("--synthetic", arguments)
    given = cli.parse(RealAndLearned(), arguments, "python -m experiments.real_and_learned", f"{__doc__}")
    if given.synthetic is None:
        raise UserError("name a set with --synthetic")
    synthetic = SyntheticSet.load(given.synthetic)
    dataset = load_dataset(fields.config_from_dict(synthetic.metadata.get("config", {})).data)
    check_fits(synthetic, dataset)
    pixels = synthetic.pixels()
    learned = np.stack([pixels[synthetic.hard_labels == c][0] for c in range(dataset.num_classes)])
    path = given.out or given.synthetic.parent / "real_and_learned.png"
    plots.pictures(path, {"real": dataset.images[:, 0] / 255, "learned": learned / 255})
    print(path)


if __name__ == "__main__":
    sys.exit(main())
