"""A run that is followed from Python: what the callback sees, and that the run does not notice it."""

import dataclasses
import json

import numpy as np
import pytest

import dmjax
from dmjax import DM
from dmjax.config import CheckpointConfig, Config, EvaluationConfig, NetworkConfig

SMALL = Config(
    network=NetworkConfig(width=4, depth=1),
    evaluation=EvaluationConfig(networks=1, epochs=2),
    checkpoint=CheckpointConfig(every=4),
    method=DM(iterations=10, batch_real=8),
    ipc=2,
    chunk=4,
    images_every=0,
    progress=False,
)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_callback_sees_every_chunk_and_the_result_has_the_same_bytes(tmp_path):
    followed, alone = (dataclasses.replace(SMALL, workdir=tmp_path / name) for name in ("followed", "alone"))
    seen, sets = [], []

    def follow(snapshot):
        seen.append((snapshot.iteration, snapshot.losses.copy()))
        sets.append(snapshot.synthetic())
        snapshot.losses[:] = 0  # which is the callback's own

    synthetic = dmjax.condense(followed, on_chunk=follow)
    dmjax.condense(alone)
    assert [(iteration, len(losses)) for iteration, losses in seen] == [(4, 4), (8, 4), (10, 2)]
    assert [(iteration, losses.mean()) for iteration, losses in seen] == [
        (entry["iteration"], entry["loss"]) for entry in metrics_of(followed.workdir)
    ]
    stored = [dmjax.SyntheticSet.load(config.workdir / "synthetic.npz") for config in (followed, alone)]
    assert stored[0].digest() == stored[1].digest()
    assert sets[-1].digest() == synthetic.digest()
    assert [made.metadata["iterations"] for made in sets] == [4, 8, 10]
    shorter = dmjax.condense(dataclasses.replace(SMALL, method=DM(iterations=4, batch_real=8)))
    np.testing.assert_array_equal(sets[0].images, shorter.images)


def test_losses_in_memory_are_those_that_the_callback_saw():
    seen = []
    synthetic = dmjax.condense(SMALL, on_chunk=lambda snapshot: seen.extend(snapshot.losses))
    assert synthetic.metadata["losses"] == seen


def test_a_run_that_its_callback_stopped_goes_on(tmp_path):
    config, whole = dataclasses.replace(SMALL, workdir=tmp_path / "run"), dmjax.condense(SMALL)

    def stop(snapshot):
        if snapshot.iteration == 8:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        dmjax.condense(config, on_chunk=stop)
    seen = []
    synthetic = dmjax.condense(config, on_chunk=lambda snapshot: seen.append(snapshot.iteration))
    assert seen == [10]  # after the checkpoint of iteration 8
    assert synthetic.digest() == whole.digest()
    assert [entry["iteration"] for entry in metrics_of(config.workdir)] == [4, 8, 10]


def test_several_runs_are_told_apart_by_their_seeds():
    seen, made = [], {}

    def follow(snapshot):
        seen.append((snapshot.seed, snapshot.iteration))
        made[snapshot.seed] = snapshot.synthetic()

    runs = dmjax.condense_runs(dataclasses.replace(SMALL, runs=2, seed=5), on_chunk=follow)
    assert seen == [(5, 4), (6, 4), (5, 8), (6, 8), (5, 10), (6, 10)]
    assert [made[seed].digest() for seed in (5, 6)] == [synthetic.digest() for synthetic in runs]


def test_a_set_that_is_asked_for_too_late_is_one_line():
    seen = []
    dmjax.condense(SMALL, on_chunk=seen.append)
    with pytest.raises(dmjax.UserError, match=r"the set of iteration 4 is gone: call synthetic\(\) before on_chunk"):
        seen[0].synthetic()


def test_a_method_without_iterations_has_no_chunks():
    dmjax.condense(dataclasses.replace(SMALL, method="random"), on_chunk=lambda snapshot: pytest.fail("was called"))
