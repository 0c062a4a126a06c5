"""Several real processes on one machine: the same set as one, and what happens when one of them dies."""

import os
import signal
import socket
import time

import numpy as np
import pytest
from conftest import ROOT

from dmjax import processes
from dmjax.artifacts import SyntheticSet
from dmjax.config import DistributedConfig
from dmjax.errors import UserError

TINY = ("--config", ROOT / "experiments" / "tiny.py", "--network.width", "4", "--batch-real", "8", "--chunk", "10")
QUICK = ("--evaluation.networks", "1", "--evaluation.epochs", "2", "--evaluation.whole-dataset", "false")


def together(run_command, workdir, count, *options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = ("--distributed.coordinator", f"localhost:{port}", "--distributed.num-processes", count)
    return [
        run_command.start(
            "dmjax.condense", *TINY, *QUICK, *options, "--workdir", workdir, *place, "--distributed.process-id", i
        )
        for i in range(count)
    ]


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
    done = run_command("dmjax.condense", *TINY, *QUICK, "--iterations", 40, "--workdir", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    return SyntheticSet.load(tmp_path / "one" / "synthetic.npz")


def test_two_processes_give_the_set_of_one(run_command, tmp_path, alone):
    first, second = finish(together(run_command, tmp_path / "two", 2, "--iterations", 40))
    assert "condensed" in first[0]
    assert "condensed" not in second[0]  # one process speaks
    two = SyntheticSet.load(tmp_path / "two" / "synthetic.npz")
    np.testing.assert_allclose(two.images, alone.images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_one_alone_goes_on(run_command, tmp_path, victim):
    workdir = tmp_path / "killed"
    long = ("--iterations", 100_000, "--checkpoint.every", 20)
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


def test_a_signal_to_one_process_stops_all_and_the_run_resumes_alone(run_command, tmp_path, alone):
    workdir = tmp_path / "stopped"
    options = ("--iterations", 40, "--chunk", 1, "--checkpoint.every", 10, "--images-every", 10)
    started = together(run_command, workdir, 2, *options)
    wait_for_iteration(workdir, 10)
    os.kill(started[1].pid, signal.SIGTERM)
    for process in started:
        process.communicate(timeout=90)
    codes = [process.returncode for process in started]
    assert codes in ([143, 143], [0, 0])  # it may have been finished by then
    done = run_command("dmjax.condense", *TINY, *QUICK, *options, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    resumed = SyntheticSet.load(workdir / "synthetic.npz")
    np.testing.assert_allclose(resumed.images, alone.images, rtol=1e-5, atol=1e-5)


def test_half_an_address_is_refused():
    with pytest.raises(UserError, match="belong together"):
        processes.start(DistributedConfig(coordinator="localhost:1234"))


def test_schedulers_are_recognised():
    assert processes._in_cluster({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"})
    assert not processes._in_cluster({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert processes._in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"})
    assert processes._in_cluster({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert not processes._in_cluster({"TPU_WORKER_HOSTNAMES": "a"})
    assert not processes._in_cluster({})
