"""What one run leaves behind: metrics, pictures, checkpoints, the set. All processes but the first write nothing."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from dmjax import methods
from dmjax.common.errors import NonFiniteLoss, UserError
from dmjax.config import Config
from dmjax.data import Dataset, synthetic_set
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.judge import judge
from dmjax.methods.base import Problem
from dmjax.run import processes
from dmjax.run.checkpoint import Checkpoints
from dmjax.run.metrics import Metrics
from dmjax.run.own_evaluation import judge_own
from dmjax.run.program import RunState
from dmjax.run.workdir import Workdir, describe


class Clock(NamedTuple):
    """Seconds that a run has taken, over all its starts.

    Attributes:
      condense: Seconds to condense, or to choose images.
      compile: Seconds to compile.
    """

    condense: float = 0.0
    compile: float = 0.0


class Result(NamedTuple):
    """A finished run.

    Attributes:
      synthetic: The set.
      clock: The seconds that it took.
      pretrain: Seconds that networks for it were trained, in this run or an earlier one.
      losses: float64 [iterations done in this start], the loss of each, a mean over classes.
    """

    synthetic: SyntheticSet
    clock: Clock
    pretrain: float
    losses: np.ndarray

    def with_losses(self) -> SyntheticSet:
        """The set with the losses in its metadata."""
        metadata = {**self.synthetic.metadata, "losses": self.losses.tolist()}
        return dataclasses.replace(self.synthetic, metadata=metadata)


class Snapshot(NamedTuple):
    """A run between two compiled chunks, as a callback sees it.

    Attributes:
      seed: The seed of the run, which tells it from others that are condensed with it.
      iteration: Iterations done.
      losses: float64, the loss of each iteration since the snapshot before, a mean over classes.
      synthetic: Returns the set as it is now. It is called before the callback returns, or not at all, since the next
        chunk overwrites the images; where several processes work together, in all of them.
    """

    seed: int
    iteration: int
    losses: np.ndarray
    synthetic: Callable[[], SyntheticSet]


class Record:
    """One run, as it is written down.

    Attributes:
      config: The configuration of the run.
      done: Iterations done.
      clock: The time that they took.
      failure: Why the run cannot go on; None as long as it can.
    """

    def __init__(self, config: Config, dataset: Dataset, workdir: Workdir | None, problem: Problem):
        self.config, self._dataset, self._workdir, self._problem = config, dataset, workdir, problem
        self.done, self.clock = 0, Clock()
        self.failure: NonFiniteLoss | None = None
        self._losses: list[np.ndarray] = []
        self._metrics: Metrics | None = None
        self._checkpoints: Checkpoints | None = None

    def open(self, first: RunState) -> RunState:
        """Takes up the workdir: returns what the newest checkpoint holds, or the first state where there is none.

        All processes call this together.
        """
        state, clock = processes.from_first(processes.together(lambda: self._open(first)))
        self.clock = Clock(*(float(seconds) for seconds in clock))
        self.done = int(state.iteration)
        return state

    def _open(self, first: RunState) -> tuple[RunState, Clock]:
        if self._workdir is None:
            return first, Clock()
        self._workdir.describe(self.config, self._dataset)  # written first: what cannot work has failed by now
        self._checkpoints = Checkpoints(self._workdir.checkpoints, self.config.checkpoint.keep)
        restored = self._checkpoints.restore(first)
        state, notes = restored or (first, {})
        self._metrics = Metrics(self._workdir.path, int(state.iteration))
        if restored is None:
            self._checkpoints.save(first, Clock()._asdict())  # what can go wrong with the disk goes wrong now
        return state, Clock(**notes)

    def add_compile_seconds(self, seconds: float) -> None:
        """Adds to the time spent compiling."""
        self.clock = self.clock._replace(compile=self.clock.compile + seconds)

    def advance(self, losses: np.ndarray, seconds: float) -> None:
        """Notes further iterations, by the loss of each; one that is not finite is the failure of the run."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            self._fail(f"the loss is {losses[bad[0]]} at iteration {self.done + bad[0] + 1}")
            return
        self.done += len(losses)
        self._losses.append(losses)
        self.clock = self.clock._replace(condense=self.clock.condense + seconds)
        if self._metrics is not None:
            self._metrics.write(self.done, loss=float(losses.mean()), iterations_per_second=len(losses) / seconds)

    def save(self, state: RunState) -> None:
        """Writes a checkpoint; a state that is not finite is the failure of the run."""
        numbers = [leaf for leaf in jax.tree.leaves(state) if jax.numpy.issubdtype(leaf.dtype, np.floating)]
        if not all(np.isfinite(leaf).all() for leaf in numbers):  # the last loss was finite, its update was not
            self._fail(f"the synthetic images are not finite after iteration {self.done}")
        elif self._checkpoints is not None:
            self._checkpoints.save(state, self.clock._asdict())

    def observe(self, state: Any, picture: bool, accuracy: bool) -> None:
        """Makes the picture and the evaluation of a state of the method, where they were not made before."""
        if self._workdir is None or self._metrics is None:
            return
        synthetic, path = self._synthetic(state), self._workdir.picture(self.done)
        if picture and not path.exists():
            synthetic.save_picture(path)
            self._metrics.picture(self.done, np.asarray(synthetic.picture()))
        if accuracy and self.done not in self._metrics.evaluated:
            resume_file = self._workdir.evaluations / f"{self.done:06d}.json"
            reached = judge(self.config, self._dataset, synthetic, resume_file=resume_file)
            own = judge_own(self.config, self._dataset, synthetic)
            further = {} if own is None else {"own_accuracy_mean": own.mean, "own_accuracy_std": own.std}
            self._metrics.write(self.done, accuracy_mean=reached.mean, accuracy_std=reached.std, **further)
            resume_file.unlink()

    def snapshot(self, get_state: Callable[[], RunState]) -> Snapshot:
        """The run after the last chunk; its state is only fetched from the devices where the set is asked for."""
        iteration = self.done

        def synthetic() -> SyntheticSet:
            if self.done != iteration:
                raise UserError(f"the set of iteration {iteration} is gone: call synthetic() before on_chunk returns")
            return self._synthetic(get_state().method)

        return Snapshot(self.config.seed, iteration, self._losses[-1].copy(), synthetic)

    def finish(self, state: Any, clock: Clock) -> Result:
        """Writes the set of a state of the method."""
        synthetic = self._synthetic(state)
        if self._workdir is not None:
            synthetic.save(self._workdir.synthetic)
        trained = self._problem.trained
        losses = np.concatenate(self._losses) if self._losses else np.zeros(0)
        return Result(synthetic, clock, trained.seconds if trained else 0.0, losses)

    def close(self) -> None:
        """Flushes what was written."""
        for opened in (self._metrics, self._checkpoints):
            if opened is not None:
                opened.close()

    def _synthetic(self, state: Any) -> SyntheticSet:
        """The set that a state of the method stands for."""
        with methods.reported(self.config.method):
            made = self.config.method.finish(self._problem, state)
            methods.check_condensed(self.config.method, self._problem, made)
        data, metadata = self._dataset, {**self._about, "iterations": self.done}
        further = {"whitening": data.whitening, "extra": made.extra}
        return synthetic_set.from_pixels(
            made.images, data.mean, data.std, data.class_names, metadata, made.labels, made.factor, **further
        )

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        """All that the result depends on, which is written where that has not been done."""
        if self._workdir is not None:
            return self._workdir.describe(self.config, self._dataset)
        return describe(self.config, self._dataset) if processes.is_first() else {}

    def _fail(self, reason: str) -> None:
        rate = getattr(getattr(self.config.method, "optimizer", None), "learning_rate", None)
        remedy = f"lower --optimizer.learning-rate (now {rate:g})" if rate else "change the settings of the method"
        self.failure = NonFiniteLoss(
            f"{reason} (seed {self.config.seed}); {remedy} and choose another --workdir; the last good state is saved"
        )
