"""The folder of a pool of trained networks: what it was made with, and the states that are in it.

It holds `about.json` (what the networks were trained on, and how) and for every network a folder with `states.json`,
the list of its states, each of which is a file of its own. A file counts once it is in the list, so that a training
that is killed resumes from the last state in it.
"""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from dmjax.common import files, signals
from dmjax.common.errors import UserError
from dmjax.evaluation.training import TrainState


class State(NamedTuple):
    """A network at one moment of its training.

    Attributes:
      path: The file of its variables.
      step: Training steps done.
      accuracy: On the training images that were held out, in [0, 1].
      sha256: Of the file's content.
      seconds: That training has taken so far, without compilation.
    """

    path: Path
    step: int
    accuracy: float
    sha256: str
    seconds: float

    def load(self) -> Any:
        """The variables of the network, on the host; raises a `UserError` where the file is not what was written."""
        return self._content()["variables"]

    def forgotten(self) -> np.ndarray:
        """How often the network has unlearned each training image so far, int32 [sum of counts]; -1 if held out."""
        return self._content()["forgotten"]

    def _content(self) -> dict[str, Any]:
        return serialization.msgpack_restore(_read(self.path, self.sha256))


def _differing(stored: Any, about: dict[str, Any]) -> str:
    """What is different in a stored description, in a few words."""
    if not isinstance(stored, dict):
        return "content"
    name = next(name for name in (*about, *stored) if stored.get(name) != about.get(name))
    before, after = stored.get(name), about.get(name)
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return f"{name} ({before}, not {after})"
    pairs = [f"{k} {before.get(k)}, not {after.get(k)}" for k in {**after, **before} if before.get(k) != after.get(k)]
    return f"{name} ({'; '.join(pairs)})"


@contextlib.contextmanager
def claimed(folder: Path, about: dict[str, Any]) -> Iterator[None]:
    """Holds the folder while it is looked at or added to; another run that shares it waits."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --pretrained.path") from None
    with lock:
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    print(f"waiting for another run that trains networks in {folder}", flush=True)
                waiting = True
            signals.check()
            time.sleep(0.5)
        stored = files.read_json(folder / "about.json", "choose another --pretrained.path")
        if stored is None and any(folder.glob("network_*")):
            raise UserError(f"{folder} holds networks, but no about.json: choose another --pretrained.path")
        if stored is None:
            files.write_json(folder / "about.json", about)
        elif stored != about:
            raise UserError(
                f"{folder} holds networks with another {_differing(stored, about)}; give the settings that they were "
                "trained with, or choose another --pretrained.path"
            )
        yield


class _Network(NamedTuple):
    """What `states.json` holds: the states of a network, and the digest of the file that its training goes on from."""

    states: list[State]
    training: str


def listed(place: Path) -> _Network:
    """What is there of a network; raises a `UserError` where its list is damaged."""
    mend = f"remove {place}, to train this network again"
    content = files.read_json(place / "states.json", mend) or {"states": [], "training": ""}
    try:
        return _Network([_state(place, entry) for entry in content["states"]], content["training"])
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{place / 'states.json'} is damaged; {mend}") from None


def _state(place: Path, entry: dict[str, Any]) -> State:
    numbers = int(entry["step"]), float(entry["accuracy"])
    return State(place / entry["file"], *numbers, entry["sha256"], float(entry["seconds"]))


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; remove {path.parent}, to train it again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is damaged; remove {path.parent}, to train this network again")
    return content


def save(place: Path, state: TrainState, accuracy: float, forgotten: np.ndarray, seconds: float) -> State:
    """Writes a state, and what training goes on from; then the list that makes them count."""
    content = serialization.to_bytes({"variables": state.variables, "forgotten": forgotten})
    step, whole = int(state.step), serialization.to_bytes(state)
    saved = State(place / f"{step}.msgpack", step, accuracy, hashlib.sha256(content).hexdigest(), seconds)
    files.write_bytes(saved.path, content)
    files.write_bytes(place / f"{step}.training", whole)
    known = listed(place).states
    named = [{**entry._asdict(), "file": entry.path.name} for entry in [*known, saved]]
    entries = [{name: value for name, value in entry.items() if name != "path"} for entry in named]
    files.write_json(place / "states.json", {"states": entries, "training": hashlib.sha256(whole).hexdigest()})
    for old in known:
        (place / f"{old.step}.training").unlink(missing_ok=True)
    return saved


def resume(place: Path, known: Sequence[State], template: TrainState) -> TrainState:
    """What training goes on from after the last of the known states, in the form of `template`."""
    content = _read(place / f"{known[-1].step}.training", listed(place).training)
    return jax.device_put(serialization.from_bytes(jax.device_get(template), content))
