"""The files of one run, as far as they are there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.methods import Method
from dmjax.run import metrics
from dmjax.run.papers import Described
from dmjax.settings import fields


class Run(NamedTuple):
    """What a run has left in its folder.

    Attributes:
      folder: The folder.
      about: What config.json holds: configuration, data set, machine.
      config: The configuration. A method that is not of this package is its import path: nothing is imported because a
        file names it.
      dataset: The data set, as it is described.
      results: What results.json holds; None for a set that was made and not evaluated, as from Python.
      metrics: The lines of metrics.jsonl.
      synthetic: The set; None where the method makes none, or where it cannot be read.
    """

    folder: Path
    about: dict[str, Any]
    config: Config
    dataset: Described
    results: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    synthetic: SyntheticSet | None

    @property
    def method(self) -> str:
        """The name of the method, or its import path."""
        return self.about["config"]["method"]["name"]

    @property
    def iterations(self) -> int:
        """How many were done; 0 for a method that has none."""
        done = (self.results or {}).get("iterations")
        return int(self.about["config"]["method"].get("iterations", 0) if done is None else done)


def read(folder: Path) -> Run:
    """Reads what a finished run has left.

    Raises:
      UserError: it is not finished, or a file is damaged or of an older version.
    """
    mend = "make the run again in another --workdir"
    about = files.read_json(folder / "config.json", mend)
    results = files.read_json(folder / "results.json", mend)
    if results is None and not (folder / "synthetic.npz").exists():
        raise UserError(f"the run in {folder} is not finished; the command that began it goes on with it")
    try:
        config = fields.config_from_dict(about["config"])
        if not isinstance(about["config"]["method"], Mapping):
            raise UserError("it was made by an older dmjax")
        shape = tuple(int(size) for size in about["dataset"]["image_shape"])
        dataset = Described(str(about["dataset"]["name"]), int(about["dataset"]["num_classes"]), shape)  # type: ignore
    except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else "something is missing in it"
        raise UserError(f"{folder / 'config.json'} is not the configuration of a run ({reason}); {mend}") from None
    try:
        synthetic = SyntheticSet.load(folder / "synthetic.npz")
    except UserError:
        synthetic = None
    return Run(folder, about, config, dataset, results, metrics.read(folder / "metrics.jsonl"), synthetic)


def is_at_hand(config: Config) -> bool:
    """Whether the method is one of this package, so that its defaults are known."""
    return isinstance(config.method, Method)
