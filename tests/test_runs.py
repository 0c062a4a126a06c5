"""Several seeds as one program: each is what it is alone, whatever happens to the others."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from dmjax import DM, DSA, condense
from dmjax.common.errors import NonFiniteLoss, UserError
from dmjax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    NetworkConfig,
)
from dmjax.data import load
from dmjax.methods.gradient import GradientConfig
from dmjax.run import loop, memory
from dmjax.run.program import RunState
from dmjax.run.workdir import Workdir
from dmjax.settings import experiment

SMALL = Config(
    data=DataConfig(source="digits"),
    network=NetworkConfig(width=4, depth=1),
    evaluation=EvaluationConfig(networks=2, epochs=2),
    checkpoint=CheckpointConfig(every=2),
    method=DM(iterations=4, batch_real=8),
    ipc=2,
    images_every=0,
    progress=False,
)


def together(config, tmp_path):
    """The images of each run, in the order of their seeds."""
    return [synthetic.images for synthetic in condense.condense_runs(dataclasses.replace(config, workdir=tmp_path))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": DSA(iterations=4, batch_real=8, gradient=GradientConfig(outer=2, inner=1))},
        pytest.param({"network": NetworkConfig(width=4, depth=1, norm="batch")}, marks=pytest.mark.slow),
    ],
)
def test_each_run_is_what_its_seed_gives_alone(tmp_path, changes):
    config = dataclasses.replace(SMALL, **changes, seed=3)
    runs = together(dataclasses.replace(config, runs=3), tmp_path / "runs")
    for i, images in enumerate(runs):
        alone = dataclasses.replace(config, seed=3 + i, workdir=tmp_path / f"alone_{i}")
        np.testing.assert_array_equal(images, condense.condense(alone).images)
    assert np.abs(runs[0] - runs[1]).max() > 0.1


def test_runs_that_were_killed_between_their_checkpoints_go_on(tmp_path):
    config = dataclasses.replace(SMALL, runs=3)
    whole = together(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for seed, kept in ((0, 2), (1, 4)):
        folder = tmp_path / "killed" / f"seed_{seed}"
        (folder / "synthetic.npz").unlink()
        for checkpoint in (folder / "checkpoints").iterdir():
            if int(checkpoint.name) > kept:
                shutil.rmtree(checkpoint)
    shutil.rmtree(tmp_path / "killed" / "seed_2")
    for ours, theirs in zip(together(config, tmp_path / "killed"), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    lines = (tmp_path / "killed" / "seed_0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [2, 4]


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_a_run_that_diverges_is_left_behind(tmp_path, monkeypatch):
    """The second of three starts from images that are not numbers."""
    dataset = load(SMALL.data, False)
    config = experiment.resolve(dataclasses.replace(SMALL, runs=3, workdir=tmp_path / "runs"))
    configs, first_state = experiment.runs(config), loop.Programs.first_state

    def broken(self, seed):
        state = first_state(self, seed)
        broken = state.method._replace(images=state.method.images * np.float32(np.nan))
        return state._replace(method=broken) if seed == 1 else state

    monkeypatch.setattr(loop.Programs, "first_state", broken)
    workdirs = [Workdir(c) for c in configs]
    results = loop.run(configs, dataset, workdirs)
    for workdir in workdirs:
        workdir.close()
    assert isinstance(results[1], NonFiniteLoss)
    assert "at iteration 1 (seed 1)" in str(results[1])
    for i in (0, 2):
        alone = dataclasses.replace(configs[i], workdir=tmp_path / f"alone_{i}")
        np.testing.assert_array_equal(results[i].synthetic.images, condense.condense(alone).images)


def test_further_runs_need_their_states():
    state = RunState(np.int32(0), (np.zeros((2, 100), np.float32), np.zeros((2, 25), np.float32)))  # 1004 bytes
    assert memory.runs_beside(5000, state, 1, 5000 + 9 * 4 * 1004) == 10
    assert memory.runs_beside(5000, state, 2, 5000 + 9 * 2 * 1004) == 10
    assert memory.runs_beside(5000, state, 1, 5000) == 1
    assert memory.runs_beside(5000, state, 1, 10) == 1  # chosen by hand, and more than there is


def test_where_memory_is_short_fewer_runs_are_together_and_each_is_what_it_is_alone(tmp_path, monkeypatch):
    """The limit is what one run needs: several of them must neither be refused nor be computed in other chunks."""
    config = dataclasses.replace(SMALL, network=NetworkConfig(width=32, depth=2), ipc=5)
    config = dataclasses.replace(config, method=DM(iterations=4, batch_real=100))
    chosen, choose, groups = [], memory.choose, []

    def spy(*arguments):
        chosen.append(choose(*arguments))
        return chosen[-1]

    monkeypatch.setattr(memory, "choose", spy)
    alone = condense.condense(dataclasses.replace(config, workdir=tmp_path / "alone")).images
    limited = dataclasses.replace(config, memory_gb=1.01 * memory.peak_bytes(chosen[0][0]) / 1e9)
    first = loop._RunGroup.__init__
    monkeypatch.setattr(
        loop._RunGroup, "__init__", lambda self, *args: (groups.append(len(args[1])), first(self, *args))[1]
    )
    runs = together(dataclasses.replace(limited, runs=6), tmp_path / "limited")
    assert max(groups) < 6 == sum(groups)
    assert chosen[0][1] == chosen[-1][1]
    np.testing.assert_array_equal(runs[0], alone)


def test_the_command_line_adds_runs_and_pools_their_networks(tmp_path, capsys):
    small = ["--config", "experiments/tiny.py", "--network.width", "4", "--network.depth", "1", "--ipc", "1"]
    small += ["--iterations", "2", "--batch-real", "8", "--images-every", "0", "--evaluation.networks", "2"]
    small += ["--evaluation.epochs", "2", "--evaluation.random-real", "false", "--evaluation.whole-dataset", "false"]
    small += ["--progress", "false", "--workdir", str(tmp_path)]
    assert condense.main([*small, "--runs", "2"]) == 0
    first = (tmp_path / "seed_0" / "results.json").read_text()
    assert condense.main([*small, "--runs", "3"]) == 0
    out = capsys.readouterr().out
    assert "seed_0 is finished" in out
    assert "(6 networks)" in out
    assert (tmp_path / "seed_0" / "results.json").read_text() == first
    pooled = json.loads((tmp_path / "runs.json").read_text())
    assert pooled["seed"] == [0, 1, 2]
    values = [json.loads((tmp_path / f"seed_{i}" / "results.json").read_text()) for i in range(3)]
    expected = [v for results in values for v in results["accuracy"]["synthetic"]["values"]]
    assert pooled["accuracy"]["synthetic"]["values"] == expected
    assert pooled["accuracy"]["synthetic"]["mean"] == pytest.approx(np.mean(expected))


def test_one_set_and_many_sets_are_two_functions(tmp_path):
    with pytest.raises(UserError, match="condense_runs makes the 2"):
        condense.condense(dataclasses.replace(SMALL, runs=2, workdir=tmp_path))
    with pytest.raises(UserError, match=r"runs must be between 1 and 1000"):
        experiment.resolve(dataclasses.replace(SMALL, runs=0))
    with pytest.raises(UserError, match=r"seed must be below"):
        experiment.resolve(dataclasses.replace(SMALL, runs=2, seed=2**32 - 1))
