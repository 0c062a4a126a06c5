"""Methods of the family of distribution matching by value: what is added up, and networks that are not as usual."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import make_dataset
from test_matching import Untrained, config_of, problem_of

from dmjax.config import AugmentConfig
from dmjax.methods import embedding, network_queue
from dmjax.methods.base import ClassData
from dmjax.methods.cloud import Cloud
from dmjax.methods.embedding import Drawn
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.matching import Matching
from dmjax.methods.network_queue import QueueConfig


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
    of_class = ClassData(dataset.images[label], jnp.int32(count), jnp.int32(label))
    images = jnp.float32(rng.normal(size=(2, *dataset.image_shape)))
    ours = jax.jit(
        lambda drawn, images: config.method._loss_and_gradient(
            problem, jax.random.key(5), drawn, 2.0, images, None, of_class
        )
    )
    (value, mean), gradient = ours(drawn, images)
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
