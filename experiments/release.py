"""Put a set into the package: its picture, and a card with the accuracy that it has as it is there.

The card also says how close the images are to the training images, by correlation, and how close test images are. A
set that is closer than these still shows training images: what may not be passed on of them may not be passed on of it.

    python -m experiments.release --run runs/mnist --name mnist-ipc50 --data mnist --licence "CC BY-SA 3.0"

The data of the run are read again, to evaluate the set.
"""

import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

from dmjax import methods
from dmjax.common import compilation, files
from dmjax.common.errors import UserError
from dmjax.config import Count
from dmjax.data import load as load_dataset
from dmjax.data import released
from dmjax.data.closeness import closest, closest_of_test_images
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluate import evaluate
from dmjax.reporting import command
from dmjax.settings import cli, experiment, fields
from dmjax.settings.check import check


@dataclasses.dataclass(frozen=True)
class ReleaseConfig:
    """What to put into the package, and what its card says beyond what is known of the run."""

    run: Path | None = None
    """The folder of a finished run."""
    name: str | None = None
    """The name of the set."""
    data: str | None = None
    """The experiment whose data these are, such as mnist: a card says how to make the set from them."""
    licence: str | None = None
    """Under which terms the data are."""
    note: str = ""
    """What else is to be known, such as reduced settings."""
    networks: Count = 5
    """Networks to evaluate the set with."""
    epochs: Count = 1000
    """Epochs of each."""
    folder: Path = released.FOLDER
    """Where to write."""
    replace: bool = False
    """Put it in the place of a set of this name."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, "nothing was written")


def _main(arguments: list[str]) -> None:
    given = cli.parse(ReleaseConfig(), arguments, "python -m experiments.release", f"{__doc__}")
    check(given)
    if given.run is None or given.name is None or given.data is None or given.licence is None:
        raise UserError("--run, --name, --data and --licence are needed")
    if given.name in released.names(given.folder) and not given.replace:
        raise UserError(f"there is a set {given.name} already; choose another --name, or give --replace")
    results = files.read_json(given.run / "results.json")
    if results is None:
        raise UserError(f"{given.run} has no results.json; name the folder of a finished run")
    compilation.use_cache()
    synthetic = SyntheticSet.load(given.run / "synthetic.npz")
    config = fields.config_from_dict(synthetic.metadata["config"])
    dataset = load_dataset(config.data)
    public = dataclasses.replace(experiment.load_config(given.data).data, image_size=config.data.image_size)
    recipe = dataclasses.replace(config.evaluation, networks=given.networks, epochs=given.epochs)
    resolved = dataclasses.replace(config, data=public, evaluation=recipe, workdir=None)
    words = command.from_flags(resolved) or []
    if words and public.source == "folder" and config.data.path is not None:
        words = [*words, "--data.path", config.data.path.name]
    about = {
        "command": shlex.join(words),
        "data": {
            "name": public.name,
            "licence": given.licence,
            "training_images": int(dataset.counts.sum()),
            "fingerprint": dataset.fingerprint(),
        },
        "method": methods.identifier(config.method),
        "iterations": results["iterations"],
        "ipc": results["ipc"],
        "seconds": results["seconds"],
        "note": given.note,
        "made_with": {name: synthetic.metadata.get(name) for name in ("commit", "processor", "backend", "versions")},
        "config": fields.to_dict(resolved),
    }
    with tempfile.TemporaryDirectory() as folder:  # a card without an accuracy is in no package
        released.write(synthetic, given.name, about, Path(folder))
        stored = released.load_released(given.name, Path(folder))
    near, unseen = closest(stored, dataset), np.median(closest_of_test_images(dataset, stored.factor))
    about["closest"] = {"median": float(np.median(near)), "largest": float(near.max()), "test_images": float(unseen)}
    accuracy = evaluate(stored, dataset, networks=given.networks, epochs=given.epochs)
    about["accuracy"] = {**accuracy.to_dict(), "epochs": given.epochs}
    released.write(synthetic, given.name, about, given.folder)
    print(f"{given.name}: {accuracy}; closest training image {np.median(near):.2f} (of a test image {unseen:.2f})")


if __name__ == "__main__":
    sys.exit(main())
