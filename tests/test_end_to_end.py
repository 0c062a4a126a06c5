"""The promises of the README, on real data, through the command line."""

import json

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_tiny_beats_random_by_ten_points_in_ninety_seconds(run_command, tmp_path):
    import time

    start = time.monotonic()
    done = run_command("dmjax.condense", "--config", "experiments/tiny.py", "--workdir", tmp_path, optimised=True)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((tmp_path / "results.json").read_text())["accuracy"]
    synthetic, random_real, whole = (accuracy[k] for k in ("synthetic", "random_real", "whole_dataset"))
    assert synthetic["mean"] - random_real["mean"] >= 0.10
    assert synthetic["mean"] - synthetic["std"] > random_real["mean"] + random_real["std"]
    assert whole["mean"] > synthetic["mean"]
    assert seconds < 90


@pytest.mark.slow
@pytest.mark.parametrize("source", ["npz", "tfds"])
def test_mnist_reaches_what_the_authors_code_reaches(run_command, shared, tmp_path, source):
    """88.4 % with these settings there, from 46.1 % with random real images; at least 87.5 % here."""
    done = run_command(
        *("dmjax.condense", "--config", ROOT / "experiments" / "mnist.py", "--workdir", tmp_path / "run"),
        *("--data.source", source, "--data.path", shared({"npz": "mnist.npz", "tfds": "tfds"}[source])),
        *("--ipc", 1, "--batch-real", 64, "--iterations", 300),
        *("--evaluation.epochs", 300, "--evaluation.networks", 3),
        timeout=1200,
        optimised=True,
    )
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"]
    assert accuracy["synthetic"]["mean"] >= 0.875
    assert accuracy["synthetic"]["mean"] - accuracy["random_real"]["mean"] > 0.2
