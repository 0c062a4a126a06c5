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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization

from dmjax import networks
from dmjax.common import compilation, files, signals
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import AugmentConfig, Config, EvaluateConfig
from dmjax.data import Dataset
from dmjax.evaluation import training
from dmjax.evaluation.training import Examples, Recipe, TrainState
from dmjax.networks import custom

_SECONDS_MEASURED = 1.0  # for an estimate; at most an epoch


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


class Work(NamedTuple):
    """What there is of the configured networks, and what is still to be done.

    Attributes:
      folder: Where the networks are.
      there: How many states are there.
      wanted: How many there will be.
      seconds: That training and testing the missing ones will take, without compilation, by a few measured steps.
    """

    folder: Path
    there: int
    wanted: int
    seconds: float


def states(
    config: Config | EvaluateConfig, dataset: Dataset, announce: Callable[[Work], None] | None = None
) -> list[list[State]]:
    """The states of each of the configured networks from the first to the last, trained now where they are missing.

    Args:
      config: Resolved; of it `pretrained`, the network and the augmentation count.
      dataset: On whose training images they are trained, those held out aside.
      announce: Called once, before anything is trained, with what there is to do; to measure this takes a few seconds.

    Raises:
      UserError: the folder holds networks that were trained otherwise, or is damaged.
      signals.Interrupted: the states so far are saved.
    """
    about, steps = _about(config, dataset), _steps(config, dataset)
    networks.create(config.network, dataset.num_classes, dataset.image_shape)  # what does not fit is said first
    folder = config.pretrained.path or _default_folder(config, about)
    with _claimed(folder, about):
        places = [folder / f"network_{i:03d}" for i in range(_count(config))]
        known = [_listed(place).states for place in places]
        unfinished = {i: of_one for i, of_one in enumerate(known) if len(of_one) < len(steps)}
        task = _Task(config, dataset) if unfinished else None
        if announce is not None:
            seconds = task.seconds_left(list(unfinished.values())) if task else 0.0
            announce(Work(folder, sum(map(len, known)), len(places) * len(steps), seconds))
        if task:
            what = f"{len(unfinished)} networks" if len(unfinished) > 1 else places[min(unfinished)].name
            done, total = sum(map(_steps_done, unfinished.values())), len(unfinished) * task.plan.total
            with progress_bar(None, f"training {what} on the whole set", config.progress, total, initial=done) as bar:
                for group in _groups(unfinished, config.pretrained.together):
                    trained = task.train(group, [places[i] for i in group], [known[i] for i in group], bar)
                    for i, of_one in zip(group, trained, strict=True):
                        known[i] = of_one
        return known


def _groups(unfinished: Mapping[int, list[State]], together: int) -> list[list[int]]:
    """The numbers of the networks that are trained as one program: so many that are equally far."""
    progress = {i: len(of_one) for i, of_one in unfinished.items()}
    equal = [[i for i in progress if progress[i] == far] for far in sorted(set(progress.values()), reverse=True)]
    return [same[k : k + together] for same in equal for k in range(0, len(same), together)]


def _default_folder(config: Config, about: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return files.cache_folder(config.data.cache) / "pretrained" / digest


def _steps_done(states: Sequence[State]) -> int:
    return states[-1].step if states else 0


def _seconds(states: Sequence[State]) -> float:
    return states[-1].seconds if states else 0.0


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
        count = _count(self._config)
        self._used.update(range(count))
        return self._first(count)

    def last_of(self, seed: int) -> State:
        """The last state of the network that belongs to a seed: seeds take the configured networks in turn."""
        index = seed % _count(self._config)
        self._used.add(index)
        return self._first(index + 1)[index][-1]

    def about(self) -> dict[str, Any]:
        """All that the last states of all configured networks depend on, as plain JSON values."""
        return {**_about(self._config, self._dataset), "networks": _count(self._config)}

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
            "--match.accuracy, or train longer or keep more states with --pretrained.epochs and .states"
        )
    return chosen


def stack(states: Sequence[State]) -> Any:
    """The variables of K states as one tree of arrays [K, ...] on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(state.load() for state in states))


def _count(config: Config | EvaluateConfig) -> int:
    assert config.pretrained.networks is not None, "the configuration is not resolved"
    return config.pretrained.networks


def _recipe(config: Config | EvaluateConfig) -> Recipe:
    """How the networks are trained, whatever the evaluation does."""
    settings = config.pretrained
    assert settings.batch_size is not None, "the configuration is not resolved"
    return Recipe(
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        batch_size=settings.batch_size,
        augment=_augment(config),
    )


def _augment(config: Config | EvaluateConfig) -> AugmentConfig:
    strategy = config.pretrained.strategy
    return config.augment if strategy is None else dataclasses.replace(config.augment, strategy=strategy)


def _about(config: Config | EvaluateConfig, dataset: Dataset) -> dict[str, Any]:
    """All that the states depend on but their number."""
    settings = dataclasses.asdict(config.pretrained)
    source = {"source": custom.digest(config.network.name)} if ":" in config.network.name else {}
    recipe = {name: settings[name] for name in ("batch_size", "learning_rate", "momentum", "weight_decay")}
    return {
        "format": 4,  # of the files and of what the recipe means: 3 had that of the evaluation
        "data set": {"name": dataset.name, "fingerprint": dataset.fingerprint()},
        "network": {**dataclasses.asdict(config.network), **source},
        "recipe": {**recipe, **dataclasses.asdict(_augment(config))},
        "schedule": {name: settings[name] for name in ("epochs", "states", "spacing", "holdout", "seed")},
    }


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
            raise UserError(
                f"{folder} holds networks with another {_differing(stored, about)}; give the settings that they were "
                "trained with, or choose another --pretrained.path"
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
    settings, plan = config.pretrained, _plan(config, int(dataset.counts.sum()) - _held_out(config, dataset))
    assert settings.states is not None, "the configuration is not resolved"
    assert settings.spacing is not None, "the configuration is not resolved"
    return milestones(plan.total, settings.states, settings.spacing)


def _plan(config: Config | EvaluateConfig, images: int) -> training.Plan:
    """How networks are trained on so many images."""
    assert config.pretrained.epochs is not None, "the configuration is not resolved"
    return training.make_plan(_recipe(config), images, config.pretrained.epochs)


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
        self.recipe = _recipe(config)
        self.plan = _plan(config, len(chosen))
        self.steps = _steps(config, dataset)

    def train(
        self, group: Sequence[int], places: Sequence[Path], known: Sequence[list[State]], bar: Any
    ) -> list[list[State]]:
        """Trains networks that are equally far on from the last of their known states, and returns all of them."""
        key, states = self._start(group)
        if known[0]:
            states = [_resume(*of_one) for of_one in zip(places, known, states, strict=True)]
        state, known, count = self._join(states), list(known), len(group)
        before, start = [_seconds(of_one) for of_one in known], time.perf_counter() - compilation.seconds()
        for step in self.steps[len(known[0]) :]:
            state = self._advance(state, key, step, lambda steps: bar.update(count * steps))
            for i, place in enumerate(places):
                single = state if count == 1 else training.part(state, i)
                accuracy = training.accuracy(self.network, single.variables, self.validation)
                on_host = jax.device_get(single)
                seconds = before[i] + (time.perf_counter() - compilation.seconds() - start) / count
                known[i] = [*known[i], _save(place, on_host, accuracy, self._forgotten(on_host), seconds)]
                bar.set_postfix(network=place.name, accuracy=f"{100 * accuracy:.1f}%")
        for place in places:
            (place / f"{self.steps[-1]}.training").unlink(missing_ok=True)
        return known

    def seconds_left(self, unfinished: Sequence[Sequence[State]]) -> float:
        """How long training and testing on from these states will take, by a few steps of a network of no account."""
        count = min(self.config.pretrained.together, len(unfinished))
        fresh = self._start([0])[1][0].variables
        key, states = self._start(range(count))
        self._advance(self._join(states), key, 1)  # compiles
        training.accuracy(self.network, fresh, self.validation)
        key, states = self._start(range(count))
        clock, state, until = time.perf_counter(), self._join(states), 0
        while until == 0 or (until < self.plan.per_epoch and time.perf_counter() - clock < _SECONDS_MEASURED):
            until = min(2 * until + 1, self.plan.per_epoch)
            state = self._advance(state, key, until)
        stepped = time.perf_counter()
        training.accuracy(self.network, fresh, self.validation)
        tested = time.perf_counter()
        steps = sum(self.plan.total - _steps_done(of_one) for of_one in unfinished)
        tests = sum(len(self.steps) - len(of_one) for of_one in unfinished)
        return steps * (stepped - clock) / (until * count) + tests * (tested - stepped)

    def _start(self, group: Sequence[int]) -> tuple[jax.Array, list[TrainState]]:
        """The key of initialisation, order and augmentation, [N] of several networks; and the state of each."""
        base = jax.random.fold_in(jax.random.key(self.config.pretrained.seed), 4)
        keys = [jax.random.fold_in(base, index) for index in group]
        states = [training.start(self.network, self.plan, key, self.examples) for key in keys]
        return keys[0] if len(keys) == 1 else jax.numpy.stack(keys), states

    def _join(self, states: list[TrainState]) -> TrainState:
        return states[0] if len(states) == 1 else training.join(states)

    def _advance(
        self, state: TrainState, key: jax.Array, until: int, on_progress: Callable[[int], None] = lambda steps: None
    ) -> TrainState:
        arguments = self.recipe, self.plan, state, key, self.examples, until, on_progress
        return training.advance(self.network, *arguments)

    def _forgotten(self, state: TrainState) -> np.ndarray:
        """By the number of the image in the whole training set."""
        forgotten = np.full(self.images, -1, np.int32)
        forgotten[self.chosen] = state.forgotten
        return forgotten


def milestones(total: int, states: int, spacing: str = "early") -> list[int]:
    """The steps whose states are saved: 0, and `states` more up to the last; fewer where steps are fewer.

    Their distance grows where `spacing` is early, and is the same where it is even.
    """
    power = {"early": 2, "even": 1}[spacing]
    wanted = [round(total * (k / states) ** power) for k in range(states + 1)]
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


def _resume(place: Path, known: Sequence[State], template: TrainState) -> TrainState:
    content = _read(place / f"{known[-1].step}.training", _listed(place).training)
    return jax.device_put(serialization.from_bytes(jax.device_get(template), content))
