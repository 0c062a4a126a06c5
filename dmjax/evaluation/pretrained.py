"""Networks trained on the whole training set: trained once, saved at several steps, and shared by runs.

A folder holds `about.json` (what they were trained on, and how) and for every network a folder with `states.json`, the
list of its states, each of which is a file of its own. A file counts once it is in the list, so that a training that is
killed resumes from the last state in it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from dmjax import networks
from dmjax.common import compilation, files, signals
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import Config, EvaluateConfig, EvaluationConfig
from dmjax.data import Dataset
from dmjax.evaluation import protocols, training
from dmjax.evaluation.training import Examples, Recipe, TrainState
from dmjax.networks import custom

_OF_RECIPE = ("learning_rate", "momentum", "weight_decay", "batch_size")
"""What can be given of a recipe, besides the augmentation."""


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


def states(config: Config | EvaluateConfig, dataset: Dataset) -> list[list[State]]:
    """The states of each of the configured networks from the first to the last, trained now where they are missing.

    Args:
      config: For `pretrained`, the network, and the recipe of `evaluation` with its augmentation.
      dataset: On whose training images they are trained, those held out aside.

    Raises:
      UserError: the folder holds networks that were trained otherwise, or is damaged.
      signals.Interrupted: the states so far are saved.
    """
    about = _about(config, dataset)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = config.pretrained.path or files.cache_folder(config.data.cache) / "pretrained" / digest
    with _claimed(folder, about):
        places = [folder / f"network_{i:03d}" for i in range(config.pretrained.networks)]
        known = [_listed(place).states for place in places]
        unfinished = [i for i, of_one in enumerate(known) if len(of_one) < len(_steps(config, dataset))]
        if unfinished:
            task = _Task(config, dataset)
            for i in unfinished:
                known[i] = task.train(i, places[i], known[i])
        return known


class TrainedNetworks:
    """The trained networks of a configuration on demand, each looked up or trained once.

    Attributes:
      seconds: Seconds that the training of those that were asked for took, in this run or an earlier one.
      waited: Seconds, without compilation, that this process has spent on looking them up or training them.
    """

    def __init__(self, config: Config | EvaluateConfig, dataset: Dataset):
        self._config, self._dataset = config, dataset
        self._known: list[list[State]] = []
        self._used: set[int] = set()
        self.waited = 0.0

    def all(self) -> list[list[State]]:
        """The states of all configured networks."""
        self._used.update(range(self._config.pretrained.networks))
        return self._first(self._config.pretrained.networks)

    def last_of(self, seed: int) -> State:
        """The last state of the network that belongs to a seed: seeds take the configured networks in turn."""
        index = seed % self._config.pretrained.networks
        self._used.add(index)
        return self._first(index + 1)[index][-1]

    @property
    def seconds(self) -> float:
        return sum(self._known[index][-1].seconds for index in self._used)

    def _first(self, count: int) -> list[list[State]]:
        if len(self._known) < count:
            start = time.perf_counter() - compilation.seconds()
            settings = dataclasses.replace(self._config.pretrained, networks=count)
            self._known = states(dataclasses.replace(self._config, pretrained=settings), self._dataset)
            self.waited += time.perf_counter() - compilation.seconds() - start
        return self._known[:count]


def within(states: Sequence[Sequence[State]], accuracy: tuple[float, float] | None) -> list[State]:
    """The states of all networks whose validation accuracy is at least the first number and below the second."""
    low, high = accuracy or (0.0, 1.0)
    every = [state for of_one in states for state in of_one]
    return [state for state in every if low <= state.accuracy < high or state.accuracy == high == 1]


def select(states: Sequence[Sequence[State]], accuracy: tuple[float, float] | None) -> list[State]:
    """The same; raises a `UserError` that says what accuracies there are where there is no such state."""
    chosen = within(states, accuracy)
    if accuracy and not chosen:
        there = sorted(state.accuracy for of_one in states for state in of_one)
        raise UserError(
            f"none of the {len(there)} states in {states[0][0].path.parent.parent} has a validation accuracy from "
            f"{accuracy[0]:g} to {accuracy[1]:g}; they have {there[0]:.2f} to {there[-1]:.2f}: give other bounds to "
            "--embedding.accuracy, or train longer or keep more states with --pretrained.epochs and .states"
        )
    return chosen


def stack(states: Sequence[State]) -> Any:
    """The variables of K states as one tree of arrays [K, ...] on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(state.load() for state in states))


def recipe(config: Config | EvaluateConfig) -> Recipe:
    """How the networks are trained: as sets are judged by default, but for what was given for it.

    What a protocol or a method has decided is left out, so that sets of any method that are judged in any way can share
    the networks.
    """
    undecided = dataclasses.replace(config.evaluation, **dict.fromkeys(protocols.FIELDS))
    undecided = dataclasses.replace(config, evaluation=undecided)
    decided = dict(config.method.evaluation(undecided))
    if config.evaluation.protocol is not None:
        decided |= protocols.settings(config.evaluation.protocol, undecided)
    given = protocols.opened(config.evaluation, decided)
    plain = EvaluationConfig(**{name: getattr(given, name) for name in (*_OF_RECIPE, "strategy")})
    return training.make_recipe(plain, config.augment)


def _about(config: Config | EvaluateConfig, dataset: Dataset) -> dict[str, Any]:
    """All that the states depend on but their number."""
    made = recipe(config)
    settings = dataclasses.asdict(config.pretrained)
    source = {"source": custom.digest(config.network.name)} if ":" in config.network.name else {}
    return {
        "format": 3,  # of the files and of the recipe: 2 had other variances in batch norm
        "data set": {"name": dataset.name, "fingerprint": dataset.fingerprint()},
        "network": {**dataclasses.asdict(config.network), **source},
        "recipe": {
            **{name: getattr(made, name) for name in _OF_RECIPE},
            "augment": {"strategy": made.augment.strategy, "align_corners": made.augment.align_corners},
        },
        "pretrained": {name: settings[name] for name in ("epochs", "states", "holdout", "seed")},
    }


@contextlib.contextmanager
def _claimed(folder: Path, about: dict[str, Any]) -> Iterator[None]:
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
            differing = next((k for k in about if not isinstance(stored, dict) or stored.get(k) != about[k]), "content")
            before = stored.get(differing) if isinstance(stored, dict) else stored
            raise UserError(
                f"{folder} holds networks with another {differing} ({before}, not {about[differing]}); "
                "choose another --pretrained.path"
            )
        yield


class _Network(NamedTuple):
    """What `states.json` holds: the states of a network, and the digest of the file that its training goes on from."""

    states: list[State]
    training: str


def _listed(place: Path) -> _Network:
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


def _held_out(config: Config | EvaluateConfig, dataset: Dataset) -> int:
    """How many training images are held out; raises a `UserError` where none are left."""
    images = int(dataset.counts.sum())
    held = max(1, round(config.pretrained.holdout * images))
    if held >= images:
        raise UserError(f"pretrained.holdout {config.pretrained.holdout} leaves no image to train on")
    return held


def _split(config: Config | EvaluateConfig, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the training images, class by class, that are held out and that are not."""
    order = np.random.default_rng(config.pretrained.seed).permutation(int(dataset.counts.sum()))
    held_out, trained_on = np.split(order, [_held_out(config, dataset)])
    return held_out, trained_on


def trained_on(config: Config | EvaluateConfig, dataset: Dataset) -> np.ndarray:
    """How many images of each class networks are trained on, int [C]; the others are held out."""
    labels = np.repeat(np.arange(dataset.num_classes), dataset.counts)
    return np.bincount(labels[_split(config, dataset)[1]], minlength=dataset.num_classes)


def _steps(config: Config | EvaluateConfig, dataset: Dataset) -> list[int]:
    """The steps whose states are saved."""
    images = int(dataset.counts.sum()) - _held_out(config, dataset)
    return milestones(
        training.make_plan(recipe(config), images, config.pretrained.epochs).total, config.pretrained.states
    )


class _Task:
    """What is needed to train networks: the images on the device, and the steps whose states are saved."""

    def __init__(self, config: Config | EvaluateConfig, dataset: Dataset):
        self.config = config
        images, labels = dataset.flat()
        held_out, chosen = _split(config, dataset)
        self.chosen, self.images = chosen, len(labels)
        self.examples = jax.device_put(Examples(images[chosen], labels[chosen], dataset.mean, dataset.std))
        self.validation = training.test_examples(images[held_out], labels[held_out], dataset.mean, dataset.std)
        self.network = networks.create(config.network, dataset.num_classes, dataset.image_shape)
        self.recipe = recipe(config)
        self.plan = training.make_plan(self.recipe, len(chosen), config.pretrained.epochs)
        self.steps = _steps(config, dataset)

    def train(self, index: int, place: Path, known: list[State]) -> list[State]:
        """Trains one network on from the last of its known states, and returns them all."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.pretrained.seed), 4), index)
        state = training.start(self.network, self.plan, key, self.examples)
        if known:
            state = _resume(place, known[-1].step, state)
        before, start = known[-1].seconds if known else 0.0, time.perf_counter() - compilation.seconds()
        name = f"training {place.name} on the whole set"
        with progress_bar(None, name, self.config.progress, self.plan.total, initial=int(state.step)) as bar:
            for step in self.steps[len(known) :]:
                arguments = self.recipe, self.plan, state, key, self.examples, step, bar.update
                state = training.advance(self.network, *arguments)
                accuracy = training.accuracy(self.network, state.variables, self.validation)
                on_host = jax.device_get(state)
                seconds = before + time.perf_counter() - compilation.seconds() - start
                known = [*known, _save(place, on_host, accuracy, self._forgotten(on_host), seconds)]
                bar.set_postfix(accuracy=f"{100 * accuracy:.1f}%")
        (place / f"{self.steps[-1]}.training").unlink(missing_ok=True)
        return known

    def _forgotten(self, state: TrainState) -> np.ndarray:
        """By the number of the image in the whole training set."""
        forgotten = np.full(self.images, -1, np.int32)
        forgotten[self.chosen] = state.forgotten
        return forgotten


def milestones(total: int, states: int) -> list[int]:
    """The steps whose states are saved: 0, and `states` more whose distance grows; fewer where steps are fewer."""
    wanted = [round(total * (k / states) ** 2) for k in range(states + 1)]
    return sorted(set(wanted))


def _save(place: Path, state: TrainState, accuracy: float, forgotten: np.ndarray, seconds: float) -> State:
    """Writes a state, and what training goes on from; then the list that makes them count."""
    content = serialization.to_bytes({"variables": state.variables, "forgotten": forgotten})
    step, whole = int(state.step), serialization.to_bytes(state)
    saved = State(place / f"{step}.msgpack", step, accuracy, hashlib.sha256(content).hexdigest(), seconds)
    files.write_bytes(saved.path, content)
    files.write_bytes(place / f"{step}.training", whole)
    known = _listed(place).states
    listed = [{**entry._asdict(), "file": entry.path.name} for entry in [*known, saved]]
    entries = [{name: value for name, value in entry.items() if name != "path"} for entry in listed]
    files.write_json(place / "states.json", {"states": entries, "training": hashlib.sha256(whole).hexdigest()})
    for old in known:
        (place / f"{old.step}.training").unlink(missing_ok=True)
    return saved


def _resume(place: Path, step: int, template: TrainState) -> TrainState:
    content = _read(place / f"{step}.training", _listed(place).training)
    return jax.device_put(serialization.from_bytes(jax.device_get(template), content))
