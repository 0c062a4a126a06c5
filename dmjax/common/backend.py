"""Which kind of device programs are compiled for, at hand or only described, and whether it may be asked for yet."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_CORES_AT_MOST = 8  # that are a device each; more were not tried
_described: list[str] = []
_split: list[bool] = []


def current() -> str:
    """cpu, gpu or tpu."""
    return _described[-1] if _described else jax.default_backend()


def split_cpu(distributed: Any = None) -> None:
    """Makes every core of a CPU a device, where nobody has said how many there are and JAX was not asked yet.

    Two classes on a core each are faster than one after the other on two, whose layers are too small to be shared well.

    Args:
      distributed: As for `awaits_others`; one of several processes keeps its CPU as one device.
    """
    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if said or _split or jax.config.jax_num_cpu_devices != -1 or awaits_others(distributed):
        return
    with contextlib.suppress(RuntimeError):  # the devices are there already, as in a notebook
        jax.config.update("jax_num_cpu_devices", min(cores(), _CORES_AT_MOST))
        _split.append(True)


def cores() -> int:
    """The cores that this process may use; in a container with a quota, as many as that is worth."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # where there is no quota
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        there = min(there, max(1, quota // period))
    return there


def cores_are_devices() -> bool:
    """Whether the devices are the cores of one CPU, made so by `split_cpu`."""
    return bool(_split) and current() == "cpu"


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
