"""The loop of all methods: chunks, cadences, resume, signals. The only code that talks to the outside while it runs."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from dmjax import methods
from dmjax.common import compilation, signals
from dmjax.common.errors import NonFiniteLoss
from dmjax.common.progress import progress_bar
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.run import processes
from dmjax.run.program import Programs, RunState, chunk_length, make_problem
from dmjax.run.record import Clock, Record, Result, Snapshot
from dmjax.run.workdir import Workdir


def run(
    configs: Sequence[Config],
    dataset: Dataset,
    workdirs: Sequence[Workdir | None],
    on_chunk: Callable[[Snapshot], Any] | None = None,
) -> list[Result | NonFiniteLoss]:
    """Condenses with several seeds, from the newest checkpoints if there are any.

    As many runs as fit in memory are one program, and each gives what it gives alone.

    Args:
      configs: The resolved configurations of the runs, which differ in nothing but their seed and workdir.
      dataset: The real images, which they share.
      workdirs: Where each run is written; None writes nothing, as in all processes but the first.
      on_chunk: Called with a `Snapshot` of each run after every compiled chunk, outside of what is timed.

    Returns:
      One result a run. A run whose loss is not finite does not stop the others: its result is the exception.

    Raises:
      signals.Interrupted: after a checkpoint of each was written.
    """
    if configs[0].method.iterations == 0:
        return [_run_at_once(config, dataset, workdir) for config, workdir in zip(configs, workdirs, strict=True)]
    programs = Programs(configs[0], dataset)
    results: dict[int, Result | NonFiniteLoss] = {}
    with contextlib.ExitStack() as stack:
        records, states = [], []
        for config, workdir in zip(configs, workdirs, strict=True):
            records.append(Record(config, dataset, workdir, programs.problem))
            stack.callback(records[-1].close)
            states.append(records[-1].open(programs.first_state(config.seed)))
        # A kill between their checkpoints leaves runs at different iterations: each group goes on from its own.
        order = sorted(range(len(records)), key=lambda i: records[i].done)
        for _, same in itertools.groupby(order, key=lambda i: records[i].done):
            group, start = list(same), time.perf_counter()
            at_once = programs.runs_at_once(len(group))
            for i in group:
                records[i].add_compile_seconds((time.perf_counter() - start) / len(group))
            for first in range(0, len(group), at_once):
                members = group[first : first + at_once]
                running = _RunGroup(programs, [records[i] for i in members], [states[i] for i in members], on_chunk)
                results |= dict(zip(members, running.run_to_end(), strict=True))
    return [results[i] for i in range(len(records))]


def _run_at_once(config: Config, dataset: Dataset, workdir: Workdir | None) -> Result:
    """The set of a method that has no iterations, with nothing to resume but networks that are trained for it."""
    start, compiled, problem = time.perf_counter(), compilation.seconds(), make_problem(config, dataset)
    with methods.reported(config.method):
        state = processes.together(lambda: config.method.start(problem, config.seed))
    compiling = compilation.seconds() - compiled
    assert problem.trained is not None
    clock = Clock(time.perf_counter() - start - compiling - problem.trained.waited, compiling)
    record = Record(config, dataset, workdir, problem)
    result = record.finish(state, clock)
    if workdir is not None:
        result.synthetic.save_picture(workdir.picture(0))
    return result


class _RunGroup:
    """Runs that are at the same iteration and advance as one program."""

    def __init__(
        self,
        programs: Programs,
        records: Sequence[Record],
        states: Sequence[RunState],
        on_chunk: Callable[[Snapshot], Any] | None,
    ):
        self._programs, self._config, self._on_chunk = programs, records[0].config, on_chunk
        self._all, self._records = records, list(records)  # those that can go on
        self._states = programs.put_states(states)
        self._keys = programs.put_keys([record.config.seed for record in records])

    def run_to_end(self) -> list[Result | NonFiniteLoss]:
        """Runs all iterations; the results are in the order of the records."""
        config, count = self._config, len(self._records)
        done = first = self._records[0].done
        total = config.method.iterations
        description = "condensing" if count == 1 else f"condensing {count} runs"
        try:
            with progress_bar(None, description, config.progress, total, initial=done) as bar:
                self._observe(done)
                while done < total and self._records:
                    length = min(chunk_length(config), total - done)
                    start = time.perf_counter()
                    program = self._programs.get(length, len(self._states))
                    compile_seconds = time.perf_counter() - start
                    if done == first:
                        bar.unpause()  # the time that is left does not follow from that of compiling
                    processes.check_signals()
                    loss = self._advance(program, compile_seconds)
                    done += length
                    if done % config.checkpoint.every == 0 or done == total:
                        self._save()
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                    bar.update(length)
                    self._show()
                    processes.check_signals()
                    self._observe(done)
        except signals.Interrupted:
            self._save()
            raise
        finished = {id(record): record.finish(state.method, record.clock) for record, state in self._on_host()}
        return [record.failure or finished[id(record)] for record in self._all]

    def _on_host(self) -> list[tuple[Record, RunState]]:
        return [(record, self._get(state)) for record, state in zip(self._records, self._states, strict=True)]

    def _get(self, state: RunState) -> RunState:
        """A state on the host; all processes call this together."""
        return self._programs.sharding.get_state(state, self._programs.axes)

    def _show(self) -> None:
        """Hands a snapshot of each run to whoever follows them."""
        if self._on_chunk is not None:
            for record, state in zip(self._records, self._states, strict=True):
                self._on_chunk(record.snapshot(functools.partial(self._get, state)))

    def _advance(self, program: Any, compile_seconds: float) -> float:
        """Runs one chunk and notes the losses, an equal part of the time for every run. Returns the mean loss."""
        start, runs = time.perf_counter(), len(self._records)
        self._states, losses = program(self._keys, self._states, *self._programs.arguments)
        losses = self._programs.sharding.losses(losses)
        seconds = time.perf_counter() - start
        for record, run_losses in zip(self._records, losses, strict=True):
            record.add_compile_seconds(compile_seconds / runs)
            record.advance(run_losses, seconds / runs)
        self._drop_failed()
        return float(losses.mean())

    def _save(self) -> None:
        """Writes a checkpoint of every run; all processes call this together."""
        for record, state in self._on_host():
            record.save(state)
        self._drop_failed()

    def _drop_failed(self) -> None:
        """Goes on without the runs that failed."""
        if any(record.failure for record in self._records):
            going = [i for i, record in enumerate(self._records) if record.failure is None]
            self._records, self._states = [self._records[i] for i in going], [self._states[i] for i in going]
            if going:
                self._keys = self._programs.put_keys([record.config.seed for record in self._records])

    def _observe(self, done: int) -> None:
        """Pictures and evaluations that are due now; all processes call this together."""
        config, last = self._config, done == self._config.method.iterations
        picture = last or done == 0 or _is_due(done, config.images_every)
        accuracy = not last and done > 0 and _is_due(done, config.evaluation.every)
        if picture or accuracy:
            for record, state in self._on_host():
                record.observe(state.method, picture, accuracy)


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
