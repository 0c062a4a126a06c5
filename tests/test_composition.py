"""Methods of the family of distribution matching by value: what is added up, and networks that are not as usual."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import make_dataset
from matched import Untrained, config_of, problem_of, run, small

from dmjax import networks
from dmjax.config import AugmentConfig, DataConfig, NetworkConfig
from dmjax.methods import embedding, network_queue
from dmjax.methods.base import ClassData
from dmjax.methods.cloud import Cloud
from dmjax.methods.embedding import Drawn
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.matching import Matching
from dmjax.methods.network_queue import QueueConfig
from dmjax.settings import fields


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(np.random.default_rng(0))


def clouds_of(rng):
    """Five real images, whose cloud has two fillers, and three synthetic ones: 6 features, maps at 2 layers."""

    def draw(there, fillers, shift):
        n = there + fillers
        features = rng.normal(size=(n, 6)) + shift
        maps = [rng.uniform(size=(n, size)) for size in (9, 4)]
        weights = np.repeat([1, 0], [there, fillers])
        return jax.tree.map(np.float32, Cloud(features, weights, tuple(maps)))

    return draw(5, 2, 0.5), draw(3, 0, 0.0)


def of_the_formulas(kind, key, real, synthetic, covariance, attention, bandwidths, frequencies):
    """The distance of the images that are there, in double precision."""
    r, s = (np.float64(cloud.features[cloud.weights > 0]) for cloud in (real, synthetic))

    def square(a, b):
        return ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()

    def kernel(a, b):
        distances = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
        return sum(np.exp(-distances / (2 * (width * median) ** 2)) for width in bandwidths).mean()

    if kind == "kernel":
        pairs = [np.linalg.norm(r[i] - r[j]) for i in range(5) for j in range(i)]
        median = np.sort(pairs)[4]  # the lower of the two in the middle of ten
        return kernel(r, r) + kernel(s, s) - 2 * kernel(r, s)
    if kind == "ncf":
        t = np.float64(jax.random.normal(key, (frequencies, 6)))
        r, s = (np.exp(1j * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ t.T).mean(axis=0) for x in (r, s))
        amplitudes = (np.abs(r) - np.abs(s)) ** 2
        phases = 2 * (np.abs(r) * np.abs(s) - r.real * s.real - r.imag * s.imag)
        return np.sqrt(amplitudes / 2 + phases / 2).mean()
    if kind == "covariance":
        return square(r, s) + covariance / 6 * ((np.cov(r.T) - np.cov(s.T)) ** 2).sum()
    if kind == "attention":
        layers = [
            square(*(np.float64(cloud.attention[layer][cloud.weights > 0]) for cloud in (real, synthetic)))
            for layer in range(2)
        ]
        return square(r, s) + attention * sum(layers)
    return square(r, s)


DEFAULTS = {"covariance": 50, "attention": 100, "bandwidths": (0.25, 0.5, 1, 2, 4), "frequencies": 4096}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mean", {}),
        ("covariance", {}),
        ("covariance", {"covariance": 7.0}),
        ("kernel", {}),
        ("kernel", {"bandwidths": (0.5, 3.0)}),
        ("attention", {}),
        ("attention", {"attention": 7.0}),
        ("ncf", {}),
        ("ncf", {"frequencies": 3}),
    ],
)
def test_a_composed_distance_is_that_of_the_formulas(rng, kind, changes):
    """With the documented weights, and frequencies that are drawn from the key."""
    clouds, key = clouds_of(rng), jax.random.key(3)
    ours = Matching(match=MatchConfig(distance=kind, **changes)).distance(key, *clouds)
    np.testing.assert_allclose(ours, of_the_formulas(kind, key, *clouds, **{**DEFAULTS, **changes}), rtol=1e-4)


def loss_by_hand(network, variables, expert, real, images, label, weight, calibration, centralization):
    """The loss of one class with all of its images, as a sum of its terms; differentiable."""
    r, s = network.apply(variables, real, method="embed"), network.apply(variables, images, method="embed")
    distance = ((r.mean(axis=0) - s.mean(axis=0)) ** 2).sum()
    spread = ((s - s.mean(axis=0)[None]) ** 2).sum()
    probabilities = jax.nn.softmax(network.apply(expert, images))[:, label]
    return weight * distance + centralization * spread - calibration * jnp.log(probabilities).mean()


@pytest.mark.parametrize("expert", ["last", "same"])
@pytest.mark.parametrize("label", [0, 2])
def test_the_loss_is_the_weighted_sum_in_the_networks_that_were_drawn(dataset, rng, expert, label):
    """All real images are drawn, with fillers for class 2, so that no sampling matters; an expert of its own too."""
    match = MatchConfig(weight=3.0, calibration=2.0, centralization=0.5, networks="pool", expert=expert)
    config = config_of(Matching(batch_real=9, match=match), augment=AugmentConfig("none"))
    problem = problem_of(config, dataset)
    variables, other = (embedding.random(problem, jax.random.key(i)) for i in range(2))
    drawn = Drawn(variables, other if expert == "last" else variables)
    count = int(dataset.counts[label])
    assert count > 0
    data = jax.tree.map(jnp.asarray, ClassData.of(dataset.images, dataset.counts))
    images = jnp.float32(rng.normal(size=(2, *dataset.image_shape)))

    def ours(drawn, images):
        seen = config.method._observe_real(problem, jax.random.key(5), drawn, data, label)
        return config.method._loss_and_gradient(
            problem, jax.random.key(5), drawn, 2.0, images, None, seen, jnp.int32(label), jnp.float32(1)
        )

    (value, mean), gradient = jax.jit(ours)(drawn, images)
    real = (dataset.images[label, :count] / np.float32(255) - dataset.mean) / dataset.std
    theirs = jax.value_and_grad(
        lambda images, drawn: loss_by_hand(problem.network, *drawn, real, images, label, 3.0, 2.0, 0.5)
    )
    expected, by_hand = jax.jit(theirs)(images, drawn)
    assert mean is None
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-3, atol=1e-4 * np.abs(by_hand).max())


def test_the_weight_of_the_cross_entropy_follows_the_accuracy_of_a_queue(dataset):
    """In per cent; of trained networks it is what was given, and of random ones there is none."""
    settings = QueueConfig(start=2, size=3)
    config = config_of(Matching(match=MatchConfig(networks="queue", calibration=0.5), queue=settings))
    problem, key = problem_of(config, dataset), jax.random.key(0)
    queue = network_queue.start(problem, settings, key)._replace(accuracy=jnp.float32(0.37))
    drawn, weight = config.method._draw(problem, key, queue, None)
    np.testing.assert_allclose(weight, 0.5 * 37, rtol=1e-6)
    assert drawn.expert is drawn.variables
    kernel = lambda variables: np.asarray(jax.tree.leaves(variables)[0])  # noqa: E731
    assert any((kernel(drawn.variables) == kernel(queue.variables)[i]).all() for i in range(2))
    assert config.method._draw(problem, key, queue._replace(accuracy=jnp.float32(0)), None)[1] == 0

    trained = config_of(Matching(match=MatchConfig(networks="trained", calibration=0.5)))
    problem = dataclasses.replace(problem_of(trained, dataset), trained=Untrained(problem, networks=1))
    assert trained.method._draw(problem, key, None, trained.method.constants(problem))[1] == 0.5
    assert config_of(Matching()).method._draw(problem, key, None, None)[1] == 0


@pytest.mark.parametrize("name", ["dance", "dsdm", "idm", "datadam", "iid"])
def test_batch_norm_has_the_statistics_of_all_classes_on_any_number_of_devices(dataset, name):
    """Three classes on one device, and on two, of which one has a class that only pads and must not count."""
    network = networks.resolve(NetworkConfig(width=4, depth=2, norm="batch"))
    config = dataclasses.replace(config_of(small(name)), network=network)
    one, losses = run(config, dataset)
    assert np.isfinite(losses).all()
    start = config.method.start(problem_of(config, dataset), config.seed)
    assert np.abs(one.images - start.images).max() > 0
    two, again = run(config, dataset, devices=2, length=1, times=2)
    for ours, theirs in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(again, losses, rtol=1e-3)


class Own(nn.Module):
    """A network of someone's own, which classifies by nothing of its own."""

    num_classes: int

    def setup(self):
        self.conv, self.dense = nn.Conv(4, (3, 3)), nn.Dense(self.num_classes)

    def embed(self, x):
        return nn.tanh(self.conv(x))

    def __call__(self, x):
        return self.dense(self.embed(x).mean((1, 2)))


@pytest.mark.parametrize("name", ["dance", "blend", "idm"])
def test_a_network_of_ones_own_is_matched_in_and_an_expert(dataset, name):
    """Its logits come from a second pass: against the same without cross entropy, which is about log 3 by chance."""
    network = networks.resolve(NetworkConfig(name=f"{__name__}:Own"))
    config = dataclasses.replace(config_of(small(name)), network=network)
    moved, losses = run(config, dataset)
    start = config.method.start(problem_of(config, dataset), config.seed)
    assert np.isfinite(losses).all()
    assert (np.abs(moved.images - start.images).max(axis=(1, 2, 3, 4)) > 0).all()
    method = fields.replace(config.method, {"match.calibration": 0.0})
    _, without = run(dataclasses.replace(config, method=method), dataset)
    added = losses - without
    if name == "idm":  # its networks have no accuracy before they are trained, which is after the first iteration
        assert (added[0] == 0).all()
        assert (added[1] > 0).all()
    else:
        np.testing.assert_allclose(added[0], config.method.match.calibration * np.log(3), rtol=0.3)


@pytest.mark.parametrize("name", ["datadam", "idm"])
def test_whitened_images_are_moved_in_their_units(dataset, name):
    """They have no bounds; a set that starts from them and unpacks ends with images outside of [0, 1]."""
    white = dataset.whitened(0.1)
    config = config_of(small(name), data=DataConfig(source="digits", zca=True))
    moved, losses = run(config, white, length=1)
    start = config.method.start(problem_of(config, white), config.seed)
    assert np.isfinite(losses).all()
    assert 0 < np.abs(moved.images - start.images).max() < np.inf
    made = config.method.finish(problem_of(config, white), moved)
    np.testing.assert_array_equal(made.images, moved.images)
    assert made.images.min() < 0


def test_images_within_bounds_cannot_be_whitened(run_command, tmp_path):
    flags = ("--config", "experiments/tiny.py", "--data.zca", "true", "--workdir", tmp_path / "run")
    done = run_command("dmjax.condense", *flags, "--method", "dance")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: whitened images have no bounds; give --pixels false, or leave out --data.zca"
    ]
    assert not (tmp_path / "run").exists()
    data = DataConfig(source="digits", zca=True)
    assert not config_of(small("dance", pixels=False), data=data).method.pixels
