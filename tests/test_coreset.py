"""Coresets against brute force in NumPy, and on data where the right answer is known."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, Config, DataConfig, EvaluationConfig, NetworkConfig, PretrainedConfig
from dmjax.data import load
from dmjax.evaluation import pretrained, training
from dmjax.evaluation.on_device import Examples
from dmjax.methods import coreset
from dmjax.run.program import make_problem
from dmjax.settings import experiment


def brute_herding(features, ipc):
    mean, chosen = features.mean(0), []
    for i in range(ipc):
        total = features[chosen].sum(0) if chosen else 0
        gaps = [
            np.inf if j in chosen else np.linalg.norm(mean * (i + 1) - total - features[j])
            for j in range(len(features))
        ]
        chosen.append(int(np.argmin(gaps)))
    return chosen


def brute_k_center(features, ipc):
    chosen = [int(np.argmin(np.linalg.norm(features - features.mean(0), axis=1)))]
    while len(chosen) < ipc:
        nearest = [min(np.linalg.norm(f - features[c]) for c in chosen) for f in features]
        chosen.append(int(np.argmax(nearest)))
    return chosen


@pytest.mark.parametrize(("rule", "brute"), [(coreset.herding, brute_herding), (coreset.k_center, brute_k_center)])
@pytest.mark.parametrize(("count", "ipc"), [(20, 7), (20, 20), (5, 1)])
def test_rules_match_brute_force(rng, rule, brute, count, ipc):
    """With slots that hold no image behind the last one, whose features may be anything."""
    features = rng.normal(size=(24, 3)).astype(np.float32)
    features[count:] = 1e3
    chosen = np.asarray(rule(features, np.int32(count), ipc))
    assert chosen.tolist() == brute(np.float64(features[:count]), ipc)


def test_known_answers():
    """Four points of a square and its centre: both start in the centre; k-center takes corners, herding pairs them."""
    square = np.float32([[0, 0], [1, 1], [-1, 1], [1, -1.001], [-1, -1]])
    assert np.asarray(coreset.k_center(square, np.int32(5), 2)).tolist()[0] == 0
    assert set(np.asarray(coreset.k_center(square, np.int32(5), 5)).tolist()) == set(range(5))
    chosen = np.asarray(coreset.herding(square, np.int32(5), 3)).tolist()
    assert chosen[0] == 0
    np.testing.assert_allclose(square[chosen[1:]].sum(0), 0, atol=0.01)  # an opposite pair


def test_the_most_forgotten_of_each_class():
    forgotten = np.int32([0, 3, -1, 3, 1, 5, 0])
    assert coreset.most_forgotten(forgotten, np.int32([4, 3]), 2).tolist() == [[1, 3], [1, 0]]
    assert coreset.most_forgotten(forgotten, np.int32([4, 3]), 3).tolist() == [[1, 3, 0], [1, 0, 2]]


def test_what_a_network_is_not_trained_on_is_said_before_it_is_trained(monkeypatch):
    dataset = load(DataConfig(), False)
    monkeypatch.setattr(pretrained, "states", None)  # not reached
    config = experiment.resolve(Config(method="forgetting", ipc=125))  # of at least 127 images a tenth is held out
    assert pretrained.trained_on(config, dataset).sum() == dataset.counts.sum() - round(0.1 * dataset.counts.sum())
    with pytest.raises(UserError, match=r"more images than the network is trained on of class '\d'"):
        config.method.start(make_problem(config, dataset), 0)


def test_seeds_take_the_trained_networks_in_turn_and_each_is_looked_up_once(monkeypatch):
    asked = []

    def states(config, dataset):
        asked.append(config.pretrained.networks)
        return [[SimpleNamespace(name=f"network {i}", seconds=10.0 + i)] for i in range(config.pretrained.networks)]

    monkeypatch.setattr(pretrained, "states", states)
    config = Config(method="herding", pretrained=PretrainedConfig(networks=3))
    found = [pretrained.TrainedNetworks(config, None) for _ in range(4)]
    names = [networks.last_of(seed).name for seed, networks in enumerate(found)]
    assert names == ["network 0", "network 1", "network 2", "network 0"]
    assert asked == [1, 2, 3, 1]  # no more than are needed
    assert found[1].last_of(1).name == "network 1"
    assert found[1].seconds == 11.0
    assert asked == [1, 2, 3, 1]


def test_forgetting_counts_real_training_events():
    """Step by step by hand: an image is forgotten when it was right in its last batch and is wrong in this one."""
    from dmjax import networks

    rng = np.random.default_rng(0)
    labels = np.int32([0, 1, 2] * 7)
    images = np.clip(rng.normal(120 + 8 * labels[:, None, None, None], 80, (21, 8, 8, 1)), 0, 255).astype(np.uint8)
    examples = jax.device_put(Examples(images, labels, np.float32([0.5]), np.float32([0.3])))
    network = networks.create(NetworkConfig(width=4, depth=1), 3, (8, 8, 1))
    recipe = training.Recipe(0.5, 0.9, 0.0, 8, AugmentConfig("none"))  # unstable on purpose
    plan, key = training.make_plan(recipe, 21, 12), jax.random.key(0)
    state = training.start(network, plan, key, examples)
    right, forgotten = np.zeros(21, bool), np.zeros(21, int)
    normalized = (images / np.float32(255) - np.float32(0.5)) / np.float32(0.3)
    for i in range(plan.total):
        variables = jax.device_get(state.variables)
        state = training.advance(network, recipe, plan, state, key, examples, i + 1)
        position = i % plan.per_epoch * 8
        batch = np.asarray(state.order)[position : min(position + 8, 21)]
        now = np.asarray(network.apply(variables, normalized[batch], train=True)).argmax(1) == labels[batch]
        forgotten[batch] += right[batch] & ~now
        right[batch] = now
    assert forgotten.sum() > 0
    np.testing.assert_array_equal(state.forgotten, forgotten)


@pytest.fixture(scope="module")
def dataset():
    return load(DataConfig())


@pytest.mark.parametrize("method", ["random", "herding", "kcenter", "forgetting"])
def test_images_are_real_ones_of_their_class(dataset, tmp_path, method):
    config = experiment.resolve(
        Config(
            method=method,
            ipc=3,
            network=NetworkConfig(width=4, depth=1),
            pretrained=PretrainedConfig(networks=1, epochs=2, states=2, path=tmp_path / "pool"),
            evaluation=EvaluationConfig(batch_size=64),
            progress=False,
        )
    )
    problem = make_problem(config, dataset)
    chosen, seconds = config.method.start(problem, 0), problem.trained.seconds
    assert (seconds > 0) == (method != "random")
    for c in range(10):
        real = dataset.images[c][: dataset.counts[c]].reshape(dataset.counts[c], -1)
        places = [np.flatnonzero((real == image.ravel()).all(1)) for image in chosen[c]]
        assert all(len(place) for place in places)
        assert len({int(place[0]) for place in places}) == 3  # none twice
    with pytest.raises(UserError, match="ipc 500 asks for more images than class"):
        config.method.start(make_problem(dataclasses.replace(config, ipc=500), dataset), 0)


def test_herding_uses_the_features_of_the_trained_network(dataset, tmp_path):
    from dmjax import networks

    settings = PretrainedConfig(networks=1, epochs=2, states=2, path=tmp_path / "pool")
    network = NetworkConfig(width=4, depth=1)
    config = experiment.resolve(Config(method="herding", ipc=3, network=network, pretrained=settings, progress=False))
    chosen = config.method.start(make_problem(config, dataset), 0)
    variables = pretrained.states(config, dataset)[0][-1].load()
    made = networks.create(config.network, 10, dataset.image_shape)
    images = dataset.images[4][: dataset.counts[4]]
    normalized = (images / np.float32(255) - dataset.mean) / dataset.std
    features = np.asarray(made.apply(variables, normalized, method="embed"))
    np.testing.assert_array_equal(chosen[4], images[brute_herding(np.float64(features), 3)])
