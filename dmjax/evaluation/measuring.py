"""Measuring several networks, one or a few at a time, so that an interruption loses none that is finished."""

import hashlib
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dmjax.common import compilation, files
from dmjax.common.errors import UserError
from dmjax.common.progress import progress_bar
from dmjax.config import AugmentConfig, EvaluationConfig, NetworkConfig
from dmjax.data import Dataset
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.testing import Tested

_CLASSES_FOR_TOP5 = 50


class Settings(Protocol):
    """What judging needs to know: a resolved `Config` or `EvaluateConfig` has all of it."""

    @property
    def network(self) -> NetworkConfig: ...
    @property
    def augment(self) -> AugmentConfig: ...
    @property
    def evaluation(self) -> EvaluationConfig: ...
    @property
    def seed(self) -> int: ...
    @property
    def progress(self) -> bool: ...


def measure_each(
    settings: Settings,
    dataset: Dataset,
    measure: Callable[[int, Callable[[float], None]], Tested],
    about: Any,
    description: str,
    resume_file: Path | None,
    at_once: int = 1,
) -> Accuracy:
    """Measures `settings.evaluation.networks` networks, one or a few at a time.

    Args:
      settings: How many, the seed, and whether progress is shown.
      dataset: The real data.
      measure: Trains and tests network i, and calls its second argument with the fraction of the work done since.
        Where several are measured at the same time, it is called in as many threads.
      about: All that the accuracies depend on besides data and seed, as something whose `repr` tells it from others.
      description: The text of the progress bar.
      resume_file: As for `judge`.
      at_once: How many networks are measured at the same time; each gives what it gives alone.
    """
    assert settings.evaluation.networks is not None, "the configuration is not resolved"
    total = settings.evaluation.networks
    measured: dict[int, dict[str, Any]] = {}
    identity = ""
    if resume_file is not None:
        identity = digest(about, settings.seed, dataset.fingerprint())
        measured = {i: entry for i, entry in _read_measured(resume_file, identity).items() if i < total}
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(None, description, settings.progress, total, initial=len(measured)))
        shown: defaultdict[int, float] = defaultdict(float)  # how much of each network the bar has counted
        counting = threading.Lock()

        def measure_one(i: int) -> Tested:
            def on_progress(fraction: float) -> None:
                with counting:
                    shown[i] += fraction
                    bar.update(fraction)

            return measure(i, on_progress)

        start, compiled = time.perf_counter(), compilation.seconds()
        remaining = [i for i in range(total) if i not in measured]
        results = stack.enter_context(closing(_as_measured(measure_one, remaining, at_once)))
        for i, result in results:
            # Of networks that are measured at the same time, the first has the seconds of both and the second none.
            now, compiling = time.perf_counter(), compilation.seconds()
            measured[i] = {**result._asdict(), "seconds": max(0.0, now - start - (compiling - compiled))}
            start, compiled = now, compiling
            if resume_file is not None:
                files.write_json(resume_file, {"digest": identity, "networks": [measured.get(k) for k in range(total)]})
            with counting:
                bar.update(1 - shown[i])
                bar.set_postfix(accuracy=f"{100 * np.mean([entry['accuracy'] for entry in measured.values()]):.1f}%")
    in_order = [measured[i] for i in range(total)]
    top5 = [entry["top5"] for entry in in_order] if dataset.num_classes >= _CLASSES_FOR_TOP5 else []
    best = [entry["best"] for entry in in_order if entry["best"] is not None]
    seconds = sum(entry["seconds"] for entry in in_order)
    return Accuracy.of([entry["accuracy"] for entry in in_order], seconds, top5, best)


def _as_measured(
    measure: Callable[[int], Tested], networks: Iterable[int], at_once: int
) -> Iterator[tuple[int, Tested]]:
    """Each network and its result as soon as it is known; `at_once` of them are measured at the same time.

    After one has failed no further ones are begun, and those that are being measured are waited for.
    """
    if at_once == 1:
        yield from ((i, measure(i)) for i in networks)
        return
    waiting, failed = iter(networks), None
    with ThreadPoolExecutor(at_once) as threads:
        running = {threads.submit(measure, i): i for i in itertools.islice(waiting, at_once)}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                network = running.pop(future)
                if future.exception() is not None:
                    failed = failed or future.exception()
                    continue
                if failed is None:
                    running |= {threads.submit(measure, i): i for i in itertools.islice(waiting, 1)}
                yield network, future.result()
    if failed is not None:
        raise failed


def digest(*parts: Any) -> str:
    """Tells an evaluation from others, by all that its accuracies depend on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read_measured(path: Path, identity: str) -> dict[int, dict[str, Any]]:
    """The results of the networks that were measured; none where the file is of another evaluation."""
    try:
        stored = files.read_json(path)
        if stored is None or stored["digest"] != identity:
            return {}
        known = {i: entry for i, entry in enumerate(stored["networks"]) if entry is not None}
        return {
            i: {name: float(entry[name]) for name in ("accuracy", "top5", "seconds")}
            | {"best": None if entry.get("best") is None else float(entry["best"])}
            for i, entry in known.items()
        }
    except (UserError, TypeError, KeyError, AttributeError, ValueError):
        return {}
