"""Networks trained on the whole set: what is kept, interruptions, damage, and condensing with them."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from dmjax import DM, networks
from dmjax.common import signals
from dmjax.common.errors import UserError
from dmjax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    NetworkConfig,
    PretrainedConfig,
)
from dmjax.data import load
from dmjax.evaluation import pretrained, training
from dmjax.evaluation.training import Examples
from dmjax.methods.base import Chunks, ClassData
from dmjax.methods.embedding import Bank
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.run.program import make_problem
from dmjax.settings import experiment

CONFIG = experiment.resolve(
    Config(
        network=NetworkConfig(width=4, depth=1),
        augment=AugmentConfig("none"),
        pretrained=PretrainedConfig(networks=2, epochs=3, states=4),
        evaluation=EvaluationConfig(batch_size=64),
        progress=False,
    )
)


@pytest.fixture(scope="module")
def dataset():
    return load(DataConfig())


@pytest.fixture
def config(tmp_path):
    return dataclasses.replace(CONFIG, pretrained=dataclasses.replace(CONFIG.pretrained, path=tmp_path / "pool"))


def contents(folder):
    """Of all files, without the seconds that differ from run to run."""
    found = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {path: re.sub(rb'"seconds": [0-9.e-]+', b"", content) for path, content in found.items()}


def test_steps_that_are_kept():
    assert pretrained.milestones(100, 4) == [0, 6, 25, 56, 100]
    assert pretrained.milestones(3, 10) == [0, 1, 2, 3]


def test_states_are_those_of_plain_training(config, dataset):
    """The first is the initial one, the last what `training.train` gives on the images that are not held out."""
    known = pretrained.states(config, dataset)
    assert [len(of_one) for of_one in known] == [5, 5]
    assert known[0][0].step == 0
    assert known[0][-1].accuracy > known[0][0].accuracy + 0.2
    images, labels = dataset.flat()
    order = np.random.default_rng(0).permutation(len(labels))
    held = round(0.1 * len(labels))
    mine, validation = order[held:], order[:held]
    network = networks.create(config.network, 10, dataset.image_shape)
    recipe = training.make_recipe(config.evaluation, config.augment)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 4), 1)
    examples = jax.device_put(Examples(images[mine], labels[mine], dataset.mean, dataset.std))
    variables = training.train(network, recipe, key, examples, 3)
    jax.tree.map(np.testing.assert_array_equal, known[1][-1].load(), jax.device_get(variables))
    x = (images[validation] / np.float32(255) - dataset.mean) / dataset.std
    right = np.asarray(network.apply(variables, x)).argmax(1) == labels[validation]
    assert known[1][-1].accuracy == pytest.approx(right.mean())


def test_what_is_there_is_not_trained_again_and_more_networks_are_added(config, dataset, tmp_path, monkeypatch):
    one = dataclasses.replace(config, pretrained=dataclasses.replace(config.pretrained, networks=1))
    pretrained.states(one, dataset)
    first = contents(tmp_path / "pool" / "network_000")
    trained = []
    start = training.start
    monkeypatch.setattr(training, "start", lambda *args: trained.append(args) or start(*args))
    known = pretrained.states(config, dataset)
    assert contents(tmp_path / "pool" / "network_000") == first
    assert pretrained.states(config, dataset) == known
    assert len(trained) == 1  # the second network, once


def _stop_after(function, times):
    """The function, which is interrupted instead of being called once more."""
    calls = []

    def interrupted(*args):
        if len(calls) == times:
            raise signals.Interrupted(15)
        calls.append(args)
        return function(*args)

    return interrupted


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_training_goes_on_and_ends_in_the_same_states(
    config, dataset, tmp_path, monkeypatch, stop_after
):
    whole = dataclasses.replace(config, pretrained=dataclasses.replace(config.pretrained, path=tmp_path / "whole"))
    pretrained.states(whole, dataset)
    accuracy = training.accuracy
    monkeypatch.setattr(training, "accuracy", _stop_after(accuracy, stop_after))
    with pytest.raises(signals.Interrupted):
        pretrained.states(config, dataset)
    monkeypatch.setattr(training, "accuracy", accuracy)
    pretrained.states(config, dataset)
    assert contents(tmp_path / "pool") == contents(tmp_path / "whole")


def test_damage_and_other_settings_are_one_line(config, dataset, tmp_path):
    known = pretrained.states(config, dataset)
    other = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, learning_rate=0.02))
    with pytest.raises(UserError, match="holds networks with another recipe"):
        pretrained.states(other, dataset)
    other_data = dataclasses.replace(dataset, images=dataset.images + np.uint8(1))
    with pytest.raises(UserError, match="holds networks with another data set"):
        pretrained.states(config, other_data)
    path = known[0][1].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged; remove"):
        known[0][1].load()
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        pretrained.stack(known[0])
    listed = tmp_path / "pool" / "network_000" / "states.json"
    for text in ('{"states": [{"step": 3}]}', "[]x", '{"states": [{"file": "a", "step": 1, "accuracy": null}]}'):
        listed.write_text(text)
        with pytest.raises(UserError, match=r"is damaged.*; remove .*network_000, to train"):
            pretrained.states(config, dataset)
    (tmp_path / "pool" / "about.json").unlink()  # then nobody knows what the networks were trained on
    with pytest.raises(UserError, match="holds networks, but no about"):
        pretrained.states(config, dataset)


def test_a_damaged_training_is_not_gone_on_with(config, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "accuracy", _stop_after(training.accuracy, 2))
    with pytest.raises(signals.Interrupted):
        pretrained.states(config, dataset)
    (path,) = (tmp_path / "pool" / "network_000").glob("*.training")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="training is damaged; remove"):
        pretrained.states(config, dataset)


def test_selection_by_accuracy(config, dataset):
    known = pretrained.states(config, dataset)
    every = [state for of_one in known for state in of_one]
    low, high = sorted(state.accuracy for state in every)[2:4]
    assert pretrained.select(known, (low, high + 1e-6)) == [s for s in every if low <= s.accuracy <= high]
    assert pretrained.select(known, None) == every
    with pytest.raises(UserError, match=r"none of the 10 states .* from 0\.99 to 1; they have"):
        pretrained.select(known, (0.99, 1.0))


def test_a_step_draws_one_of_the_trained_networks(config, dataset):
    """Each iteration's loss is that of one of the networks; all are drawn, and none are fresh."""
    trained = pretrained.stack(pretrained.states(config, dataset)[0])
    method = DM(
        batch_real=1000,
        optimizer=OptimizerConfig(learning_rate=1e-9),
        match=MatchConfig(networks="pool", calibration=0.0),
    )
    problem = make_problem(dataclasses.replace(config, method=method, ipc=2), dataset)
    problem = dataclasses.replace(problem, chunks=Chunks(1))
    one_step = jax.jit(lambda key, *arguments: method.step(problem, key, *arguments))
    images = np.random.default_rng(0).normal(size=(10, 2, *dataset.image_shape)).astype(np.float32)
    data, state = ClassData(dataset.images, dataset.counts, np.arange(10, dtype=np.int32)), method.state_of(images)

    def loss(iteration, drawn):
        key = jax.random.fold_in(jax.random.key(0), iteration)
        same = np.arange(5, dtype=np.int32)
        return float(one_step(key, state, data, Bank(trained, drawn, same, same))[1].sum())

    alone = [loss(0, np.array([k], np.int32)) for k in range(5)]
    seen = [loss(i, np.arange(5, dtype=np.int32)) for i in range(30)]
    nearest = [int(np.argmin(np.abs(np.array(alone) - value))) for value in seen]
    np.testing.assert_allclose(seen, np.array(alone)[nearest], rtol=1e-4)
    assert set(nearest) == set(range(5))


def test_condensing_with_a_pool_from_the_command_line(run_command, tmp_path):
    """The folder of another data set, bounds that nothing meets, and a run that works."""
    small = (
        *("--config", "experiments/tiny.py", "--network.width", 4, "--network.depth", 1, "--iterations", 25),
        *("--evaluation.networks", 1, "--evaluation.epochs", 1, "--evaluation.random-real", "false"),
        *("--evaluation.whole-dataset", "false", "--pretrained.networks", 1, "--pretrained.epochs", 2),
        *("--pretrained.path", tmp_path / "pool", "--match.networks", "pool"),
    )
    done = run_command("dmjax.condense", *small, "--workdir", tmp_path / "a", "--match.accuracy", 0.9, 0.95)
    assert done.returncode == 2
    assert "a validation accuracy from 0.9 to 0.95; they have" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "a").exists()
    done = run_command("dmjax.condense", *small, "--workdir", tmp_path / "b", "--match.accuracy", 0, 0.5)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "b" / "config.json").read_text())["config"]["method"]["match"]
    assert (stored["networks"], stored["accuracy"]) == ("pool", [0.0, 0.5])
    about = tmp_path / "pool" / "about.json"
    about.write_text(about.read_text().replace('"digits"', '"mnist"'))
    done = run_command("dmjax.condense", *small, "--workdir", tmp_path / "c")
    assert done.returncode == 2
    assert "holds networks with another data set" in done.stderr


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (MatchConfig(accuracy=(0.5, 0.6)), "give --match.networks pool"),
        (MatchConfig(networks="pool", accuracy=(0.6, 0.5)), "a lower and a higher fraction"),
    ],
)
def test_impossible_bounds(match, message):
    with pytest.raises(UserError, match=message):
        experiment.resolve(dataclasses.replace(CONFIG, method=DM(match=match)))
