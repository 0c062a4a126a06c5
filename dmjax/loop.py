"""The loop of all methods: chunks, cadences, resume, signals. The only code that talks to the outside while it runs."""

import functools
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax import artifacts, compilation, coreset, memory, objectives, optimizer, pretrained, processes, signals
from dmjax.artifacts import SyntheticSet
from dmjax.checkpoint import Checkpoints
from dmjax.config import CORESETS, Config
from dmjax.data import Dataset, normalize
from dmjax.errors import NonFiniteLoss
from dmjax.evaluate import evaluate
from dmjax.metrics import Metrics
from dmjax.parallel import ClassSharding
from dmjax.progress import progress_bar
from dmjax.step import Chunks, State, init_state, make_chunk
from dmjax.workdir import Workdir


class Clock(NamedTuple):
    """Seconds that a run has taken, over all its starts."""

    condense: float = 0.0
    compile: float = 0.0


class Result(NamedTuple):
    """A finished run."""

    synthetic: SyntheticSet
    clock: Clock


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
    return _choose(config, dataset, workdir) if config.method in CORESETS else _Run(config, dataset, workdir).to_end()


def _choose(config: Config, dataset: Dataset, workdir: Workdir | None) -> Result:
    if config.method != "random":  # train the network first, which is timed where it happens
        processes.together(lambda: pretrained.states(config, dataset))
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


class _Run:
    def __init__(self, config: Config, dataset: Dataset, workdir: Workdir | None):
        self.config, self.dataset, self.workdir = config, dataset, workdir
        self.sharding = ClassSharding(dataset.num_classes)
        shape = dataset.image_shape
        self.network, self.whole = objectives.make_network(config, dataset.num_classes, shape)
        if self.whole:
            memory.check_whole(config)
        self.trained = processes.together(lambda: _trained(config, dataset))
        self.optimizer = optimizer.create(config.optimizer)
        root = jax.random.key(config.seed)
        self.key = self.sharding.put_key(jax.random.fold_in(root, 1))
        first = jax.device_get(init_state(self.optimizer, _first_images(config, dataset, jax.random.fold_in(root, 0))))
        state, clock = processes.from_first(processes.together(lambda: self._open(first)))
        self.clock = Clock(*(float(seconds) for seconds in clock))
        self.state = self.sharding.put_state(state)
        self.done = int(state.iteration)
        self.chunks: Chunks | None = None
        self.programs: dict[int, Any] = {}

    def _open(self, first: State) -> tuple[State, Clock]:
        """Takes up the workdir: returns what the newest checkpoint holds, or the first state where there is none."""
        if self.workdir is None:
            return first, Clock()
        # The first thing written: what cannot work has failed by now.
        self.about = self.workdir.describe(self.config, self.dataset)
        self.checkpoints = Checkpoints(self.workdir.checkpoints, self.config.checkpoint.keep)
        restored = self.checkpoints.restore(first)
        state, notes = restored or (first, {})
        self.metrics = Metrics(self.workdir.path, int(state.iteration))
        if restored is None:
            self.checkpoints.save(first, Clock()._asdict())  # what can go wrong with the disk goes wrong now
        return state, Clock(**notes)

    def to_end(self) -> Result:
        config = self.config
        bar = progress_bar(None, "condensing", config.progress, config.iterations, initial=self.done)
        try:
            with bar:
                self._observe()
                while self.done < config.iterations:
                    length = min(chunk_length(config), config.iterations - self.done)
                    program = self._program(length)
                    processes.check_signals()
                    loss = self._advance(program, length)
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    bar.update(length)
                    processes.check_signals()
                    self._observe()
            return self._finish()
        except signals.Interrupted:
            self._save()
            raise
        finally:
            if self.workdir is not None:
                self.metrics.close()
                self.checkpoints.close()

    def _program(self, length: int) -> Any:
        """Compiles the chunk of this length, once."""
        if length not in self.programs:
            start = time.perf_counter()
            if not self.programs:
                self.data = self.sharding.put_data(self.dataset.images, self.dataset.counts)
                self.shared = [self.sharding.same(variables) for variables in self.trained]
            if self.chunks is None:
                limit = float(processes.from_all(memory.limit(self.config)).min())
                compile = functools.partial(self._compile, length)
                shape, per_device = self.dataset.image_shape, self.sharding.per_device
                program, self.chunks = memory.choose(self.config, shape, per_device, compile, limit, self.whole)
            else:
                program = self._compile(length, self.chunks)
            self.programs[length] = program
            self.clock = self.clock._replace(compile=self.clock.compile + time.perf_counter() - start)
        return self.programs[length]

    def _compile(self, length: int, chunks: Chunks) -> Any:
        mean, std = self.dataset.mean, self.dataset.std
        step = objectives.make_step(
            self.network, self.optimizer, self.config, mean, std, chunks, self.dataset.num_classes
        )
        program = make_chunk(step, length)
        return self.sharding.compile(program, self.key, self.state, self.data, *self.shared)

    def _advance(self, program: Any, length: int) -> float:
        """Runs one chunk, records its losses, and saves where it is time to. Returns the mean loss."""
        start = time.perf_counter()
        self.state, losses = program(self.key, self.state, self.data, *self.shared)
        losses = self.sharding.losses(losses)
        seconds = time.perf_counter() - start
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            raise _not_finite(f"the loss is {losses[bad[0]]} at iteration {self.done + bad[0] + 1}", self.config)
        self.done += length
        self.clock = self.clock._replace(condense=self.clock.condense + seconds)
        loss = float(losses.mean())
        if self.workdir is not None:
            self.metrics.write(self.done, loss=loss, iterations_per_second=length / seconds)
        if self.done % self.config.checkpoint.every == 0 or self.done == self.config.iterations:
            self._save()
        return loss

    def _observe(self) -> None:
        """Pictures and evaluations that are due now and were not made before."""
        config, last = self.config, self.done == self.config.iterations
        picture = last or self.done == 0 or _is_due(self.done, config.images_every)
        accuracy = not last and self.done > 0 and _is_due(self.done, config.evaluation.every)
        if not picture and not accuracy:
            return
        synthetic = self._synthetic()
        if self.workdir is None:
            return
        path = self.workdir.picture(self.done)
        if picture and not path.exists():
            synthetic.save_picture(path)
            self.metrics.picture(self.done, np.asarray(synthetic.picture()))
        if accuracy and self.done not in self.metrics.evaluated:
            reached = evaluate(synthetic, self.dataset, seed=config.seed, progress=config.progress)
            self.metrics.write(self.done, accuracy_mean=reached.mean, accuracy_std=reached.std)

    def _synthetic(self) -> SyntheticSet:
        """The synthetic set as it is now, in pixels; all processes call this together."""
        images = self.sharding.join(self.state.images)
        metadata = {**self.about, "iterations": self.done} if self.workdir is not None else {}
        mean, std = self.dataset.mean, self.dataset.std
        return artifacts.from_pixels(images * std + mean, mean, std, self.dataset.class_names, metadata)

    def _save(self) -> None:
        """Writes a checkpoint; all processes call this together."""
        state = self.sharding.get_state(self.state)
        if not np.isfinite(state.images).all():  # the loss of the last step was finite, its update was not
            raise _not_finite(f"the synthetic images are not finite after iteration {self.done}", self.config)
        if self.workdir is not None:
            self.checkpoints.save(state, self.clock._asdict())

    def _finish(self) -> Result:
        synthetic = self._synthetic()
        if self.workdir is not None:
            synthetic.save(self.workdir.synthetic)
        return Result(synthetic, self.clock)


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


def _not_finite(what: str, config: Config) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"{what}; lower --optimizer.learning-rate (now {config.optimizer.learning_rate:g}) and choose another "
        "--workdir; the last good state is kept"
    )


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
