"""The compiled program of a method: many iterations of one or several runs, over the devices, as memory allows."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmjax import methods, networks
from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.evaluation.pretrained import TrainedNetworks
from dmjax.methods.base import Chunks, Method, Problem
from dmjax.run import devices, memory, processes
from dmjax.run.devices import ClassSharding


class RunState(NamedTuple):
    """Everything that a run goes on from.

    Attributes:
      iteration: int32 scalar, iterations done.
      method: The state of the method.
    """

    iteration: Any
    method: Any


def make_problem(config: Config, dataset: Dataset) -> Problem:
    """What the method of a resolved configuration works on."""
    problem = make_abstract_problem(config, dataset.num_classes, dataset.image_shape, dataset.mean, dataset.std)
    return dataclasses.replace(problem, dataset=dataset, trained=TrainedNetworks(config, dataset))


def make_abstract_problem(
    config: Any, num_classes: int, image_shape: tuple[int, int, int], mean: np.ndarray, std: np.ndarray
) -> Problem:
    """The same without real images, which is enough to compile."""
    network = networks.create(config.network, num_classes, image_shape, config.method.statistics_axes)
    return Problem(config, network, num_classes, image_shape, mean, std)


def check_chunks(problem: Problem) -> bool:
    """Whether all classes and images must be computed at once: batch norm's statistics are over all of them.

    Raises:
      UserError: they must, and chunks are configured.
    """
    network, config = problem.network, problem.config
    whole = bool(config.method.statistics_axes) and networks.has_batch_norm(network, problem.image_shape)
    for name in ("class_chunk", "image_chunk"):
        if whole and getattr(config, name) != "auto":
            raise UserError(
                f"{name} cannot be {getattr(config, name)} with batch norm, whose statistics are over all images"
            )
    return whole


def run_key(seed: int) -> jax.Array:
    """The key from which all randomness of the iterations of a run is derived."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def state_axes(method: Method) -> RunState:
    """Which leaves of a `RunState` have the class axis in front."""
    return RunState(None, method.state_axes)


def make_chunk(problem: Problem, length: int) -> Any:
    """Returns `length` iterations of R independent runs as one program, in which they share the real images.

    One run after the other, so that each computes what it computes alone: under `vmap` the networks of several runs
    would become grouped convolutions, which are slower on a CPU. On an accelerator neither is measured.

    Returns:
      `(keys [R], R states, data, constants) -> (R states, losses [R, length, C])`.
    """
    method = problem.config.method

    def chunk(keys, states, data, constants):
        def one_run(run):
            key, state = run

            def iterate(state, _):
                step_key = jax.random.fold_in(key, state.iteration)
                returned = method.step(problem, step_key, state.method, data, constants)
                after, losses = methods.checked_step(method, returned, data)
                return RunState(state.iteration + 1, after), losses

            return jax.lax.scan(iterate, state, None, length=length)

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        stacked, losses = jax.lax.map(one_run, (keys, stacked))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(states))], losses

    return chunk


class Programs:
    """The compiled chunks of a configuration, whatever the seed; the data are placed when the first one is wanted.

    Attributes:
      problem: What the method works on.
      method: The method.
      axes: Which leaves of a `RunState` have the class axis in front.
      sharding: Where classes are.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self._config, self._dataset = config, dataset
        self.method: Method = config.method
        self.sharding = ClassSharding(dataset.num_classes, devices.chosen(config, dataset.num_classes))
        self.axes = state_axes(config.method)
        self.problem = make_problem(config, dataset)
        self._whole = check_chunks(self.problem)
        memory.check_images(config, dataset)
        with methods.reported(self.method):
            self._constants = processes.together(lambda: self.method.constants(self.problem))
        self._chunks: Chunks | None = None
        self._compiled: dict[tuple[int, int], Any] = {}

    def first_state(self, seed: int) -> RunState:
        """The state before the first iteration, on the host."""
        with methods.reported(self.method):
            return RunState(np.int32(0), jax.device_get(self.method.start(self.problem, seed)))

    @functools.cached_property
    def arguments(self) -> tuple[Any, Any]:
        """What every call of a program takes besides keys and states: the real images, and the method's constants."""
        data = self.sharding.put_data(self._dataset.images, self._dataset.counts)
        return data, self.sharding.same(self._constants)

    def put_states(self, states: Sequence[RunState]) -> list[RunState]:
        """Places states on the devices."""
        return [self.sharding.put_state(state, self.axes) for state in states]

    def put_keys(self, seeds: Sequence[int]) -> jax.Array:
        """Places the keys of the runs of these seeds on the devices."""
        return self.sharding.put_keys([run_key(seed) for seed in seeds])

    def runs_at_once(self, wanted: int) -> int:
        """How many runs are one program: as many as fit beside each other with the chunks that one run has alone."""
        if wanted == 1:
            return 1
        length, limit = chunk_length(self._config), self._limit()
        chunks = self._chunks or memory.preferred(self._config, self._size, self._whole)
        together, need = memory.compiled(functools.partial(self._compile, length, wanted), chunks)
        if together is not None and need <= limit:  # then one run alone would have these chunks too
            self._chunks, self._compiled[length, wanted] = chunks, together
            return wanted
        alone = memory.peak_bytes(self.get(length, 1))
        return min(wanted, memory.runs_beside(alone, self._state, self.sharding.num_devices, limit))

    def get(self, length: int, runs: int) -> Any:
        """The program for chunks of this length and so many runs."""
        if (length, runs) not in self._compiled:
            compile = functools.partial(self._compile, length, runs)
            if self._chunks is None:
                program, self._chunks = memory.choose(self._config, self._size, compile, self._limit(), self._whole)
            else:
                program = compile(self._chunks)
            self._compiled[length, runs] = program
        return self._compiled[length, runs]

    def _compile(self, length: int, runs: int, chunks: Chunks) -> Any:
        program = make_chunk(dataclasses.replace(self.problem, chunks=chunks), length)
        keys, states = self.put_keys([self._config.seed] * runs), self.put_states([self._state] * runs)
        with methods.reported(self.method):
            return self.sharding.compile(program, keys, states, self.axes, *self.arguments)

    @property
    def _size(self) -> memory.Size:
        return memory.size_of(self._config, self._dataset.images.shape, self.sharding.per_device)

    @functools.cached_property
    def _state(self) -> RunState:
        """That of any run, for its shapes."""
        return self.first_state(self._config.seed)

    def _limit(self) -> float:
        return float(processes.from_all(memory.limit(self._config, self._dataset.num_classes)).min())


def chunk_length(config: Config) -> int:
    """The longest chunk, up to the configured one, that all cadences are multiples of: then one program serves all."""
    cadences = [config.checkpoint.every, config.images_every, config.evaluation.every]
    return min(math.gcd(config.chunk, *cadences), config.method.iterations)
