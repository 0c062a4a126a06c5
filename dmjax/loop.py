"""The loop of all methods: chunks, cadences, resume, signals. The only code that talks to the outside while it runs."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dmjax import artifacts, compilation, coreset, memory, objectives, optimizer, pretrained, processes, signals
from dmjax.config import CORESETS, Config
from dmjax.data import Dataset, normalize
from dmjax.errors import NonFiniteLoss
from dmjax.parallel import ClassSharding
from dmjax.progress import progress_bar
from dmjax.record import Clock, Record, Result
from dmjax.step import Chunks, Problem, State, init_state, make_chunk
from dmjax.workdir import Workdir


def run(config: Config, dataset: Dataset, workdir: Workdir | None) -> Result:
    """Condenses, from the newest checkpoint if there is one, and writes metrics, pictures, checkpoints and the set.

    A coreset is chosen at once, with nothing to resume but the network that is trained for it.

    Args:
      config: What to do.
      dataset: The real images.
      workdir: Where to write; None in all processes but the first, which compute their classes only.

    Raises:
      NonFiniteLoss: naming the iteration; the last checkpoint is from before.
      signals.Interrupted: after a checkpoint was written.
    """
    [result] = run_together([config], dataset, [workdir])
    if isinstance(result, NonFiniteLoss):
        raise result
    return result


def run_together(
    configs: Sequence[Config], dataset: Dataset, workdirs: Sequence[Workdir | None]
) -> list[Result | NonFiniteLoss]:
    """The same for several seeds: as many as fit in memory are one program, and each gives what it gives alone.

    Args:
      configs: Of the runs, which differ in nothing but their seed and workdir.
      dataset: The real images, which they share.
      workdirs: One a run.

    Returns:
      One result a run. A run whose loss is not finite does not stop the others: its result is the exception.

    Raises:
      signals.Interrupted: after a checkpoint of each was written.
    """
    if configs[0].method in CORESETS:
        return [_choose(config, dataset, workdir) for config, workdir in zip(configs, workdirs, strict=True)]
    programs = _Programs(configs[0], dataset)
    results: dict[int, Result | NonFiniteLoss] = {}
    with contextlib.ExitStack() as stack:
        opened = []
        for config, workdir in zip(configs, workdirs, strict=True):
            record = Record(config, dataset, workdir)
            stack.callback(record.close)
            opened.append((record, record.open(programs.first_state(config.seed))))
        # A kill between their checkpoints leaves runs at different iterations: each group goes on from its own.
        order = sorted(range(len(opened)), key=lambda i: opened[i][0].done)
        for _, same in itertools.groupby(order, key=lambda i: opened[i][0].done):
            group, start = list(same), time.perf_counter()
            at_once = programs.runs_at_once(len(group))
            for i in group:
                opened[i][0].compiled((time.perf_counter() - start) / len(group))
            for members in (group[i : i + at_once] for i in range(0, len(group), at_once)):
                records, states = zip(*(opened[i] for i in members), strict=True)
                results |= dict(zip(members, _Together(programs, records, states).to_end(), strict=True))
    return [results[i] for i in range(len(opened))]


def _choose(config: Config, dataset: Dataset, workdir: Workdir | None) -> Result:
    if config.method != "random":  # train the network first, which is timed where it happens
        processes.together(lambda: coreset.check_method(config, dataset))
        processes.together(lambda: coreset.network(config, dataset))
    start, compiled = time.perf_counter(), compilation.seconds()
    chosen, training = processes.together(lambda: coreset.select(config, dataset))
    compiling = compilation.seconds() - compiled
    clock = Clock(training + time.perf_counter() - start - compiling, compiling)
    metadata = {**workdir.describe(config, dataset), "iterations": 0} if workdir else {}
    mean, std = dataset.mean, dataset.std
    synthetic = artifacts.from_pixels(chosen, mean, std, dataset.class_names, metadata)
    if workdir is not None:
        synthetic.save_picture(workdir.picture(0))
        synthetic.save(workdir.synthetic)
    return Result(synthetic, clock)


class _Programs:
    """The compiled chunks of a configuration, whatever the seed; the data are placed when the first one is wanted."""

    def __init__(self, config: Config, dataset: Dataset):
        self.config, self.dataset = config, dataset
        self.sharding = ClassSharding(dataset.num_classes)
        network, self.whole = objectives.make_network(config, dataset.num_classes, dataset.image_shape)
        if self.whole:
            memory.check_whole(config)
        self.trained = processes.together(lambda: _trained(config, dataset))
        optim = optimizer.create(config.optimizer)
        self.problem = Problem(network, optim, config, dataset.mean, dataset.std, dataset.num_classes)
        self._chunks: Chunks | None = None
        self._compiled: dict[tuple[int, int], Any] = {}

    def first_state(self, seed: int) -> State:
        """The state before the first iteration, on the host."""
        images = _first_images(self.config, self.dataset, jax.random.fold_in(jax.random.key(seed), 0))
        return jax.device_get(init_state(self.problem.optimizer, images))

    def key(self, seed: int) -> jax.Array:
        """The key from which all randomness of the iterations is folded."""
        return jax.random.fold_in(jax.random.key(seed), 1)

    @functools.cached_property
    def arguments(self) -> tuple[Any, ...]:
        """What every call of a program takes besides keys and states: the real images, and trained networks."""
        data = self.sharding.put_data(self.dataset.images, self.dataset.counts)
        return data, *(self.sharding.same(variables) for variables in self.trained)

    def runs_at_once(self, wanted: int) -> int:
        """How many runs are one program: as many as fit beside each other with the chunks that one run has alone."""
        if wanted == 1:
            return 1
        length, limit, per_device = chunk_length(self.config), self._limit(), self.sharding.per_device
        chunks = self._chunks or memory.preferred(self.config, self._shape, per_device, self.whole)
        together = self._compile(length, wanted, chunks)
        if memory.peak_bytes(together) <= limit:  # then one run alone would have these chunks too
            self._chunks, self._compiled[length, wanted] = chunks, together
            return wanted
        alone = memory.peak_bytes(self.get(length, 1))
        return min(wanted, memory.runs_beside(alone, self._state, self.sharding.num_devices, limit))

    def get(self, length: int, runs: int) -> Any:
        """The program for chunks of this length and so many runs."""
        if (length, runs) not in self._compiled:
            compile = functools.partial(self._compile, length, runs)
            if self._chunks is None:
                per_device, limit = self.sharding.per_device, self._limit()
                program, self._chunks = memory.choose(self.config, self._shape, per_device, compile, limit, self.whole)
            else:
                program = compile(self._chunks)
            self._compiled[length, runs] = program
        return self._compiled[length, runs]

    def _compile(self, length: int, runs: int, chunks: Chunks) -> Any:
        program, key = make_chunk(objectives.make_step(self.problem, chunks), length), self.key(self.config.seed)
        keys = self.sharding.put_keys([key] * runs)
        states = [self.sharding.put_state(self._state)] * runs
        return self.sharding.compile(program, keys, states, *self.arguments)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.dataset.image_shape

    @functools.cached_property
    def _state(self) -> State:
        """That of any run, for its shapes."""
        return self.first_state(self.config.seed)

    def _limit(self) -> float:
        return float(processes.from_all(memory.limit(self.config)).min())


class _Together:
    """Runs at the same iteration, which advance as one program."""

    def __init__(self, programs: _Programs, records: Sequence[Record], states: Sequence[State]):
        self._programs, self._sharding, self._config = programs, programs.sharding, records[0].config
        self._all, self._records = records, list(records)  # those that can go on
        self._states = [self._sharding.put_state(state) for state in states]
        self._place_keys()

    def to_end(self) -> list[Result | NonFiniteLoss]:
        config, runs = self._config, len(self._records)
        done, total = self._records[0].done, config.iterations
        what = "condensing" if runs == 1 else f"condensing {runs} runs"
        try:
            with progress_bar(None, what, config.progress, total, initial=done) as bar:
                self._observe(done)
                while done < total and self._records:
                    length = min(chunk_length(config), total - done)
                    start = time.perf_counter()
                    program = self._programs.get(length, len(self._states))
                    compiled = time.perf_counter() - start
                    processes.check_signals()
                    loss = self._advance(program, length, compiled)
                    done += length
                    if done % config.checkpoint.every == 0 or done == total:
                        self._save()
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    bar.update(length)
                    processes.check_signals()
                    self._observe(done)
        except signals.Interrupted:
            self._save()
            raise
        finished = {
            id(record): record.finish(self._sharding.join(state.images))
            for record, state in zip(self._records, self._states, strict=True)
        }
        return [record.failure or finished[id(record)] for record in self._all]

    def _advance(self, program: Any, length: int, compiled: float) -> float:
        """Runs one chunk and notes the losses, an equal part of the time for every run. Returns the mean loss."""
        start, runs = time.perf_counter(), len(self._records)
        self._states, losses = program(self._keys, self._states, *self._programs.arguments)
        losses = self._sharding.losses(losses)
        seconds = time.perf_counter() - start
        for record, of_run in zip(self._records, losses, strict=True):
            record.compiled(compiled / runs)
            record.advance(of_run, seconds / runs)
        self._leave_failed()
        return float(losses.mean())

    def _save(self) -> None:
        """Writes a checkpoint of every run; all processes call this together."""
        for record, state in zip(self._records, self._states, strict=True):
            record.save(self._sharding.get_state(state))
        self._leave_failed()

    def _leave_failed(self) -> None:
        """The runs that failed are left behind."""
        if any(record.failure for record in self._records):
            going = [i for i, record in enumerate(self._records) if record.failure is None]
            self._records, self._states = [self._records[i] for i in going], [self._states[i] for i in going]
            self._place_keys()

    def _place_keys(self) -> None:
        if self._records:
            self._keys = self._sharding.put_keys([self._programs.key(record.config.seed) for record in self._records])

    def _observe(self, done: int) -> None:
        """Pictures and evaluations that are due now; all processes call this together."""
        config, last = self._config, done == self._config.iterations
        picture = last or done == 0 or _is_due(done, config.images_every)
        accuracy = not last and done > 0 and _is_due(done, config.evaluation.every)
        if picture or accuracy:
            for record, state in zip(self._records, self._states, strict=True):
                record.observe(self._sharding.join(state.images), picture, accuracy)


def chunk_length(config: Config) -> int:
    """The longest chunk, up to the configured one, that all cadences are multiples of: then one program serves all."""
    cadences = [config.checkpoint.every, config.images_every, config.evaluation.every]
    return min(math.gcd(config.chunk, *cadences), config.iterations)


def _first_images(config: Config, dataset: Dataset, key: jax.Array) -> np.ndarray:
    """Normalised images [C, M, H, W, D] to start from."""
    if config.init == "real":
        return normalize(coreset.random(dataset, config.ipc, key), dataset.mean, dataset.std)
    shape = (dataset.num_classes, config.ipc, *dataset.image_shape)
    return np.asarray(jax.random.normal(key, shape))


def _trained(config: Config, dataset: Dataset) -> list[Any]:
    """The variables of the networks that embeddings are drawn from; none where every iteration has fresh ones."""
    if config.embedding.distribution == "random":
        return []
    return [pretrained.stack(pretrained.select(pretrained.states(config, dataset), config.embedding.accuracy))]


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
