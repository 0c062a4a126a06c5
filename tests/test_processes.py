"""Several real processes on one machine: the same set as one, and what happens when one of them dies."""

import json
import os
import signal
import socket
import time

import numpy as np
import pytest
from conftest import ROOT

from dmjax.common import backend
from dmjax.common.errors import UserError
from dmjax.config import DistributedConfig
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.run import processes

TINY = ("--config", ROOT / "experiments" / "tiny.py", "--network.width", "4", "--batch-real", "8")
QUICK = ("--evaluation.networks", "1", "--evaluation.epochs", "2", "--evaluation.whole-dataset", "false")


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(run_command, workdir, count, *options, each=None):
    """Starts `count` processes; `each` holds further options of each of them."""
    place = ("--distributed.coordinator", f"localhost:{free_port()}", "--distributed.num-processes", count)
    command = ("dmjax.condense", *TINY, *QUICK, *options, "--workdir", workdir, *place, "--distributed.process-id")
    return [run_command.start(*command, i, *(each[i] if each else ())) for i in range(count)]


def finish(started):
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), ended
    return ended


def newest(workdir):
    """The iteration of the newest whole checkpoint, or -1."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=-1)


def wait_for_iteration(workdir, iteration):
    deadline = time.time() + 120
    while newest(workdir) < iteration:
        assert time.time() < deadline, "no such checkpoint within two minutes"
        time.sleep(0.02)


@pytest.fixture
def alone(run_command, tmp_path):
    done = run_command(
        "dmjax.condense", *TINY, *QUICK, "--iterations", 40, "--chunk", 10, "--workdir", tmp_path / "one"
    )
    assert done.returncode == 0, done.stderr
    return SyntheticSet.load(tmp_path / "one" / "synthetic.npz")


def test_two_processes_give_the_set_of_one(run_command, tmp_path, alone):
    first, second = finish(together(run_command, tmp_path / "two", 2, "--iterations", 40, "--chunk", 10))
    assert "condensed" in first[0]
    assert "condensed" not in second[0]  # one process speaks
    two = SyntheticSet.load(tmp_path / "two" / "synthetic.npz")
    np.testing.assert_allclose(two.images, alone.images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_other_and_one_alone_goes_on(run_command, tmp_path, victim):
    workdir = tmp_path / "killed"
    long = ("--iterations", 100_000, "--chunk", 10, "--checkpoint.every", 20)
    started = together(run_command, workdir, 2, *long)
    wait_for_iteration(workdir, 40)
    os.kill(started[victim].pid, signal.SIGKILL)
    _, error = started[1 - victim].communicate(timeout=90)
    assert started[1 - victim].returncode not in (0, None)
    # Where the first process dies, JAX's own message may come before ours.
    assert "lost another process" in error or "another task died" in error
    started[victim].communicate()
    reached = newest(workdir)
    assert reached >= 40
    one = run_command.start("dmjax.condense", *TINY, *QUICK, *long, "--workdir", workdir)
    wait_for_iteration(workdir, reached + 1)
    one.send_signal(signal.SIGTERM)
    assert "goes on from here" in one.communicate(timeout=90)[1]
    assert one.returncode == 143


def test_a_signal_to_one_process_stops_all_and_the_run_resumes_alone(run_command, tmp_path):
    workdir = tmp_path / "stopped"
    options = ("--iterations", 100_000, "--chunk", 1, "--checkpoint.every", 10, "--images-every", 0)
    started = together(run_command, workdir, 2, *options)
    wait_for_iteration(workdir, 10)
    os.kill(started[1].pid, signal.SIGTERM)
    for process in started:
        process.communicate(timeout=90)
    assert [process.returncode for process in started] == [143, 143]
    reached = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["iteration"]
    one = run_command.start("dmjax.condense", *TINY, *QUICK, *options, "--workdir", workdir)
    wait_for_iteration(workdir, reached + 1)
    one.send_signal(signal.SIGTERM)
    assert "goes on from here" in one.communicate(timeout=90)[1]


@pytest.mark.parametrize("setting", ["--optimizer.learning-rate", pytest.param("--ipc", marks=pytest.mark.slow)])
def test_processes_with_other_settings_are_refused(run_command, tmp_path, setting):
    started = together(run_command, tmp_path / "mixed", 2, each=[(setting, 2), (setting, 3)])
    for process in started:
        error = process.communicate(timeout=90)[1]
        assert process.returncode == 2
        assert "process 1 has another configuration than process 0" in error


@pytest.mark.parametrize("process_id", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_alone_says_so(run_command, tmp_path, process_id):
    done = run_command(
        *("dmjax.condense", *TINY, "--workdir", tmp_path / "lonely", "--distributed.timeout", 2),
        *("--distributed.coordinator", f"localhost:{free_port()}"),
        *("--distributed.num-processes", 2, "--distributed.process-id", process_id),
    )
    assert done.returncode == 2
    assert "did not find each other within 2 s" in done.stderr
    assert "terminate called" not in done.stderr


def test_half_an_address_is_refused():
    with pytest.raises(UserError, match="must be HOST:PORT"):
        processes.start(DistributedConfig(coordinator="localhost", num_processes=2, process_id=0))
    with pytest.raises(UserError, match="belong together"):
        processes.start(DistributedConfig(coordinator="localhost:1234"))


def test_schedulers_are_recognised(monkeypatch):
    assert backend._in_cluster({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"})
    assert not backend._in_cluster({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    indexed = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    assert not backend._in_cluster(indexed)  # without the package by which JAX asks for the others
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    assert backend._in_cluster(indexed)
    assert backend._in_cluster({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert not backend._in_cluster({"TPU_WORKER_HOSTNAMES": "a"})
    assert not backend._in_cluster({})
