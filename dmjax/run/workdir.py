"""The folder of one run: whose it is, who is writing to it, and what is in it."""

import contextlib
import dataclasses
import fcntl
from pathlib import Path
from typing import Any

from dmjax import methods
from dmjax.common import files, machine
from dmjax.common.errors import UserError
from dmjax.config import Config, DistributedConfig
from dmjax.data import Dataset
from dmjax.settings import fields


class Workdir:
    """Paths below WORKDIR; holds a lock on it while it is open."""

    def __init__(self, config: Config, study: bool = False):
        """Claims the folder for this configuration, of a run or of a study, which is many runs.

        Raises:
          UserError: it cannot be written, another process is at work in it, or it belongs to something else.
        """
        if config.workdir is None:
            raise UserError("no workdir: give --workdir FOLDER")
        self.path = config.workdir
        self.config = self.path / "config.json"
        self.synthetic = self.path / "synthetic.npz"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.evaluations = self.path / "evaluations"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot write to the workdir {self.path}: {error.strerror}; choose another --workdir"
            ) from None
        self._owned = False
        try:
            self._claim(config)
            if self.stored is not None and study != (self.path / "study.json").exists():
                what, other = ("a run", "a study") if study else ("a study", "a run")
                raise UserError(f"{self.path} holds {what}, not {other}; choose another --workdir")
        except BaseException:
            self.close()
            raise

    def _claim(self, config: Config) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is working in {self.path}; wait for it, or choose another --workdir"
            ) from None
        self._owned = True
        self.stored = files.read_json(self.config)
        if self.stored is not None:
            self._check_same(config)
        elif left := [path for path in (self.checkpoints, self.synthetic, self.results) if path.exists()]:
            raise UserError(f"{self.path} holds {left[0].name} of a run, but no config.json; choose another --workdir")

    def _check_same(self, config: Config) -> None:
        try:
            changed = _changes(self.stored, config)
        except (KeyError, TypeError, AttributeError, UserError) as error:
            reason = str(error) if isinstance(error, UserError) else "something is missing in it"
            raise UserError(
                f"{self.config} is not the configuration of a run ({reason}); choose another --workdir"
            ) from None
        if changed:
            raise UserError(
                f"{self.path} belongs to another configuration ({', '.join(changed)}); remove it, choose another "
                "--workdir, or give the old values to go on"
            )

    def describe(self, config: Config, dataset: Dataset) -> dict[str, Any]:
        """Writes config.json where there is none, checks that the data are the same where there is; returns it."""
        if self.stored is None:
            self.stored = describe(config, dataset)
            files.write_json(self.config, self.stored)
        elif self.stored.get("dataset", {}).get("fingerprint") != dataset.fingerprint():
            raise UserError(
                f"{self.path} was started on other data than {dataset.name!r} holds now; choose another --workdir"
            )
        return self.stored

    def picture(self, iteration: int) -> Path:
        """Where the picture after this iteration belongs."""
        return self.path / "images" / f"{iteration:06d}.png"

    def close(self) -> None:
        """Gives the folder free, and removes it where nothing was written to it."""
        if self._owned and not self.config.exists():
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
                self.path.rmdir()
        self._lock.close()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def check_layout(config: Config) -> None:
    """Raises a `UserError` where folders of several seeds would come into that of one run or of a study."""
    if config.runs > 1 and config.workdir is not None and (config.workdir / "config.json").exists():
        raise UserError(f"{config.workdir} holds a run or a study; choose another --workdir for several seeds")


def changes(folder: Path, config: Config) -> list[str] | None:
    """In what the run in this folder is another one, by `fields.differences`; None where that cannot be read."""
    try:
        return _changes(files.read_json(folder / "config.json"), config)
    except (KeyError, TypeError, AttributeError, UserError):
        return None


def _changes(stored: dict[str, Any], config: Config) -> list[str]:
    """In what a stored configuration is another one; nothing that it names is imported."""
    before = stored["config"]
    if not isinstance(before["method"], dict):
        raise UserError("it was made by an older dmjax")
    code, now = stored.get("method_code", {}), methods.code_digests(config.method)
    changed = [f"the code of {name} was changed" for name in now if code.get(name, now[name]) != now[name]]
    return [*fields.differences(before, config), *changed]


def describe(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Everything that a result depends on, as plain JSON values."""
    code = methods.code_digests(config.method)
    return {
        # The same wherever it is, and however many processes there are.
        "config": fields.to_dict(dataclasses.replace(config, workdir=None, distributed=DistributedConfig())),
        "dataset": {
            "name": dataset.name,
            "num_classes": dataset.num_classes,
            "image_shape": list(dataset.image_shape),
            "train_images": int(dataset.counts.sum()),
            "test_images": len(dataset.test_labels),
            "fingerprint": dataset.fingerprint(),
        },
        **({"method_code": code} if code else {}),
        **machine.describe(),
    }
