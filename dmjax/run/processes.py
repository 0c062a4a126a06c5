"""Several processes that condense together, one per host: start-up, and what they tell each other.

With one process, which is the rule, every function here returns at once. The first process writes all files and
messages; the others compute their classes.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from dmjax import data, networks
from dmjax.common import backend, signals
from dmjax.common.errors import UserError
from dmjax.config import Config, DistributedConfig
from dmjax.data import Dataset
from dmjax.settings.fields import flatten

T = TypeVar("T")

_HEARTBEAT_SECONDS = 60  # after which a process that hangs, or a host that is gone, counts as lost
_GRACE_SECONDS = 60  # that JAX gets on top of our own deadline
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "Barrier", "another task", "coordination")  # signs of it in JAX's errors


# What may differ between the processes of one run.
_OF_EACH_PROCESS = {
    *("workdir", "progress", "data.path", "data.test_path", "data.cache"),
    *("distributed.coordinator", "distributed.process_id", "distributed.timeout"),
}


def join(config: Config) -> Config:
    """Joins the other processes, if there are any, which must have the same configuration.

    Returns:
      The configuration for this process: only the first one shows progress.
    """
    start(config.distributed)
    config = dataclasses.replace(config, network=networks.settled(config.network))
    values = flatten(config)
    agree("configuration", {name: values[name] for name in values.keys() - _OF_EACH_PROCESS})
    return dataclasses.replace(config, progress=config.progress and is_first())


def load_dataset(config: Config) -> Dataset:
    """Reads the configured data; all processes call this together, and must find the same."""
    dataset = together(lambda: data.load(config.data, config.progress))
    agree("data set", (dataset.class_names, dataset.image_shape, dataset.counts, dataset.mean, dataset.std))
    return dataset


def start(config: DistributedConfig) -> None:
    """Joins the processes of a cluster that is configured or recognised (Slurm, Kubernetes, Cloud TPU); else nothing.

    Raises:
      UserError: the settings are incomplete, or the first process cannot be reached.
    """
    if not backend.awaits_others(config):
        return
    explicit = (config.coordinator, config.num_processes, config.process_id)
    if explicit != (None, None, None) and None in explicit:
        raise UserError(
            "--distributed.coordinator HOST:PORT, --distributed.num-processes and --distributed.process-id "
            "belong together: give all three, or none on a cluster that is recognised"
        )
    if config.coordinator is not None and not re.fullmatch(r".+:\d+", config.coordinator):
        raise UserError(f"--distributed.coordinator must be HOST:PORT, not {config.coordinator!r}")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    try:
        with _deadline(config.timeout):
            jax.distributed.initialize(
                *explicit,
                initialization_timeout=config.timeout + _GRACE_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"the processes of this run did not find each other: {reason}") from None


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends this process with one line when the others have not come by then: JAX's own end is an abort."""

    def give_up():
        print(
            f"error: the processes of this run did not find each other within {seconds} s: not all were started, or "
            "two have the same --distributed.process-id, or the first cannot be reached at --distributed.coordinator",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def count() -> int:
    """How many processes work together."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def from_first(tree: T) -> T:
    """What the first process passes in, in all of them; arrays and numbers of the same shapes everywhere."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def from_all(value: Any) -> np.ndarray:
    """The number or array that each process passes in, stacked [processes, ...]."""
    if count() == 1:
        return np.asarray(value)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(value))).reshape(count(), *np.shape(value))


def check_signals() -> None:
    """`signals.check`, but where one process has received a signal, all stop."""
    received = signals.received()
    if count() > 1:
        received = int(from_all(np.int32(received)).max())
    if received:
        raise signals.Interrupted(received)


def together(function: Callable[[], T]) -> T:
    """Runs a function that may fail on bad input; where it fails in one process, all stop."""
    failure: BaseException | None = None
    try:
        result = function()
    except BaseException as error:
        failure = error
    failed = from_all(np.int32(failure is not None))
    if failure is not None:
        raise failure
    if failed.any():
        raise UserError(f"process {int(failed.argmax())} could not start; see what it said")
    return result


def agree(name: str, value: Any) -> None:
    """Raises a `UserError` in all processes where the values that they pass in do not print alike.

    Args:
      name: What the value is, for the message.
      value: A value, or a dict of them.
    """
    text = repr(sorted(value.items()) if isinstance(value, dict) else value)
    all_digests = from_all(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    differing = np.flatnonzero((all_digests != all_digests[0]).any(axis=1))
    if len(differing):
        raise UserError(f"process {differing[0]} has another {name} than process 0: start all with the same command")


def stop() -> None:
    """Parts from the other processes; what follows may only use the devices of this one."""
    if count() > 1:
        jax.distributed.shutdown()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Ends this process with one line when another one is lost, in place of an orderly end, which would wait for it."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not jax.distributed.is_initialized() or not any(sign in str(error) for sign in _LOST):
            raise
        print(
            f"error: process {jax.process_index()} of {count()} lost another process and ends; the checkpoints are "
            "whole: start all processes again to go on from the newest, or fewer of them",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
