"""Interruptions of every kind: the run goes on and ends in the same bytes."""

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest

RUN = (
    *("--config", "experiments/tiny.py", "--network.width", 4, "--network.depth", 1, "--batch-real", 8),
    *("--iterations", 60, "--chunk", 2, "--images-every", 0, "--checkpoint.every", 10, "--optimizer.learning-rate", 5),
    *("--evaluation.networks", 1, "--evaluation.epochs", 2),
    *("--evaluation.random-real", "false", "--evaluation.whole-dataset", "false"),
)


def run_with(flag, value):
    """The same with another value of a flag."""
    place = RUN.index(flag)
    return (*RUN[: place + 1], value, *RUN[place + 2 :])


def images_of(workdir):
    with np.load(workdir / "synthetic.npz") as synthetic:
        return synthetic["images"].tobytes()


@pytest.fixture(scope="module")
def undisturbed(run_command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run_command("dmjax.condense", *RUN, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def wait_for(condition, process, seconds=60):
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - start < seconds
        time.sleep(0.001)


def lines_of(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def finish(run_command, workdir, undisturbed, **options):
    done = run_command("dmjax.condense", *RUN, "--workdir", workdir, **options)
    assert done.returncode == 0, done.stderr
    assert images_of(workdir) == images_of(undisturbed)
    iterations = [json.loads(line)["iteration"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert iterations == list(range(2, 61, 2))  # none twice, none missing
    return done


def test_same_seed_same_bytes_other_seed_other_result(run_command, undisturbed, tmp_path):
    finish(run_command, tmp_path / "again", undisturbed)
    done = run_command("dmjax.condense", *RUN, "--workdir", tmp_path / "other", "--seed", 1)
    assert done.returncode == 0
    assert images_of(tmp_path / "other") != images_of(undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments(run_command, undisturbed, tmp_path):
    generator = random.Random(0)
    for attempt in range(3):
        process = run_command.start("dmjax.condense", *RUN, "--workdir", tmp_path)
        after = lines_of(tmp_path) + generator.randint(1, 6)
        wait_for(lambda after=after: lines_of(tmp_path) >= after, process)
        time.sleep(generator.random() * 0.02)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, attempt
    finish(run_command, tmp_path, undisturbed)


def test_killed_during_a_checkpoint(run_command, undisturbed, tmp_path):
    """The kill comes while Orbax's temporary folder is there."""
    process = run_command.start("dmjax.condense", *RUN, "--workdir", tmp_path)

    def writing():
        folder = tmp_path / "checkpoints"
        names = os.listdir(folder) if folder.exists() else []
        return any("tmp" in n for n in names) and any(n.isdigit() and int(n) >= 4 for n in names)

    wait_for(writing, process)
    process.kill()
    process.communicate()
    finish(run_command, tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_signals_save_and_leave(run_command, undisturbed, tmp_path, signum, status):
    process = run_command.start("dmjax.condense", *run_with("--checkpoint.every", 1000), "--workdir", tmp_path)
    wait_for(lambda: lines_of(tmp_path) >= 3, process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err.count("\n") == 1, err
    assert "goes on from here" in err
    done = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert max(done) >= 6  # saved though no checkpoint was due
    again = run_command("dmjax.condense", *run_with("--checkpoint.every", 1000), "--workdir", tmp_path)
    assert again.returncode == 0
    assert images_of(tmp_path) == images_of(undisturbed)


@pytest.mark.parametrize("delay", [pytest.param(0.5, marks=pytest.mark.slow), 2.0])
def test_a_signal_while_starting_or_compiling(run_command, undisturbed, tmp_path, delay):
    process = run_command.start("dmjax.condense", *RUN, "--workdir", tmp_path)
    wait_for(lambda: (tmp_path / ".lock").exists(), process)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1, err
    finish(run_command, tmp_path, undisturbed)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run_command, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "synthetic.npz").unlink()
    for file in (tmp_path / "run" / "checkpoints" / "60").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    done = finish(run_command, tmp_path / "run", undisturbed)
    assert "checkpoint 60" in done.stderr
    assert "falling back" in done.stderr
    assert (tmp_path / "run" / "damaged_checkpoints" / "60").is_dir()


def test_a_finished_run_whose_set_was_damaged_writes_it_again(run_command, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    path = tmp_path / "run" / "synthetic.npz"
    path.write_bytes(path.read_bytes()[:1000])
    finish(run_command, tmp_path / "run", undisturbed)


def test_resume_on_another_number_of_devices(run_command, undisturbed, tmp_path):
    process = run_command.start("dmjax.condense", *RUN, "--workdir", tmp_path)
    wait_for(lambda: lines_of(tmp_path) >= 10, process)
    process.kill()
    process.communicate()
    done = run_command("dmjax.condense", *RUN, "--workdir", tmp_path, devices=4)
    assert done.returncode == 0, done.stderr
    ours, theirs = (np.frombuffer(images_of(w), np.float32) for w in (tmp_path, undisturbed))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_two_processes_do_not_share_a_workdir(run_command, tmp_path):
    first = run_command.start("dmjax.condense", *run_with("--iterations", 100000), "--workdir", tmp_path)
    try:
        wait_for(lambda: lines_of(tmp_path) >= 1, first)
        second = run_command("dmjax.condense", *run_with("--iterations", 100000), "--workdir", tmp_path)
        assert second.returncode == 2
        assert "another process is working" in second.stderr
    finally:
        first.kill()
        first.communicate()
