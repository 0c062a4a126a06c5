"""The programs that are timed: those of a run, on random data, behind `run(n) -> seconds`."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax import networks
from dmjax.benchmark import cases
from dmjax.benchmark.cases import Case
from dmjax.config import BenchmarkConfig, EvaluationConfig
from dmjax.evaluation import on_device, testing, training
from dmjax.evaluation.judge import networks_at_once
from dmjax.methods.base import DEVICES, Chunks, ClassData
from dmjax.run import devices, memory
from dmjax.run.devices import ClassSharding
from dmjax.run.program import RunState, check_chunks, make_abstract_problem, make_chunk, state_axes

_MEAN, _STD = 0.5, 0.25


class Program(NamedTuple):
    """Something to time.

    Attributes:
      run: Runs about this many iterations (steps); returns how many they were, the seconds they took, and the seconds
        after which the host was free again (None where it waits for results in between).
      notes: What is known before it runs.
    """

    run: Callable[[int], tuple[int, float, float | None]]
    notes: dict[str, Any]


def build_network(case: Case, config: BenchmarkConfig) -> Any:
    """The network of a case, with its depth chosen."""
    return networks.create(config.network, case.num_classes, case.image_shape)


def condensing(case: Case, config: BenchmarkConfig, length: int) -> Program:
    """The compiled chunk of `length` iterations on the configured devices."""
    setup = Setup(case, config, _devices(case, config))
    rng = np.random.default_rng(0)
    shape = (case.num_classes, case.images_per_class, *case.image_shape)
    real = rng.integers(0, 256, shape, dtype=np.uint8)
    keys = setup.sharding.put_keys([jax.random.key(0)])
    states = [setup.sharding.put_state(setup.first_state(), setup.axes)]
    data = setup.sharding.put_data(real, np.full(case.num_classes, case.images_per_class))
    constants = setup.sharding.same(setup.constants())
    start = time.perf_counter()
    compiled, chunks = setup.compile(length, keys, states, data, constants)
    box = [states]

    def run(iterations: int) -> tuple[int, float, float]:
        dispatches = -(-iterations // length)
        start = time.perf_counter()
        for _ in range(dispatches):
            box[0], losses = compiled(keys, box[0], data, constants)
        free = time.perf_counter() - start
        jax.block_until_ready(losses)
        return dispatches * length, time.perf_counter() - start, free

    notes = {
        "compile_seconds": time.perf_counter() - start,
        "peak_bytes": memory.peak_bytes(compiled),
        "chunks": chunks._asdict(),
        "iterations_per_dispatch": length,
        "devices": setup.sharding.num_devices,
        "depth": setup.problem.network.depth,
        "xla_flops": None if setup.method.inner_loop else step_flops(case, config),
    }
    run(length)
    return Program(run, notes)


def _devices(case: Case, config: BenchmarkConfig) -> list[Any]:
    """Those that a run of the case would take, or the first of them."""
    return devices.chosen(cases.settings(case, config), case.num_classes)[: config.devices]


def plan(case: Case, config: BenchmarkConfig) -> dict[str, Any]:
    """Compiles one iteration without data, and returns what it needs on a device; the host needs next to nothing."""
    setup = Setup(case, config, _devices(case, config))
    start = time.perf_counter()
    compiled, chunks = setup.compile(1, *setup.abstract())
    data_bytes = setup.sharding.per_device * case.images_per_class * int(np.prod(case.image_shape))
    analysis = compiled.memory_analysis()
    return {
        "name": case.name,
        "devices": setup.sharding.num_devices,
        "classes_per_device": setup.sharding.per_device,
        "peak_bytes": memory.peak_bytes(compiled),
        "real_image_bytes": data_bytes,
        "state_bytes": int(analysis.output_size_in_bytes),
        "temporary_bytes": int(analysis.temp_size_in_bytes),
        "chunks": chunks._asdict(),
        "compile_seconds": time.perf_counter() - start,
    }


def share_cost(case: Case, config: BenchmarkConfig, num_devices: int) -> dict[str, Any]:
    """What one of `num_devices` devices does in an iteration, by the compiled program's own analysis."""
    setup = Setup(case, config, jax.devices()[:num_devices])
    keys, states, data, constants = setup.abstract()
    program = setup.make(1, Chunks())  # without loops, whose bodies the analysis counts once
    compiled = setup.sharding.compile(program, keys, states, setup.axes, data, constants)
    cost, text = compiled.cost_analysis(), compiled.as_text()
    collectives = {
        name: text.count(f" {name}(") for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    }
    return {
        "devices": num_devices,
        "classes": case.num_classes,
        "flops_per_device": cost["flops"],
        "bytes_per_device": cost["bytes accessed"],
        "peak_bytes": memory.peak_bytes(compiled),
        "collectives": {name: n for name, n in collectives.items() if n},
    }


def step_flops(case: Case, config: BenchmarkConfig) -> float:
    """XLA's count for one iteration of all classes, before optimisation: without loops, and without compiling."""
    setup = Setup(case, config, jax.devices()[:1])
    _, [state], data, constants = setup.abstract()
    step = functools.partial(setup.method.step, dataclasses.replace(setup.problem, chunks=Chunks()))
    one_device = jax.vmap(step, (None, setup.method.state_axes, 0, None), axis_name=DEVICES)
    lowered = jax.jit(one_device).lower(jax.random.key(0), state.method, data, constants)
    return lowered.cost_analysis()["flops"]


def evaluating(case: Case, config: BenchmarkConfig, recipe: EvaluationConfig) -> Program:
    """Training of networks on a random small set, as many at the same time as where sets are judged.

    The steps of all of them count. One pass over 10,000 test images is timed beside, for one network.
    """
    network = build_network(case, config)
    examples, n = jax.device_put(small_set(case)), case.num_classes * case.ipc
    test_images = np.random.default_rng(0).integers(0, 256, (10_000, *case.image_shape), dtype=np.uint8)
    test = on_device.place_test(test_images, np.zeros(10_000, np.int32), *_moments(case.image_shape))
    settings = training.make_recipe(recipe, config.augment)
    per_epoch = -(-n // min(settings.batch_size, n))

    at_once = networks_at_once()
    # Whole dispatches, so that the program that is timed is the one that was compiled before.
    shortest = -(-training.steps_per_dispatch(min(settings.batch_size, n)) // per_epoch)

    def train(epochs: int, seed: int = 0) -> Any:
        return jax.block_until_ready(training.train(network, settings, jax.random.key(seed), examples, epochs))

    def run(steps: int) -> tuple[int, float, None]:
        epochs = shortest * -(-steps // (shortest * per_epoch * at_once))
        start = time.perf_counter()
        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(functools.partial(train, epochs), range(at_once)))
        return epochs * per_epoch * at_once, time.perf_counter() - start, None

    start = time.perf_counter()
    variables = train(shortest)
    testing.accuracy(network, variables, test)
    first = time.perf_counter() - start
    start = time.perf_counter()
    train(shortest)
    trained = time.perf_counter()
    testing.accuracy(network, variables, test)
    tested = time.perf_counter()
    notes = {
        "compile_seconds": max(first - (tested - start), 0.0),
        "test_seconds": tested - trained,
        "networks_at_once": at_once,
        "steps_per_dispatch": shortest * per_epoch,
        "depth": network.depth,
    }
    return Program(run, notes)


def small_set(case: Case) -> on_device.Examples:
    """Random images in place of synthetic ones, on the host."""
    images = np.random.default_rng(0).uniform(size=(case.num_classes * case.ipc, *case.image_shape))
    labels = np.repeat(np.arange(case.num_classes, dtype=np.int32), case.ipc)
    return on_device.Examples(images.astype(np.float32), labels, *_moments(case.image_shape))


class Setup:
    """What the programs of one case share."""

    def __init__(self, case: Case, config: BenchmarkConfig, devices: list[Any]):
        self.config = cases.settings(case, config)
        self.method, self.axes, self._case = self.config.method, state_axes(self.config.method), case
        moments = _moments(case.image_shape)
        self.problem = make_abstract_problem(self.config, case.num_classes, case.image_shape, *moments)
        self._whole = check_chunks(self.problem)
        self.sharding = ClassSharding(case.num_classes, devices)

    def first_state(self) -> RunState:
        """A state that starts from noise."""
        return RunState(np.int32(0), jax.device_get(self.method.start(self.problem, 0)))

    def make(self, length: int, chunks: Chunks) -> Any:
        """`length` iterations as one program, not yet compiled."""
        return make_chunk(dataclasses.replace(self.problem, chunks=chunks), length)

    def constants(self) -> Any:
        """What all devices hold besides the state: random networks in place of trained ones."""
        return self.method.constants(self.problem)

    def compile(
        self, length: int, keys: Any, states: Any, data: Any, constants: Any, limit: float | None = None
    ) -> tuple[Any, Chunks]:
        """The compiled program, with the chunks that were chosen for it; `limit` as for `memory.choose`."""
        case, sharding = self._case, self.sharding
        real = (case.num_classes, case.images_per_class, *case.image_shape)

        def compile(chunks: Chunks) -> Any:
            return sharding.compile(self.make(length, chunks), keys, states, self.axes, data, constants)

        size = memory.size_of(self.config, real, sharding.per_device)
        limit = limit or memory.limit(self.config, case.num_classes)
        return memory.choose(self.config, size, compile, limit, self._whole)

    def abstract(self) -> tuple[Any, Any, Any, Any]:
        """Shapes in place of a key, a state and data of one run, and the constants: enough to compile."""
        state, data = self.shapes()
        keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))[None])
        return keys, [self.sharding.state_shapes(state, self.axes)], self.sharding.data_shapes(data), self.constants()

    def shapes(self) -> tuple[RunState, ClassData]:
        """Shapes of the state and of the real images."""
        case = self._case
        real = jax.ShapeDtypeStruct((case.num_classes, case.images_per_class, math.prod(case.image_shape)), np.uint8)
        numbers = jax.ShapeDtypeStruct((case.num_classes,), np.int32)
        state = jax.eval_shape(lambda: self.method.start(self.problem, 0))
        return RunState(jax.ShapeDtypeStruct((), np.int32), state), ClassData(real, numbers, numbers)


def _moments(image_shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.full(image_shape[2], _MEAN, np.float32), np.full(image_shape[2], _STD, np.float32)
