"""What one run leaves behind: metrics, pictures, checkpoints, the set. All processes but the first write nothing."""

from typing import Any, NamedTuple

import numpy as np

from dmjax import artifacts, processes
from dmjax.artifacts import SyntheticSet
from dmjax.checkpoint import Checkpoints
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.errors import NonFiniteLoss
from dmjax.evaluate import evaluate
from dmjax.metrics import Metrics
from dmjax.step import State
from dmjax.workdir import Workdir


class Clock(NamedTuple):
    """Seconds that a run has taken, over all its starts."""

    condense: float = 0.0
    compile: float = 0.0


class Result(NamedTuple):
    """A finished run."""

    synthetic: SyntheticSet
    clock: Clock


class Record:
    """One run, as it is written down.

    Attributes:
      config: What it does.
      done: Iterations behind it.
      clock: The time that they took.
      failure: Why it cannot go on; None as long as it can.
    """

    def __init__(self, config: Config, dataset: Dataset, workdir: Workdir | None):
        self.config, self._dataset, self._workdir = config, dataset, workdir
        self.done, self.clock = 0, Clock()
        self.failure: NonFiniteLoss | None = None
        self._about: dict[str, Any] = {}
        self._metrics: Metrics | None = None
        self._checkpoints: Checkpoints | None = None

    def open(self, first: State) -> State:
        """Takes up the workdir: returns what the newest checkpoint holds, or the first state where there is none.

        All processes call this together.
        """
        state, clock = processes.from_first(processes.together(lambda: self._open(first)))
        self.clock = Clock(*(float(seconds) for seconds in clock))
        self.done = int(state.iteration)
        return state

    def _open(self, first: State) -> tuple[State, Clock]:
        if self._workdir is None:
            return first, Clock()
        # The first thing written: what cannot work has failed by now.
        self._about = self._workdir.describe(self.config, self._dataset)
        self._checkpoints = Checkpoints(self._workdir.checkpoints, self.config.checkpoint.keep)
        restored = self._checkpoints.restore(first)
        state, notes = restored or (first, {})
        self._metrics = Metrics(self._workdir.path, int(state.iteration))
        if restored is None:
            self._checkpoints.save(first, Clock()._asdict())  # what can go wrong with the disk goes wrong now
        return state, Clock(**notes)

    def compiled(self, seconds: float) -> None:
        """Adds to the time spent compiling."""
        self.clock = self.clock._replace(compile=self.clock.compile + seconds)

    def advance(self, losses: np.ndarray, seconds: float) -> None:
        """Notes further iterations, by the loss of each; one that is not finite is the failure of the run."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            self._fail(f"the loss is {losses[bad[0]]} at iteration {self.done + bad[0] + 1}")
            return
        self.done += len(losses)
        self.clock = self.clock._replace(condense=self.clock.condense + seconds)
        if self._metrics is not None:
            self._metrics.write(self.done, loss=float(losses.mean()), iterations_per_second=len(losses) / seconds)

    def save(self, state: State) -> None:
        """Writes a checkpoint; images that are not finite are the failure of the run."""
        if not np.isfinite(state.images).all():  # the loss of the last step was finite, its update was not
            self._fail(f"the synthetic images are not finite after iteration {self.done}")
        elif self._checkpoints is not None:
            self._checkpoints.save(state, self.clock._asdict())

    def observe(self, images: np.ndarray, picture: bool, accuracy: bool) -> None:
        """Makes the picture and the evaluation of the images [C, M, H, W, D], where they were not made before."""
        if self._workdir is None or self._metrics is None:
            return
        synthetic, path = self._synthetic(images), self._workdir.picture(self.done)
        if picture and not path.exists():
            synthetic.save_picture(path)
            self._metrics.picture(self.done, np.asarray(synthetic.picture()))
        if accuracy and self.done not in self._metrics.evaluated:
            kept, config = self._workdir.evaluations / f"{self.done:06d}.json", self.config
            reached = evaluate(synthetic, self._dataset, seed=config.seed, progress=config.progress, kept=kept)
            self._metrics.write(self.done, accuracy_mean=reached.mean, accuracy_std=reached.std)
            kept.unlink()

    def finish(self, images: np.ndarray) -> Result:
        """Writes the set."""
        synthetic = self._synthetic(images)
        if self._workdir is not None:
            synthetic.save(self._workdir.synthetic)
        return Result(synthetic, self.clock)

    def close(self) -> None:
        """Flushes what was written."""
        for opened in (self._metrics, self._checkpoints):
            if opened is not None:
                opened.close()

    def _synthetic(self, images: np.ndarray) -> SyntheticSet:
        """The normalised images [C, M, H, W, D] as a set, in pixels."""
        metadata = {**self._about, "iterations": self.done} if self._about else {}
        mean, std = self._dataset.mean, self._dataset.std
        return artifacts.from_pixels(images * std + mean, mean, std, self._dataset.class_names, metadata)

    def _fail(self, what: str) -> None:
        self.failure = NonFiniteLoss(
            f"{what} (seed {self.config.seed}); lower --optimizer.learning-rate (now "
            f"{self.config.optimizer.learning_rate:g}) and choose another --workdir; the last good state is kept"
        )
