"""The condensing loop: chunks, cadences, resume, signals. The only code that talks to the outside while it runs."""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax import artifacts, coreset, networks, optimizer, signals
from dmjax.artifacts import SyntheticSet
from dmjax.checkpoint import Checkpoints
from dmjax.config import Config
from dmjax.data import Dataset, normalize
from dmjax.errors import NonFiniteLoss
from dmjax.evaluate import evaluate
from dmjax.metrics import Metrics
from dmjax.parallel import ClassSharding
from dmjax.progress import progress_bar
from dmjax.step import CLASSES, DEVICES, init_state, make_chunk
from dmjax.workdir import Workdir


class Clock(NamedTuple):
    """Seconds that a run has taken, over all its starts."""

    condense: float = 0.0
    compile: float = 0.0


class Result(NamedTuple):
    """A finished run."""

    synthetic: SyntheticSet
    clock: Clock


def run(config: Config, dataset: Dataset, workdir: Workdir) -> Result:
    """Condenses, from the newest checkpoint if there is one, and writes metrics, pictures, checkpoints and the set.

    Raises:
      NonFiniteLoss: naming the iteration; the last checkpoint is from before.
      signals.Interrupted: after a checkpoint was written.
    """
    return _Run(config, dataset, workdir).to_end()


class _Run:
    def __init__(self, config: Config, dataset: Dataset, workdir: Workdir):
        self.config, self.dataset, self.workdir = config, dataset, workdir
        self.sharding = ClassSharding(dataset.num_classes)
        axes = (CLASSES, DEVICES) if config.network.norm == "batch" else ()
        self.network = networks.create(config.network, dataset.num_classes, dataset.image_shape, axes)
        self.optimizer = optimizer.create(config.optimizer)
        root = jax.random.key(config.seed)
        self.key = self.sharding.same(jax.random.fold_in(root, 1))
        first = jax.device_get(init_state(self.optimizer, _first_images(config, dataset, jax.random.fold_in(root, 0))))
        self.about = workdir.describe(config, dataset)  # the first thing written: what cannot work has failed by now
        self.checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint.keep)
        restored = self.checkpoints.restore(first)
        state, notes = restored or (first, {})
        self.clock = Clock(**notes)
        self.state = self.sharding.put_state(state)
        self.done = int(state.iteration)
        self.metrics = Metrics(workdir.path, self.done)
        self.programs: dict[int, Any] = {}
        if restored is None:
            self._save()  # what can go wrong with the disk goes wrong now

    def to_end(self) -> Result:
        config = self.config
        bar = progress_bar(None, "condensing", config.progress, config.iterations, initial=self.done)
        try:
            with bar:
                self._observe()
                while self.done < config.iterations:
                    length = min(chunk_length(config), config.iterations - self.done)
                    program = self._program(length)
                    signals.check()
                    loss = self._advance(program, length)
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    bar.update(length)
                    signals.check()
                    self._observe()
            return self._finish()
        except signals.Interrupted:
            self._save()
            raise
        finally:
            self.metrics.close()
            self.checkpoints.close()

    def _program(self, length: int) -> Any:
        """Compiles the chunk of this length, once."""
        if length not in self.programs:
            start = time.perf_counter()
            if not self.programs:
                self.data = self.sharding.put_data(self.dataset.images, self.dataset.counts)
            class_chunk = _class_chunk(self.config, self.sharding.per_device)
            mean, std = self.dataset.mean, self.dataset.std
            chunk = make_chunk(self.network, self.optimizer, self.config, mean, std, length, class_chunk)
            self.programs[length] = self.sharding.compile(chunk, self.key, self.state, self.data)
            self.clock = self.clock._replace(compile=self.clock.compile + time.perf_counter() - start)
        return self.programs[length]

    def _advance(self, program: Any, length: int) -> float:
        """Runs one chunk, records its losses, and saves where it is time to. Returns the mean loss."""
        start = time.perf_counter()
        self.state, losses = program(self.key, self.state, self.data)
        losses = self.sharding.losses(losses)
        seconds = time.perf_counter() - start
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            raise _not_finite(f"the loss is {losses[bad[0]]} at iteration {self.done + bad[0] + 1}", self.config)
        self.done += length
        self.clock = self.clock._replace(condense=self.clock.condense + seconds)
        loss = float(losses.mean())
        self.metrics.write(self.done, loss=loss, iterations_per_second=length / seconds)
        if self.done % self.config.checkpoint.every == 0 or self.done == self.config.iterations:
            self._save()
        return loss

    def _observe(self) -> None:
        """Pictures and evaluations that are due now and were not made before."""
        config, last = self.config, self.done == self.config.iterations
        path = self.workdir.picture(self.done)
        if not path.exists() and (last or _is_due(self.done, config.images_every) or self.done == 0):
            synthetic = self._synthetic()
            synthetic.save_picture(path)
            self.metrics.picture(self.done, np.asarray(synthetic.picture()))
        due = self.done > 0 and not last and _is_due(self.done, config.evaluation.every)
        if due and self.done not in self.metrics.evaluated:
            accuracy = evaluate(self._synthetic(), self.dataset, seed=config.seed, progress=config.progress)
            self.metrics.write(self.done, accuracy_mean=accuracy.mean, accuracy_std=accuracy.std)

    def _synthetic(self) -> SyntheticSet:
        """The synthetic set as it is now, in pixels."""
        images = self.sharding.join(self.state.images)
        metadata = {**self.about, "iterations": self.done}
        mean, std = self.dataset.mean, self.dataset.std
        return artifacts.from_pixels(images * std + mean, mean, std, self.dataset.class_names, metadata)

    def _save(self) -> None:
        state = self.sharding.get_state(self.state)
        if not np.isfinite(state.images).all():  # the loss of the last step was finite, its update was not
            raise _not_finite(f"the synthetic images are not finite after iteration {self.done}", self.config)
        self.checkpoints.save(state, self.clock._asdict())

    def _finish(self) -> Result:
        synthetic = self._synthetic()
        synthetic.save(self.workdir.synthetic)
        return Result(synthetic, self.clock)


def chunk_length(config: Config) -> int:
    """The longest chunk, up to the configured one, that all cadences are multiples of: then one program serves all."""
    cadences = [config.checkpoint.every, config.images_every, config.evaluation.every]
    return min(math.gcd(config.chunk, *cadences), config.iterations)


def _class_chunk(config: Config, per_device: int) -> int | None:
    """The classes to compute at once; None for all, which batch norm needs since its statistics are over all."""
    if config.network.norm == "batch":
        return None
    default = 1 if jax.default_backend() == "cpu" else per_device
    chunk = config.class_chunk or default
    return None if chunk >= per_device > 1 else chunk


def _first_images(config: Config, dataset: Dataset, key: jax.Array) -> np.ndarray:
    """Normalised images [C, M, H, W, D] to start from."""
    if config.init == "real":
        return normalize(coreset.random(dataset, config.ipc, key), dataset.mean, dataset.std)
    shape = (dataset.num_classes, config.ipc, *dataset.image_shape)
    return np.asarray(jax.random.normal(key, shape))


def _not_finite(what: str, config: Config) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"{what}; lower --optimizer.learning-rate (now {config.optimizer.learning_rate:g}) and choose another "
        "--workdir; the last good state is kept"
    )


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
