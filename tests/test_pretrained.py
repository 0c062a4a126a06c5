"""Networks trained on the whole set: what is kept, interruptions, damage, and a step that draws one of them."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import contents

import dmjax
from dmjax import DM, networks
from dmjax.common import signals
from dmjax.common.errors import UserError
from dmjax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    NetworkConfig,
    PretrainedConfig,
)
from dmjax.data import load
from dmjax.evaluation import pool_folder, pretrained, testing, training
from dmjax.evaluation.on_device import Examples
from dmjax.methods import embedding
from dmjax.methods.base import Chunks, ClassData
from dmjax.methods.embedding import Bank
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.run.program import make_abstract_problem, make_problem
from dmjax.settings import experiment

CONFIG = experiment.resolve(
    Config(
        network=NetworkConfig(width=4, depth=1),
        augment=AugmentConfig("none"),
        pretrained=PretrainedConfig(networks=2, epochs=3, states=4),
        progress=False,
    )
)


@pytest.fixture(scope="module")
def dataset():
    return load(DataConfig())


@pytest.fixture
def config(tmp_path):
    return changed(CONFIG, path=tmp_path / "pool")


def changed(config, **settings):
    """The configuration of another pool."""
    return dataclasses.replace(config, pretrained=dataclasses.replace(config.pretrained, **settings))


def test_steps_that_are_kept():
    assert pretrained.milestones(100, 4) == [0, 6, 25, 56, 100]
    assert pretrained.milestones(3, 10) == [0, 1, 2, 3]
    assert pretrained.milestones(100, 4, "even") == [0, 25, 50, 75, 100]
    assert pretrained.milestones(7 * 5, 5, "even") == [0, 7, 14, 21, 28, 35]  # those of every epoch


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
    recipe = training.make_recipe(EvaluationConfig(batch_size=64), config.augment)
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
    accuracy = testing.accuracy
    monkeypatch.setattr(testing, "accuracy", _stop_after(accuracy, stop_after))
    with pytest.raises(signals.Interrupted):
        pretrained.states(config, dataset)
    monkeypatch.setattr(testing, "accuracy", accuracy)
    pretrained.states(config, dataset)
    assert contents(tmp_path / "pool") == contents(tmp_path / "whole")


def test_damage_and_other_settings_are_one_line(config, dataset, tmp_path):
    known = pretrained.states(config, dataset)
    other = changed(config, learning_rate=0.02)
    with pytest.raises(UserError, match=r"holds networks with another recipe \(learning_rate 0\.01, not 0\.02\); give"):
        pretrained.states(other, dataset)
    with pytest.raises(UserError, match=r"holds networks with another schedule \(spacing early, not even\)"):
        pretrained.states(changed(config, spacing="even"), dataset)
    other_network = dataclasses.replace(config, network=dataclasses.replace(config.network, width=8))
    with pytest.raises(UserError, match=r"holds networks with another network \(width 4, not 8\)"):
        pretrained.states(other_network, dataset)
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
    monkeypatch.setattr(testing, "accuracy", _stop_after(testing.accuracy, 2))
    with pytest.raises(signals.Interrupted):
        pretrained.states(config, dataset)
    (path,) = (tmp_path / "pool" / "network_000").glob("*.training")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="training is damaged; remove"):
        pretrained.states(config, dataset)


@pytest.mark.parametrize("evaluation", [{"batch_size": 7, "learning_rate": 1.0}, {"strategy": "crop", "epochs": 3}])
def test_the_recipe_of_a_pool_is_its_own(config, dataset, evaluation):
    """What the evaluation does makes no difference to a pool; what the pool's own recipe says does."""
    known = pretrained.states(config, dataset)
    judged = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **evaluation))
    assert pretrained.states(experiment.resolve(judged), dataset) == known


@pytest.mark.parametrize(
    "settings",
    [
        *({"batch_size": 32}, {"learning_rate": 0.1}, {"momentum": 0.5}, {"weight_decay": 0.0}, {"strategy": "crop"}),
        *({"epochs": 4}, {"states": 5}, {"spacing": "even"}, {"holdout": 0.2}, {"seed": 1}),
    ],
)
def test_another_recipe_is_another_folder_of_the_cache(dataset, monkeypatch, settings):
    places = []
    monkeypatch.setattr(pool_folder, "claimed", lambda folder, about: places.append(folder) or 1 / 0)
    for config in (CONFIG, changed(CONFIG, networks=7), changed(CONFIG, **settings)):
        with pytest.raises(ZeroDivisionError):
            pretrained.states(config, dataset)
    assert places[0] == places[1] != places[2]


def test_the_strategy_is_that_of_matching_unless_given():
    assert CONFIG.pretrained.strategy == "none"
    assert experiment.resolve(changed(CONFIG, strategy="crop")).pretrained.strategy == "crop"
    open_again = changed(dataclasses.replace(CONFIG, augment=AugmentConfig("scale")), strategy=None, batch_size=None)
    assert experiment.resolve(open_again).pretrained.strategy == "scale"
    assert experiment.resolve(open_again).pretrained.batch_size == 64
    assert experiment.resolve(dataclasses.replace(open_again, method="herding")).pretrained.batch_size == 256
    with pytest.raises(UserError, match=r"pretrained\.momentum must be below 1"):
        experiment.resolve(changed(CONFIG, momentum=1.0))


@pytest.mark.parametrize(
    ("method", "pool"),
    [
        *(
            ("dm", (5, 20, 20, "early")),
            ("herding", (5, 5, 20, "early")),
            ("forgetting", (5, 20, 20, "early")),
            ("dance", (5, 60, 20, "early")),
        ),
        *(("ncfm", (20, 60, 20, "early")), ("dsdm", (10, 20, 20, "early")), ("tgdd", (5, 60, 60, "even"))),
        ("blend", (5, 8, 8, "early")),
    ],
)
def test_a_pool_is_the_methods_unless_given(method, pool):
    def found(config):
        settings = experiment.resolve(config).pretrained
        return settings.networks, settings.epochs, settings.states, settings.spacing

    config = Config(method=method)
    assert found(config) == pool
    assert found(changed(config, epochs=3)) == (pool[0], 3, *pool[2:])
    other = "early" if pool[3] == "even" else "even"
    assert found(changed(config, networks=1, states=2, spacing=other)) == (1, pool[1], 2, other)
    assert found(EvaluateConfig(method=method)) == pool  # its teachers
    given = changed(config, epochs=3)
    assert experiment.undecided(experiment.resolve(given), given).pretrained == given.pretrained


@pytest.mark.parametrize("source", ["pool", "trained", "interpolated"])
def test_the_stand_in_for_a_pool_that_is_left_open(source):
    method = dmjax.methods.create("match")
    method = dataclasses.replace(method, match=MatchConfig(networks=source))
    config = experiment.resolve(Config(method=method, network=CONFIG.network))
    made = embedding.bank(make_abstract_problem(config, 10, (8, 8, 1), np.zeros(1), np.ones(1)), source, "last", None)
    each = {"pool": 21, "trained": 1, "interpolated": 2}[source]
    assert {len(leaf) for leaf in jax.tree.leaves(made.states)} == {5 * each}


def test_even_states_are_those_after_every_epoch(config, dataset):
    even = changed(config, networks=1, states=3, spacing="even")
    per_epoch = -(-(len(dataset.flat()[1]) - round(0.1 * len(dataset.flat()[1]))) // 64)
    (states,) = pretrained.states(even, dataset)
    assert [state.step for state in states] == [0, per_epoch, 2 * per_epoch, 3 * per_epoch]


def test_networks_that_are_trained_as_one_program(config, dataset, tmp_path, monkeypatch):
    """Three in groups of two, stopped in the middle: those of one after another but for rounding."""
    alone = pretrained.states(changed(config, networks=3), dataset)
    together = changed(config, networks=3, together=2, path=tmp_path / "together")
    sizes, advance = [], training.advance
    monkeypatch.setattr(training, "advance", lambda *args: sizes.append(args[4].shape) or advance(*args))
    with monkeypatch.context() as stopped:
        stopped.setattr(testing, "accuracy", _stop_after(testing.accuracy, 5))  # after two states of both, and one
        with pytest.raises(signals.Interrupted):
            pretrained.states(together, dataset)
    assert sizes == [(2,)] * 3
    sizes.clear()
    found = pretrained.states(together, dataset)
    assert sizes == [()] * 2 + [()] * 3 + [()] * 5  # no two are equally far any more
    for of_one, other in zip(alone, found, strict=True):
        assert [state.step for state in of_one] == [state.step for state in other]
        for state, same in zip(of_one, other, strict=True):
            assert state.accuracy == pytest.approx(same.accuracy, abs=0.02)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), state.load(), same.load())
    assert pretrained.states(changed(together, together=1), dataset) == found  # it is no other pool


def test_groups_of_networks_that_are_equally_far():
    far = {0: ["s"] * 3, 2: [], 3: ["s"], 4: [], 5: [], 7: ["s"]}
    assert pretrained._groups(far, 2) == [[0], [3, 7], [2, 4], [5]]
    assert pretrained._groups(far, 1) == [[0], [3], [7], [2], [4], [5]]


def test_the_work_is_announced_before_it_is_done(config, dataset, tmp_path):
    announced = []

    def announce(work):
        trained = [path.name for path in (tmp_path / "pool").glob("network_*")]
        announced.append((work.there, work.wanted, work.seconds > 0, trained))

    pretrained.states(changed(config, networks=1), dataset, announce)
    pretrained.states(config, dataset, announce)
    pretrained.states(config, dataset, announce)
    assert announced[0] == (0, 5, True, [])
    assert announced[1] == (5, 10, True, ["network_000"])
    assert announced[2][:3] == (10, 10, False)


def test_the_estimate_by_a_clock_that_counts(dataset, monkeypatch):
    """A step takes a second and a test a hundred, so that what is left is known exactly."""
    task, passed = pretrained._Task(CONFIG, dataset), [0.0]
    advance, accuracy = training.advance, testing.accuracy

    def counted(network, recipe, plan, state, key, examples, until, *rest):
        passed[0] += until - int(state.step)
        return advance(network, recipe, plan, state, key, examples, until, *rest)

    def tested(*args):
        passed[0] += 100
        return accuracy(*args)

    monkeypatch.setattr(training, "advance", counted)
    monkeypatch.setattr(testing, "accuracy", tested)
    monkeypatch.setattr(pretrained, "time", SimpleNamespace(perf_counter=lambda: passed[0]))
    total = task.plan.total
    assert task.seconds_left([[]]) == pytest.approx(total + 5 * 100)
    begun = [SimpleNamespace(step=0), SimpleNamespace(step=9)]
    assert task.seconds_left([begun, []]) == pytest.approx(2 * total - 9 + 8 * 100)
    task.config = changed(CONFIG, together=2)  # two steps in one second
    assert task.seconds_left([[], []]) == pytest.approx(total + 10 * 100)
    task.config = CONFIG
    monkeypatch.setattr(pretrained, "_SECONDS_MEASURED", 0.0)  # one step is measured all the same
    assert task.seconds_left([[]]) == pytest.approx(total + 5 * 100)


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
    data, state = ClassData.of(dataset.images, dataset.counts), method.state_of(images)

    def loss(iteration, drawn):
        key = jax.random.fold_in(jax.random.key(0), iteration)
        same = np.arange(5, dtype=np.int32)
        return float(one_step(key, state, data, Bank(trained, drawn, same, same))[1].sum())

    alone = [loss(0, np.array([k], np.int32)) for k in range(5)]
    seen = [loss(i, np.arange(5, dtype=np.int32)) for i in range(30)]
    nearest = [int(np.argmin(np.abs(np.array(alone) - value))) for value in seen]
    np.testing.assert_allclose(seen, np.array(alone)[nearest], rtol=1e-4)
    assert set(nearest) == set(range(5))


def test_the_command_as_a_function(config, dataset):
    assert dmjax.pretrain(config, dataset) == pretrained.states(config, dataset)


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
