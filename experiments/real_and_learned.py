"""A picture of learned images below real ones: a column for each of up to 20 classes, with the first image of both.

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
from dmjax.data import Dataset, released
from dmjax.data import load as load_dataset
from dmjax.evaluation.judge import check_fits
from dmjax.settings import cli, fields

_MOST = 20  # classes


@dataclasses.dataclass(frozen=True)
class RealAndLearned:
    """What is drawn."""

    synthetic: Path | None = None
    """The set: a file synthetic.npz, or the name of a released one."""
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
    synthetic = released.open_set(given.synthetic)
    if "config" not in synthetic.metadata:
        raise UserError(f"{given.synthetic} does not say which data it was made from")
    dataset = load_dataset(fields.config_from_dict(synthetic.metadata["config"]).data)
    check_fits(synthetic, dataset)
    shown = range(min(dataset.num_classes, _MOST))
    if missing := set(shown) - set(synthetic.hard_labels.tolist()):
        raise UserError(f"{given.synthetic} has no image of {dataset.class_names[min(missing)]}")
    pixels = synthetic.pixels()
    learned = np.stack([pixels[synthetic.hard_labels == c][0] for c in shown])
    real = dataset.images[: len(shown), 0]
    path = given.out or released.folder_of(given.synthetic) / "real_and_learned.png"
    plots.pictures(path, {"real": _pixels(dataset, real), "learned": learned / 255})
    print(path)


def _pixels(dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """Training images in units of pixels / 255, as they were before they were whitened."""
    return images / 255 if dataset.whitening is None else dataset.whitening.undo(images)


if __name__ == "__main__":
    sys.exit(main())
