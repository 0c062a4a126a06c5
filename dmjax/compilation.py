"""The cache of compiled programs: a second run of the same shapes starts from it."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from dmjax.data import cache


def use_cache() -> None:
    """Keeps compiled programs under the cache folder, unless JAX_COMPILATION_CACHE_DIR says where, or the user not to.

    Programs for a CPU hold its instructions, so that each kind of processor has a folder of its own.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    folder = cache.folder(None) / f"compiled-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # compiling again is no error
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        text = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {text}".encode()).hexdigest()[:12]
