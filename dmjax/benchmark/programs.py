"""The programs that are timed: those of a run, on random data, behind `run(n) -> seconds`."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax import memory, networks, objectives, optimizer, training
from dmjax.benchmark.cases import Case
from dmjax.config import GRADIENT, BenchmarkConfig, Config, EvaluationConfig
from dmjax.parallel import ClassSharding
from dmjax.step import CLASSES, DEVICES, Chunks, ClassData, Problem, State, Step, init_state, make_chunk

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
    setup = _setup(case, config, jax.devices()[: config.devices])
    rng = np.random.default_rng(0)
    shape = (case.num_classes, case.images_per_class, *case.image_shape)
    real = rng.integers(0, 256, shape, dtype=np.uint8)
    images = rng.normal(size=(case.num_classes, case.ipc, *case.image_shape)).astype(np.float32)
    keys = setup.sharding.put_keys([jax.random.key(0)])
    states = [setup.sharding.put_state(jax.device_get(init_state(setup.optimizer, images)))]
    data = setup.sharding.put_data(real, np.full(case.num_classes, case.images_per_class))
    start = time.perf_counter()
    compiled, chunks = setup.compile(length, keys, states, data)
    box = [states]

    def run(iterations: int) -> tuple[int, float, float]:
        dispatches = -(-iterations // length)
        start = time.perf_counter()
        for _ in range(dispatches):
            box[0], losses = compiled(keys, box[0], data)
        free = time.perf_counter() - start
        jax.block_until_ready(losses)
        return dispatches * length, time.perf_counter() - start, free

    notes = {
        "compile_seconds": time.perf_counter() - start,
        "peak_bytes": memory.peak_bytes(compiled),
        "chunks": chunks._asdict(),
        "iterations_per_dispatch": length,
        "devices": setup.sharding.num_devices,
        "depth": setup.network.depth,
        "xla_flops": None if case.method in GRADIENT else step_flops(case, config),
    }
    run(length)
    return Program(run, notes)


def plan(case: Case, config: BenchmarkConfig) -> dict[str, Any]:
    """Compiles one iteration without data, and returns what it needs."""
    setup = _setup(case, config, jax.devices()[: config.devices])
    start = time.perf_counter()
    compiled, chunks = setup.compile(1, *setup.abstract(case))
    data_bytes = setup.sharding.per_device * case.images_per_class * int(np.prod(case.image_shape))
    return {
        "name": case.name,
        "peak_bytes": memory.peak_bytes(compiled),
        "real_image_bytes": data_bytes,
        "chunks": chunks._asdict(),
        "compile_seconds": time.perf_counter() - start,
    }


def share_cost(case: Case, config: BenchmarkConfig, num_devices: int) -> dict[str, Any]:
    """What one of `num_devices` devices does in an iteration, by the compiled program's own analysis."""
    setup = _setup(case, config, jax.devices()[:num_devices])
    program = setup.make(1, Chunks())  # without loops, whose bodies the analysis counts once
    compiled = setup.sharding.compile(program, *setup.abstract(case))
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
    setup = _setup(case, config, jax.devices()[:1], axis_name=(CLASSES,))
    step = setup.step(Chunks())
    state, data = _shapes(case, setup.optimizer)
    cost = jax.jit(step).lower(jax.random.key(0), state, data).cost_analysis()
    return cost["flops"]


def evaluating(case: Case, config: BenchmarkConfig, recipe: EvaluationConfig) -> Program:
    """Training of networks on a random small set, and one pass over 10,000 test images."""
    network = build_network(case, config)
    rng = np.random.default_rng(0)
    n = case.num_classes * case.ipc
    moments = _moments(case.image_shape)
    images = rng.uniform(size=(n, *case.image_shape)).astype(np.float32)
    labels = np.repeat(np.arange(case.num_classes, dtype=np.int32), case.ipc)
    examples = jax.device_put(training.Examples(images, labels, *moments))
    test_images = rng.integers(0, 256, (10_000, *case.image_shape), dtype=np.uint8)
    test = training.test_examples(test_images, np.zeros(10_000, np.int32), *moments)
    per_epoch = -(-n // min(recipe.batch_size, n))
    settings = training.make_recipe(recipe, config.augment)

    def train(epochs: int) -> Any:
        return training.train(network, settings, jax.random.key(epochs), examples, epochs)

    def run(steps: int) -> tuple[int, float, None]:
        epochs = -(-steps // per_epoch)
        start = time.perf_counter()
        jax.block_until_ready(train(epochs))
        return epochs * per_epoch, time.perf_counter() - start, None

    shortest = -(-training.steps_per_dispatch(min(recipe.batch_size, n)) // per_epoch)
    start = time.perf_counter()
    variables = train(shortest)
    training.accuracy(network, variables, test)
    first = time.perf_counter() - start
    start = time.perf_counter()
    train(shortest)
    trained = time.perf_counter()
    training.accuracy(network, variables, test)
    tested = time.perf_counter()
    notes = {
        "compile_seconds": max(first - (tested - start), 0.0),
        "test_seconds": tested - trained,
        "steps_per_dispatch": shortest * per_epoch,
        "depth": network.depth,
    }
    return Program(run, notes)


class _Setup(NamedTuple):
    """What the programs of one case share."""

    config: Config
    network: Any
    optimizer: Any
    sharding: ClassSharding
    image_shape: tuple[int, int, int]
    whole: bool

    def make(self, length: int, chunks: Chunks) -> Any:
        return make_chunk(self.step(chunks), length)

    def step(self, chunks: Chunks) -> Step:
        moments, classes = _moments(self.image_shape), self.sharding.num_classes
        return objectives.make_step(Problem(self.network, self.optimizer, self.config, *moments, classes), chunks)

    def compile(self, length: int, *arguments: Any) -> tuple[Any, Chunks]:
        def compile(chunks: Chunks) -> Any:
            return self.sharding.compile(self.make(length, chunks), *arguments)

        limit = memory.limit(self.config)
        return memory.choose(self.config, self.image_shape, self.sharding.per_device, compile, limit, self.whole)

    def abstract(self, case: Case) -> tuple[Any, Any, Any]:
        """Shapes in place of a key, a state and data of one run: enough to compile."""
        state, data = _shapes(case, self.optimizer)
        keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))[None])
        share = self.sharding.share_shapes
        return keys, [State(share(state.images), share(state.optimizer), state.iteration)], share(data)


def _setup(
    case: Case, config: BenchmarkConfig, devices: list[Any], axis_name: tuple[str, ...] = (CLASSES, DEVICES)
) -> _Setup:
    settings = Config(
        method=case.method,
        network=config.network,
        augment=config.augment,
        ipc=case.ipc,
        batch_real=config.batch_real,
        class_chunk=config.class_chunk,
        image_chunk=config.image_chunk,
        memory_gb=config.memory_gb,
    )
    network, whole = objectives.make_network(settings, case.num_classes, case.image_shape)
    if whole:
        memory.check_whole(settings)
    if case.method not in GRADIENT:
        network = networks.create(config.network, case.num_classes, case.image_shape, axis_name)
    sharding = ClassSharding(case.num_classes, devices)
    return _Setup(settings, network, optimizer.create(settings.optimizer), sharding, case.image_shape, whole)


def _moments(image_shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.full(image_shape[2], _MEAN, np.float32), np.full(image_shape[2], _STD, np.float32)


def _shapes(case: Case, optim: Any) -> tuple[State, ClassData]:
    synthetic = jax.ShapeDtypeStruct((case.num_classes, case.ipc, *case.image_shape), np.float32)
    real = jax.ShapeDtypeStruct((case.num_classes, case.images_per_class, *case.image_shape), np.uint8)
    numbers = jax.ShapeDtypeStruct((case.num_classes,), np.int32)
    state = jax.eval_shape(lambda images: init_state(optim, images), synthetic)
    return State(state.images, state.optimizer, jax.ShapeDtypeStruct((), np.int32)), ClassData(real, numbers, numbers)
