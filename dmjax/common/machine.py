"""What a result was measured on: hardware, versions, and the commit of the source tree."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe() -> dict[str, Any]:
    """Hardware, versions and commit, as plain JSON values."""
    import jax

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [d.device_kind for d in jax.devices()],
        "versions": versions(),
        "commit": _commit(),
    }


def versions() -> dict[str, str]:
    """Versions of everything that a result depends on."""
    import dmjax

    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"dmjax": dmjax.__version__, "python": platform.python_version(), **packages}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _commit() -> str | None:
    """The commit of the source tree, with a + where it was changed; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]

    def output(*command: str) -> str:
        return subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()

    try:
        tracked, commit = output("ls-files", "__init__.py"), output("rev-parse", "HEAD")
        changed = output("status", "--porcelain", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "") if tracked else None
