"""Where the time goes: a trace of the profiler, and its largest entries."""

import contextlib
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jax


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Writes a trace of what runs inside into the folder."""
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        yield


def newest(folder: Path) -> Path:
    """The newest trace in a folder."""
    return max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)


def largest(folder: Path, n: int = 12) -> list[tuple[str, float, int]]:
    """The entries of the newest trace that took most: (name, milliseconds, how often), over all threads."""
    with gzip.open(newest(folder), "rt") as file:
        events = json.load(file)
    events = events["traceEvents"] if isinstance(events, dict) else events
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        # $: Python's own frames; ThunkExecutor: what the other entries are in
        if event.get("ph") == "X" and not event["name"].startswith(("$", "ThunkExecutor")):
            total[event["name"]] += event.get("dur", 0) / 1e3
            calls[event["name"]] += 1
    names = sorted(total, key=lambda name: -total[name])[:n]
    return [(name, total[name], calls[name]) for name in names]
