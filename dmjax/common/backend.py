"""Which kind of device programs are compiled for, at hand or only described, and whether it may be asked for yet."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import jax

_described: list[str] = []


def current() -> str:
    """cpu, gpu or tpu."""
    return _described[-1] if _described else jax.default_backend()


def awaits_others(distributed: Any) -> bool:
    """Whether other processes are still to be joined, before which no device may be asked for.

    Args:
      distributed: A `DistributedConfig`, or None where one process is all.
    """
    if distributed is None or jax.distributed.is_initialized():
        return False
    explicit = (distributed.coordinator, distributed.num_processes, distributed.process_id)
    return explicit != (None, None, None) or _in_cluster(os.environ)


def _in_cluster(environment: Any) -> bool:
    """Whether a scheduler started several of us, each of which JAX can tell its place."""
    slurm = "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    indexed = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    kubernetes = indexed and importlib.util.find_spec("kubernetes") is not None  # JAX asks it; pip install jax[k8s]
    tpu = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return slurm or kubernetes or tpu


@contextlib.contextmanager
def described(platform: str) -> Iterator[None]:
    """Programs that are traced inside are meant for devices of another kind, and are not run here."""
    jax.clear_caches()  # what was traced for another kind
    _described.append(platform)
    try:
        yield
    finally:
        _described.pop()
        jax.clear_caches()
