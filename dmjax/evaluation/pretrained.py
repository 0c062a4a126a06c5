"""Networks trained on the whole training set: trained once, saved at several steps, and shared by runs."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax import networks
from dmjax.common import compilation, files
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import AugmentConfig, Config, EvaluateConfig
from dmjax.data import Dataset
from dmjax.evaluation import on_device, pool_folder, testing, training
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.pool_folder import State
from dmjax.evaluation.training import Recipe, TrainState
from dmjax.networks import custom

_SECONDS_MEASURED = 1.0  # for an estimate; at most an epoch


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
    with pool_folder.claimed(folder, about):
        places = [folder / f"network_{i:03d}" for i in range(_count(config))]
        known = [pool_folder.listed(place).states for place in places]
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
        self.validation = on_device.place_test(images[held_out], labels[held_out], dataset.mean, dataset.std)
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
            states = [pool_folder.resume(*of_one) for of_one in zip(places, known, states, strict=True)]
        state, known, count = self._join(states), list(known), len(group)
        before, start = [_seconds(of_one) for of_one in known], time.perf_counter() - compilation.seconds()
        for step in self.steps[len(known[0]) :]:
            state = self._advance(state, key, step, lambda steps: bar.update(count * steps))
            for i, place in enumerate(places):
                single = state if count == 1 else training.part(state, i)
                accuracy = testing.accuracy(self.network, single.variables, self.validation)
                on_host = jax.device_get(single)
                seconds = before[i] + (time.perf_counter() - compilation.seconds() - start) / count
                known[i] = [*known[i], pool_folder.save(place, on_host, accuracy, self._forgotten(on_host), seconds)]
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
        testing.accuracy(self.network, fresh, self.validation)
        key, states = self._start(range(count))
        clock, state, until = time.perf_counter(), self._join(states), 0
        while until == 0 or (until < self.plan.per_epoch and time.perf_counter() - clock < _SECONDS_MEASURED):
            until = min(2 * until + 1, self.plan.per_epoch)
            state = self._advance(state, key, until)
        stepped = time.perf_counter()
        testing.accuracy(self.network, fresh, self.validation)
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
