"""Where networks come from, and what is seen of images in them: pools, interpolation, the queue, clouds of features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fitted import make_dataset
from matched import config_of, problem_of, small

from dmjax import networks
from dmjax.methods import distances, embedding, network_queue, performance
from dmjax.methods.base import DEVICES, ClassData
from dmjax.methods.cloud import cross_entropy, observe
from dmjax.methods.embedding import Bank
from dmjax.methods.matching import Matching
from dmjax.methods.network_queue import QueueConfig


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(np.random.default_rng(0))


def test_an_interpolated_network_lies_between_the_ends_of_its_training():
    """Against parameters made by hand: the share is the same for all leaves, and uniform over draws."""
    states = {"w": jnp.array([0.0, 10.0, 100.0, 200.0]), "b": jnp.array([[1.0], [3.0], [5.0], [6.0]])}
    last = np.array([1, 1, 3, 3], np.int32)
    bank = jax.tree.map(jnp.asarray, Bank(states, np.array([0, 2], np.int32), last, last))
    drawn = jax.vmap(lambda key: embedding.draw(bank, key, True))(jax.random.split(jax.random.key(0), 400))
    first = np.asarray(drawn.variables["w"]) <= 10
    share = np.where(first, 1 - drawn.variables["w"] / 10, 1 - (drawn.variables["w"] - 100) / 100)
    np.testing.assert_allclose(
        drawn.variables["b"][:, 0], np.where(first, share + 3 * (1 - share), 5 * share + 6 * (1 - share)), rtol=1e-4
    )
    assert set(np.asarray(drawn.expert["w"]).tolist()) == {10.0, 200.0}
    assert ((drawn.expert["w"] == 10) == first).all()
    assert 0.4 < first.mean() < 0.6
    assert abs(share.mean() - 0.5) < 0.05
    assert share.min() < 0.05
    assert share.max() > 0.95
    own = embedding.draw(bank, jax.random.key(0), True, own_expert=True)
    assert own.expert is own.variables
    middle = embedding.interpolate({"w": jnp.array(2.0)}, {"w": jnp.array(4.0)}, 0.25)
    assert float(middle["w"]) == 3.5


def test_which_states_are_drawn_and_which_is_their_expert(dataset):
    problem = problem_of(config_of(Matching()), dataset)
    states = problem.trained.states
    for n, of_one in enumerate(states):
        for s, state in enumerate(of_one):
            state.variables = {"at": np.float32(10 * n + s)}
    later = dataclasses.replace(problem)
    bank = embedding.bank(later, "pool", "later", None)
    assert bank.drawn.tolist() == list(range(6))
    assert (bank.first.tolist(), bank.last.tolist()) == (list(range(6)), list(range(6)))  # a step is half a training
    for state in (states[0][1], states[1][1]):
        state.step = 19
    assert embedding.bank(later, "pool", "later", None).last.tolist() == [0, 2, 2, 3, 5, 5]
    assert embedding.bank(later, "pool", "last", None).first.tolist() == [2, 2, 2, 5, 5, 5]
    assert embedding.bank(later, "pool", "last", (0.4, 0.6)).drawn.tolist() == [1, 4]
    trained = embedding.bank(later, "trained", "last", None)
    assert (trained.states["at"].tolist(), trained.drawn.tolist()) == ([2, 12], [0, 1])
    ends = embedding.bank(later, "interpolated", "last", None)
    assert (ends.states["at"].tolist(), ends.drawn.tolist(), ends.last.tolist()) == (
        [0, 2, 10, 12],
        [0, 2],
        [1, 1, 3, 3],
    )
    assert embedding.bank(later, "random", "last", None) is None


def test_a_share_of_the_iterations_has_a_fresh_network(dataset):
    problem = problem_of(config_of(Matching()), dataset)
    trained = embedding.random(problem, jax.random.key(99))
    draw = jax.jit(jax.vmap(lambda key: embedding.with_fresh(problem, embedding.Drawn(trained, trained), key, 0.25)))
    drawn = draw(jax.random.split(jax.random.key(0), 200))
    kernel = lambda variables: np.asarray(jax.tree.leaves(variables)[0])  # noqa: E731
    same = (kernel(drawn.variables) == kernel(trained)).reshape(200, -1).all(axis=1)
    assert 0.65 < same.mean() < 0.85
    np.testing.assert_array_equal(kernel(drawn.expert)[0], kernel(trained))


def test_the_cross_entropy_is_that_of_the_images_that_are_there(dataset, rng):
    """Against logits and NumPy, in chunks too; a filler does not count."""
    problem = problem_of(config_of(Matching()), dataset)
    variables = embedding.random(problem, jax.random.key(0))
    images = rng.normal(size=(5, *dataset.image_shape)).astype(np.float32)
    weights = np.float32([1, 1, 1, 1, 0])
    logits = np.float64(problem.network.apply(variables, images))
    each = np.log(np.exp(logits).sum(axis=1)) - logits[:, 2]
    for chunk in (None, 2):
        ours = cross_entropy(problem, variables, images, weights, jnp.int32(2), chunk)
        np.testing.assert_allclose(ours, each[:4].mean(), rtol=1e-5)
    assert float(cross_entropy(problem, variables, images, 0 * weights, jnp.int32(2))) == 0
    np.testing.assert_allclose(
        observe(problem, variables, images, weights, 2, label=jnp.int32(2)).losses, each, rtol=1e-5
    )


def on_one_device(function, data, *arguments):
    """Calls a function with an axis of devices that has one."""
    lead = jax.tree.map(lambda leaf: leaf[None], data)
    mapped = jax.jit(jax.vmap(function, (0, *[None] * len(arguments)), axis_name=DEVICES))(lead, *arguments)
    return jax.tree.map(lambda leaf: leaf[0], mapped)


def test_a_queue_grows_and_drops_the_oldest(dataset):
    problem = problem_of(config_of(small("idm")), dataset)
    settings = QueueConfig(start=2, size=3, every=2)
    queue = network_queue.start(problem, settings, jax.random.key(0))
    kernel = lambda queue: np.asarray(jax.tree.leaves(queue.variables)[0])  # noqa: E731
    assert int(queue.count) == 2
    seen = []
    for i in range(5):
        before = kernel(queue)
        queue = network_queue.grow(problem, settings, jax.random.key(i), queue, jnp.int32(i))
        seen.append([k for k in range(3) if (kernel(queue)[k] != before[k]).any()])
    assert seen == [[], [], [2], [], [0]]  # at iterations 2 and 4; the third place was free, then the oldest goes
    assert int(queue.count) == 4
    drawn = {int(network_queue._index(settings, jax.random.key(i), queue._replace(count=2))) for i in range(30)}
    assert drawn == {0, 1}


def test_a_network_of_the_queue_is_trained_by_sgd(dataset):
    """Against a step by hand with momentum and weight decay, on the images that are drawn."""
    settings = QueueConfig(start=1, size=1, trained=1, steps=2, batch_size=6, learning_rate=0.1, every=10)
    problem = problem_of(config_of(small("idm")), dataset)
    queue = network_queue.start(problem, settings, jax.random.key(0))
    data = ClassData.of(dataset.images, dataset.counts)
    key = jax.random.key(1)
    after = on_one_device(lambda d, q: network_queue.train(problem, settings, key, q, d), data, queue)
    batch_key = jax.random.split(jax.random.split(key, 1)[0])[1]
    params = embedding.at(queue.variables, 0)["params"]
    momentum = jax.tree.map(jnp.zeros_like, params)
    for i in range(2):
        drawn = on_one_device(
            lambda d, i=i: performance.draw_targets(problem, jax.random.fold_in(batch_key, i), d, 6), data
        )

        def loss(params, drawn=drawn):
            logits = problem.network.apply({"params": params}, drawn.images)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, drawn.labels)
            return (each * drawn.weights).sum()

        gradient = jax.grad(loss)(params)
        momentum = jax.tree.map(lambda m, g, p: 0.9 * m + g + 5e-4 * p, momentum, gradient, params)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, momentum)
    for ours, theirs in zip(jax.tree.leaves(after.variables["params"]), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(after.momentum), jax.tree.leaves(momentum), strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-3, atol=1e-5)
    assert 0 <= float(after.accuracy) <= 0.02


def test_observe_gives_layers_and_maps_where_they_are_wanted(dataset, rng):
    problem = problem_of(config_of(Matching()), dataset)
    variables = embedding.random(problem, jax.random.key(0))
    images = rng.normal(size=(3, *dataset.image_shape)).astype(np.float32)
    weights = np.ones(3, np.float32)
    plain = observe(problem, variables, images, weights)
    assert plain.attention == ()
    assert plain.last_map is None
    seen = observe(problem, variables, images, weights, None, (0, 1), 2.0, True)
    np.testing.assert_array_equal(seen.features, plain.features)
    np.testing.assert_allclose(seen.last_map.reshape(3, -1), seen.features, rtol=1e-6)
    activations = networks.embed_all(problem.network, variables, images, weights).activations
    for ours, maps in zip(seen.attention, activations, strict=True):
        np.testing.assert_allclose(ours, distances.attention_map(maps, 2.0), rtol=1e-5, atol=1e-6)
