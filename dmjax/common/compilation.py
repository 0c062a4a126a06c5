"""Compiling: the cache from which a second run of the same shapes starts, and how long it took."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

from dmjax.common import files


def use_cache() -> None:
    """Keeps compiled programs under the cache folder, unless JAX_COMPILATION_CACHE_DIR says where, or the user not to.

    Programs for a CPU hold its instructions, so that each kind of processor has a folder of its own.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    folder = files.cache_folder(None) / f"compiled-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # compiling again is no error
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def seconds() -> float:
    """Seconds that this process has spent compiling, or reading from the cache, since this module was imported."""
    return sum(_seconds)


_seconds: list[float] = []


def _note(event: str, duration: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _seconds.append(duration)


jax.monitoring.register_event_duration_secs_listener(_note)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        text = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {text}".encode()).hexdigest()[:12]
