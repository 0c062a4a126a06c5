"""What the methods of the family of distribution matching are composed of: networks, terms, units, factor, averages."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fitted import make_dataset

from dmjax import condense, methods, networks
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, CheckpointConfig, Config, NetworkConfig, PretrainedConfig
from dmjax.data import factor, normalize
from dmjax.data.sampling import random_images
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.methods import distances, embedding, network_queue, performance
from dmjax.methods.base import DEVICES, Chunks, ClassData
from dmjax.methods.cloud import Cloud, cross_entropy, observe
from dmjax.methods.embedding import Bank
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.matching import Matching
from dmjax.methods.network_queue import QueueConfig
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.run.devices import ClassSharding
from dmjax.run.program import RunState, make_chunk, make_problem, run_key, state_axes
from dmjax.settings import experiment, fields

PLAIN = OptimizerConfig("sgd", 1.0, ())  # then an iteration subtracts the gradient itself
FAMILY = ("match", "dm", "blend", "idm", "iid", "datadam", "m3d", "dsdm", "dance", "tgdd", "ncfm")
SMALL = {
    "batch_real": 4,
    "iterations": 4,
    "match.frequencies": 16,
    "match.history_after": 1,
    "queue.size": 3,
    "queue.start": 2,
    "queue.every": 2,
    "queue.steps": 2,
    "queue.batch_size": 6,
}
POOL = PretrainedConfig(networks=2, epochs=1, states=3)


class Untrained:
    """Random networks in the place of trained ones, as `TrainedNetworks` gives them."""

    seconds = waited = 0.0

    def __init__(self, problem, networks=2, states=3):
        keys = jax.random.split(jax.random.key(5), networks * states)
        variables = [jax.device_get(embedding.random(problem, key)) for key in keys]
        self.states = [
            [Loaded(variables[n * states + s], step=10 * s, accuracy=s / (states - 1)) for s in range(states)]
            for n in range(networks)
        ]

    def all(self):
        return self.states


class Loaded:
    """A state that is in memory."""

    def __init__(self, variables, step, accuracy):
        self.variables, self.step, self.accuracy = variables, step, accuracy

    def load(self):
        return self.variables


def config_of(method, ipc=1, **changes):
    network = NetworkConfig(width=4, depth=2)
    config = Config(method=method, network=network, ipc=ipc, progress=False, pretrained=POOL, **changes)
    return experiment.resolve(config)


def problem_of(config, dataset, chunks=None):
    problem = dataclasses.replace(make_problem(config, dataset), chunks=chunks or Chunks())
    return dataclasses.replace(problem, trained=Untrained(problem))


def small(name, **changes):
    method = methods.create(name)
    known = fields.flatten(method)
    return fields.replace(method, {n: v for n, v in SMALL.items() if n in known} | changes)


def run(config, dataset, devices=1, length=2, times=1, chunks=None):
    """The state after some iterations on so many devices, and the losses of each."""
    axes = state_axes(config.method)
    sharding = ClassSharding(dataset.num_classes, jax.local_devices()[:devices])
    problem = problem_of(config, dataset, chunks)
    constants = sharding.same(config.method.constants(problem))
    start = jax.device_get(config.method.start(problem, config.seed))
    states = [sharding.put_state(RunState(np.int32(0), start), axes)]
    keys, data = sharding.put_keys([run_key(config.seed)]), sharding.put_data(dataset.images, dataset.counts)
    program = sharding.compile(make_chunk(problem, length), keys, states, axes, data, constants)
    losses = []
    for _ in range(times):
        states, of_chunk = program(keys, states, data, constants)
        losses.append(sharding.losses(of_chunk)[0])
    return sharding.get_state(states[0], axes).method, np.concatenate(losses)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(np.random.default_rng(0))


@pytest.mark.parametrize("name", FAMILY)
def test_every_method_moves_its_images_alike_on_any_number_of_devices(dataset, name):
    """Three classes on one device, and on two, of which one has a class that only pads; and in chunks."""
    config = config_of(small(name))
    one, losses = run(config, dataset)
    assert np.isfinite(losses).all()
    start = jax.device_get(config.method.start(problem_of(config, dataset), config.seed))
    assert np.abs(one.images - start.images).max() > 0
    two, again = run(config, dataset, devices=2, length=1, times=2)
    for ours, theirs in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again, losses, rtol=1e-4)


@pytest.mark.parametrize("name", ["iid", "datadam", "m3d", "dance"])
def test_chunks_of_images_change_nothing(dataset, name):
    config = config_of(small(name))
    whole, losses = run(config, dataset)
    parts, chunked = run(config, dataset, chunks=Chunks(1, 3, 2))
    np.testing.assert_allclose(chunked, losses, rtol=1e-4)
    np.testing.assert_allclose(parts.images, whole.images, rtol=1e-4, atol=1e-5)


def test_a_start_is_a_mosaic_of_real_images_and_unpacks(dataset):
    method = Matching(factor=2, pixels=True, batch_real=4)
    config = config_of(method, ipc=1)
    problem = problem_of(config, dataset)
    state = config.method.start(problem, 3)
    key = jax.random.fold_in(jax.random.key(3), 0)
    real = random_images(dataset, 4, key)
    np.testing.assert_allclose(state.images[1, 0], factor.pack(real[1], 2)[0] / 255, atol=1e-6)
    shown = config.method._shown(problem, key, jnp.asarray(state.images[1]))
    expected = normalize(factor.unpack(jnp.asarray(state.images[1]), 2), dataset.mean, dataset.std)
    np.testing.assert_allclose(shown, expected, rtol=1e-5, atol=1e-6)
    assert config.method.finish(problem, state).factor == 2


def test_no_more_training_images_are_taken_than_asked_for(dataset):
    """Those that are not drawn stand still."""
    config = config_of(Matching(factor=2, batch_synthetic=3, batch_real=4, optimizer=PLAIN))
    problem = problem_of(config, dataset)
    assert config.method.synthetic_images(config, dataset.image_shape) == 3
    images = jnp.asarray(config.method.start(problem, 0).images[0])
    shown = config.method._shown(problem, jax.random.key(0), images)
    every = dataclasses.replace(config.method, batch_synthetic=None)._shown(problem, jax.random.key(0), images)
    assert shown.shape == (3, *dataset.image_shape)
    found = [int(np.argmin([np.abs(a - b).max() for b in every])) for a in shown]
    assert len(set(found)) == 3
    np.testing.assert_allclose(shown, np.asarray(every)[found], atol=1e-6)


def test_a_rate_in_pixels_is_that_of_normalised_images_over_the_variance(dataset):
    """One step of the same gradient: p -= l dL/dp is n -= l / std^2 dL/dn, where no pixel leaves [0, 1]."""
    rate, std = 1e-3, float(dataset.std[0])
    shared = {"batch_real": 4, "iterations": 1}
    pixels = config_of(Matching(**shared, pixels=True, optimizer=OptimizerConfig("sgd", rate, ())))
    plain = config_of(Matching(**shared, optimizer=OptimizerConfig("sgd", rate / std**2, ())))
    ours, _ = run(pixels, dataset, length=1)
    theirs, _ = run(plain, dataset, length=1)
    expected = theirs.images * std + float(dataset.mean[0])
    inside = (expected > 0.001) & (expected < 0.999)
    np.testing.assert_allclose(ours.images[inside], expected[inside], atol=1e-5)
    assert ours.images.min() >= 0
    assert ours.images.max() <= 1


def test_the_average_is_that_of_the_images_along_the_way(dataset):
    """With a share of one half the weights of new images are 1, 1, 2/3 and 1/2."""
    config = config_of(Matching(batch_real=4, average=0.5))
    problem = problem_of(config, dataset)
    expected = 0.0
    for length, weight in ((1, 1), (2, 1), (3, 2 / 3), (4, 1 / 2)):
        after, _ = run(config, dataset, length=length)
        expected = (1 - weight) * expected + weight * after.images
        np.testing.assert_allclose(after.average, expected, rtol=1e-5, atol=1e-5)
    made = config.method.finish(problem, after).images
    np.testing.assert_allclose(made, after.average * dataset.std + dataset.mean, rtol=1e-5, atol=1e-6)
    everything, _ = run(config_of(Matching(batch_real=4, average=1.0)), dataset, length=4)
    each = [run(config_of(Matching(batch_real=4, average=1.0)), dataset, length=n)[0].images for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(everything.average, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)


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


def test_a_network_that_is_its_own_expert_is_passed_once(dataset):
    """With the features and the cross entropy of one pass, images move as with those of two."""
    method = Matching(batch_real=4, match=MatchConfig(networks="pool", calibration=2.0, expert="same"))
    once, losses = run(config_of(method), dataset)
    two = dataclasses.replace(method, match=dataclasses.replace(method.match, fresh=1e-30))
    twice, again = run(config_of(two), dataset)
    np.testing.assert_allclose(losses, again, rtol=1e-5)
    np.testing.assert_allclose(once.images, twice.images, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_sum_of_its_terms(dataset, rng):
    clouds = [
        Cloud(rng.normal(size=(n, 6)).astype(np.float32), np.ones(n, np.float32), (), rng.normal(size=(n, 2, 2, 3)))
        for n in (5, 3)
    ]
    clouds = [cloud._replace(last_map=cloud.last_map.astype(np.float32)) for cloud in clouds]
    key, mean = jax.random.key(0), clouds[1].features.mean(axis=0)
    past = np.zeros(6, np.float32)

    def terms(settled=1.0, **match):
        method = Matching(match=MatchConfig(**match))
        return float(method._terms(*clouds, mean, (past, settled) if method.match.history else None))

    alone = [
        terms(local_covariance=0.5),
        terms(centralization=2.0),
        terms(history=3.0),
    ]
    assert min(alone) > 0
    assert terms(0.0, history=3.0) == 0
    np.testing.assert_allclose(alone[2], 3 * (mean**2).mean(), rtol=1e-5)
    together = terms(local_covariance=0.5, centralization=2.0, history=3.0)
    np.testing.assert_allclose(together, sum(alone), rtol=1e-5)
    kinds = {kind: Matching(match=MatchConfig(distance=kind)).distance(key, *clouds) for kind in ("mean", "covariance")}
    assert kinds["covariance"] > kinds["mean"]


def test_history_is_a_running_mean_of_the_embedding(dataset):
    config = config_of(small("dsdm", **{"match.history": 1.0}))
    state, _ = run(config, dataset, length=1)
    assert state.moves == 1
    assert np.abs(state.history).max() > 0
    later, _ = run(config, dataset, length=2)
    difference = np.abs(later.history - state.history).max()
    assert 0 < difference < 0.05 * np.abs(state.history).max()  # a hundredth of the way


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
    data = ClassData(dataset.images, dataset.counts, np.arange(3, dtype=np.int32))
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match.accuracy": (0.1, 0.2)}, "match.accuracy chooses among trained networks; give --match.networks pool"),
        ({"match.fresh": 0.5}, "match.fresh replaces trained networks; give --match.networks pool or trained or"),
        ({"match.calibration": 1.0}, "match.calibration needs trained networks"),
        (
            {"match.calibration": 1.0, "match.networks": "trained", "match.expert": "later"},
            "match.expert later chooses among the states of a pool",
        ),
        ({"match.layers": (1, 1), "match.distance": "attention"}, "match.layers names an activation twice"),
        ({"queue.start": 5, "queue.size": 2}, "queue.start 5 is more than fit in a queue of --queue.size 2"),
        (
            {"match.networks": "queue", "match.calibration": 1.0, "match.expert": "later"},
            "match.expert later chooses among the states of a pool",
        ),
        ({"match.exponent": 0.5}, "match.exponent must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        config_of(fields.replace(Matching(), changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 3}, "factor 3 does not divide images of 8x8; choose another one"),
        ({"factor": 2, "ipc": 2}, "8 images of each class are needed to fill 2 with 4 each, and class '2' has 5"),
        ({"match.layers": (3,), "match.distance": "attention"}, "match.layers 3: the network has activations 1 to 2"),
    ],
)
def test_settings_that_do_not_fit_the_images(dataset, changes, message):
    config = config_of(fields.replace(Matching(), {k: v for k, v in changes.items() if k != "ipc"}))
    config = dataclasses.replace(config, ipc=changes.get("ipc", 1))
    with pytest.raises(UserError, match=message):
        config.method.check(config, dataset)


def test_a_network_without_maps_has_no_local_covariance(dataset):
    config = dataclasses.replace(config_of(small("iid")), network=networks.resolve(NetworkConfig(name="MLP")))
    with pytest.raises(UserError, match=r"match\.local_covariance needs feature maps, which MLP does not give"):
        config.method.check(config, dataset)


def test_defaults_follow_the_images_per_class():
    """The authors' settings, as numbers."""

    def of(name, ipc):
        return config_of(methods.create(name), ipc=ipc).method

    assert (of("idm", 1).batch_real, of("idm", 10).batch_real) == (5000, 256)
    assert (of("idm", 1).queue.every, of("idm", 10).queue.every) == (5, 30)
    assert (of("idm", 10).match.calibration, of("idm", 50).match.calibration) == (0.5, 0.1)
    assert (of("dance", 1).optimizer.learning_rate, of("dance", 50).optimizer.learning_rate) == (0.02, 1.0)
    assert of("dance", 1).match.calibration == 1
    assert of("dm", 1).match.calibration == 0
    assert of("ncfm", 1).optimizer.learning_rate == 1e-3
    assert (of("datadam", 50).optimizer.learning_rate, of("datadam", 100).optimizer.learning_rate) == (1, 10)
    assert [of(name, 1).factor for name in FAMILY] == [1, 1, None, 2, 2, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("shape", "ipc", "factor"),
    [
        ((32, 32, 3), 1, 4),
        ((32, 32, 3), 10, 2),
        ((28, 28, 1), 1, 2),  # a quarter of it would be 7 pixels
        ((64, 64, 3), 9, 4),
        ((30, 30, 3), 1, 3),
        ((31, 31, 3), 1, 1),
        ((32, 20, 3), 1, 2),
        ((8, 8, 1), 1, 1),
    ],
)
def test_the_factor_of_blend_suits_the_images(shape, ipc, factor):
    config = config_of(methods.create("blend"), ipc=ipc)
    assert config.method.factor_of(config, shape) == factor
    assert dataclasses.replace(config.method, factor=5).factor_of(config, shape) == 5


def test_matching_has_augmentations_of_its_own():
    config = config_of(methods.create("dance"), augment=AugmentConfig(strategy="flip_scale"))
    assert config.method.augmentation(config) == AugmentConfig("color_crop_cutout", composite=True)
    config = config_of(methods.create("dm"), augment=AugmentConfig(strategy="flip_scale"))
    assert config.method.augmentation(config) == config.augment


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


@pytest.mark.parametrize("name", ["idm", "dsdm", "blend"])
def test_a_run_that_was_killed_ends_in_the_same_bytes(dataset, tmp_path, name):
    """Queue, history, average and trained networks are taken up again after the second of four iterations."""
    plain = config_of(small(name), checkpoint=CheckpointConfig(every=2), chunk=2, images_every=0)
    config = dataclasses.replace(plain, pretrained=dataclasses.replace(plain.pretrained, path=tmp_path / "pool"))
    evaluation = dataclasses.replace(config.evaluation, networks=1, epochs=1, random_real=False)
    config = dataclasses.replace(config, evaluation=evaluation)
    whole, killed = (dataclasses.replace(config, workdir=tmp_path / folder) for folder in ("whole", "killed"))
    expected = condense.condense(whole, dataset)
    condense.condense(killed, dataset)
    (killed.workdir / "synthetic.npz").unlink()
    shutil.rmtree(killed.workdir / "checkpoints" / "4")
    np.testing.assert_array_equal(condense.condense(killed, dataset).images, expected.images)


def test_any_combination_from_the_command_line(run_command, tmp_path):
    done = run_command(
        *("dmjax.condense", "--config", "experiments/tiny.py", "--workdir", tmp_path, "--method", "match"),
        *("--match.distance", "ncf", "--match.networks", "interpolated", "--match.calibration", 1, "--factor", 2),
        *("--network.width", 4, "--network.depth", 1, "--iterations", 25, "--pretrained.networks", 1),
        *("--pretrained.epochs", 1, "--pretrained.path", tmp_path / "pool", "--evaluation.networks", 1),
        *("--evaluation.epochs", 1, "--evaluation.whole-dataset", "false"),
    )
    assert done.returncode == 0, done.stderr
    made = SyntheticSet.load(tmp_path / "synthetic.npz")
    assert made.factor == 2
    assert made.metadata["config"]["method"]["match"]["distance"] == "ncf"
    done = run_command("dmjax.condense", "--config", "experiments/tiny.py", "--factor", 3, "--workdir", tmp_path / "b")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: factor 3 does not divide images of 8x8; choose another one"]
