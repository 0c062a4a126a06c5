"""The cores of a CPU as devices: which methods take them, and that nothing else changes."""

import json

import jax
import numpy as np
import pytest

from dmjax import methods
from dmjax.common import backend
from dmjax.config import Config, NetworkConfig
from dmjax.run import devices, memory
from dmjax.settings import experiment

SMALL = (
    *("--config", "experiments/tiny.py", "--network.width", "4", "--network.depth", "1", "--progress", "false"),
    *("--evaluation.networks", "1", "--evaluation.epochs", "1", "--evaluation.whole-dataset", "false"),
)
DM = ("--iterations", "4", "--batch-real", "8", "--chunk", "2")
DC = ("--method", "dc", "--iterations", "1", "--batch-real", "8", "--gradient.outer", "1", "--gradient.inner", "1")


def images_of(folder):
    with np.load(folder / "synthetic.npz") as file:
        return file["images"]


def devices_of(folder):
    return len(json.loads((folder / "config.json").read_text())["devices"])


@pytest.mark.skipif(backend.cores() < 2, reason="needs two cores")
def test_a_command_spreads_classes_over_the_cores_and_makes_the_same_set(run_command, tmp_path):
    for name, count in (("one", 1), ("cores", None)):
        done = run_command("dmjax.condense", *SMALL, *DM, "--workdir", tmp_path / name, devices=count)
        assert done.returncode == 0, done.stderr
    assert devices_of(tmp_path / "one") == 1
    assert devices_of(tmp_path / "cores") == min(backend.cores(), 8)
    assert np.array_equal(images_of(tmp_path / "one"), images_of(tmp_path / "cores"))


@pytest.mark.slow
def test_one_of_several_processes_keeps_its_cpu_whole(run_command, tmp_path):
    """Gradient matching in two processes, which share out what devices there are."""
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = (*SMALL, *DC, "--workdir", tmp_path / "two", "--distributed.coordinator", f"localhost:{port}")
    flags += ("--distributed.num-processes", "2")
    both = [run_command.start("dmjax.condense", *flags, "--distributed.process-id", i, devices=None) for i in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    assert devices_of(tmp_path / "two") == 2


@pytest.mark.parametrize(
    ("method", "ipc", "norm", "expected"),
    [
        ("dm", 10, "instance", 3),
        ("blend", 10, "instance", 3),
        ("dm", 10, "batch", 1),
        ("idm", 10, "instance", 1),
        ("dsa", 1, "instance", 3),
        ("dsa", 10, "instance", 1),
        ("dc", 1, "batch", 1),
        ("kip", 10, "instance", 1),
    ],
)
def test_methods_that_repeat_their_work_take_one_core(monkeypatch, method, ipc, norm, expected):
    monkeypatch.setattr(backend, "cores_are_devices", lambda: True)
    config = experiment.resolve(Config(method=methods.create(method), ipc=ipc, network=NetworkConfig(norm=norm)))
    assert len(devices.chosen(config, 3)) == expected


def test_no_core_computes_padding_alone(monkeypatch):
    monkeypatch.setattr(backend, "cores_are_devices", lambda: True)
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))
    config = experiment.resolve(Config())
    assert [len(devices.chosen(config, classes)) for classes in (1, 7, 8, 10, 16, 100)] == [1, 7, 8, 5, 8, 8]


def test_memory_that_is_given_is_for_all_cores(monkeypatch):
    config = experiment.resolve(Config(memory_gb=8.0))
    assert memory.limit(config, 10) == 8e9
    monkeypatch.setattr(backend, "cores_are_devices", lambda: True)
    assert memory.limit(config, 10) == 2e9  # of four simulated devices
    assert memory.limit(config, 2) == 4e9
