"""Distances between clouds of features: against the papers' formulas in double precision, closed forms, invariances."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax.methods import distances

FREQUENCIES = 11


def frequencies(size):
    return np.random.default_rng(7).normal(size=(FREQUENCIES, size)).astype(np.float32)


def characteristic(r, rw, s, sw, **options):
    return distances.characteristic(r, rw, s, sw, jnp.asarray(frequencies(r[0].size)), **options)


def attention(r, rw, s, sw, exponent):
    """As methods compose it: the maps of the images are made first."""
    return distances.mean(distances.attention_map(r, exponent), rw, distances.attention_map(s, exponent), sw)


OURS = {
    "mean": distances.mean,
    "attention of 1": lambda *clouds: attention(*clouds, 1),
    "attention of 4": lambda *clouds: attention(*clouds, 4.0),
    "attention of 2.5": lambda *clouds: attention(*clouds, 2.5),
    "kernel": distances.kernel,
    "narrow kernel": lambda *clouds: distances.kernel(*clouds, bandwidths=(0.3,)),
    "covariance": distances.covariance,
    "local covariance": distances.local_covariance,
    "centralization": lambda r, rw, s, sw: distances.centralization(s, sw),
    "characteristic": characteristic,
    "amplitude": lambda *clouds: characteristic(*clouds, amplitude=0.9),
    "phase": lambda *clouds: characteristic(*clouds, amplitude=0.0),
}


def papers(torch, name, r, s):
    """The papers' formulas for clouds [n, h, w, channels] without padding."""
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731

    def attention(p):
        maps = [(z.abs() ** p).sum(-1).flatten(1) for z in (r, s)]
        means = [(a / a.norm(dim=1, keepdim=True)).mean(0) for a in maps]
        return ((means[0] - means[1]) ** 2).sum()

    def kernel(bandwidths):
        median = torch.nn.functional.pdist(flat(r).detach()).median()

        def k(x, y):
            square = ((flat(x)[:, None] - flat(y)[None]) ** 2).sum(-1)
            return sum(torch.exp(-square / (2 * (b * median) ** 2)) for b in bandwidths).mean()

        return k(r, r) + k(s, s) - 2 * k(r, s)

    def local(z):
        z = z.permute(0, 3, 1, 2).flatten(2)
        z = z - z.mean(0, keepdim=True)
        return torch.stack([image @ image.T for image in z]).mean(0)

    def characteristic(alpha):
        t, phi = torch.tensor(frequencies(r[0].numel())).double(), []
        for x in (flat(r), flat(s)):
            phi.append(torch.exp(1j * (x / x.norm(dim=1, keepdim=True)) @ t.T.to(torch.complex128)).mean(0))
        lengths, turned = [p.abs() for p in phi], phi[0].angle() - phi[1].angle()
        phases = (2 * lengths[0] * lengths[1] * (1 - torch.cos(turned))).clamp(min=1e-12)
        return torch.sqrt(alpha * (lengths[0] - lengths[1]) ** 2 + (1 - alpha) * phases).mean()

    return {
        "mean": lambda: ((flat(r).mean(0) - flat(s).mean(0)) ** 2).sum(),
        "attention of 1": lambda: attention(1),
        "attention of 4": lambda: attention(4),
        "attention of 2.5": lambda: attention(2.5),
        "kernel": lambda: kernel((0.25, 0.5, 1, 2, 4)),
        "narrow kernel": lambda: kernel((0.3,)),
        "covariance": lambda: ((torch.cov(flat(r).T) - torch.cov(flat(s).T)) ** 2).sum(),
        "local covariance": lambda: ((local(r) - local(s)) ** 2).sum(),
        "centralization": lambda: sum(((x - flat(s).mean(0)) ** 2).sum() for x in flat(s)),
        "characteristic": lambda: characteristic(0.5),
        "amplitude": lambda: characteristic(0.9),
        "phase": lambda: characteristic(0.0),
    }[name]()


def clouds(rng, real=7, synthetic=4, shape=(3, 4, 5)):
    """Maps as after a relu, of two distributions; the last two of either side are padding that would be seen."""
    r = np.maximum(rng.normal(0.3, 1, (real + 2, *shape)), 0).astype(np.float32)
    s = np.maximum(rng.normal(0.5, 1.3, (synthetic + 2, *shape)), 0).astype(np.float32)
    r[real:], s[synthetic:] = 50, -70
    return r, np.float32([1] * real + [0, 0]), s, np.float32([1] * synthetic + [0, 0])


def value_and_gradient(name, r, rw, s, sw):
    return jax.jit(jax.value_and_grad(OURS[name], argnums=2))(*map(jnp.asarray, (r, rw, s, sw)))


@pytest.mark.parametrize("name", OURS)
def test_distance_and_gradient_are_the_papers(torch, rng, name):
    r, rw, s, sw = clouds(rng)
    value, gradient = value_and_gradient(name, r, rw, s, sw)
    assert value.dtype == gradient.dtype == jnp.float32
    theirs = torch.tensor(s[sw > 0], dtype=torch.float64, requires_grad=True)
    expected = papers(torch, name, torch.tensor(r[rw > 0], dtype=torch.float64), theirs)
    expected.backward()
    assert expected > 1e-3
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5)
    scale = theirs.grad.abs().max().item()
    np.testing.assert_allclose(gradient[: len(theirs)] / scale, theirs.grad / scale, rtol=1e-5, atol=1e-5)
    assert not np.any(gradient[len(theirs) :])


@pytest.mark.parametrize("name", OURS)
def test_order_and_number_of_paddings_do_not_matter(rng, name):
    r, rw, s, sw = clouds(rng)
    value, gradient = value_and_gradient(name, r, rw, s, sw)
    alone, its_gradient = value_and_gradient(name, r[rw > 0], rw[rw > 0], s[sw > 0], sw[sw > 0])
    real, synthetic = rng.permutation(len(r)), rng.permutation(len(s))
    mixed, mixed_gradient = value_and_gradient(name, r[real], rw[real], s[synthetic], sw[synthetic])
    np.testing.assert_allclose([alone, mixed], [value, value], rtol=1e-6)
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(its_gradient, gradient[sw > 0], rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(mixed_gradient, gradient[synthetic], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", OURS)
def test_gradients_are_finite_and_classes_of_padding_at_zero(rng, name):
    """Equal clouds, clouds of zeros, single images, and a class that has no images on one side or on both."""
    r, rw, s, sw = clouds(rng)
    equal, gradient = value_and_gradient(name, r, rw, r, rw)
    if name != "centralization":  # which has one side only
        np.testing.assert_allclose(equal, 0, atol=1.1e-6)  # the least phase is 1e-12
        # A root near zero makes much of the last digits, in which the two sides may be rounded differently.
        rooted = name in ("characteristic", "amplitude", "phase")
        np.testing.assert_allclose(gradient, 0, atol=5e-3 if rooted else 1e-5)
    zeros = value_and_gradient(name, 0 * r, rw, 0 * s, sw)
    np.testing.assert_allclose(zeros[0], 0, atol=1.1e-6)
    one = value_and_gradient(name, r[:1], rw[:1], s[:1], sw[:1])
    assert (one[0] == 0) == (name in ("covariance", "local covariance", "centralization"))
    for found in (zeros[1], one[0], one[1]):
        assert np.all(np.isfinite(found))
    empty = [value_and_gradient(name, r, rw, s, 0 * sw), value_and_gradient(name, r, 0 * rw, s, 0 * sw)]
    if name != "centralization":
        empty.append(value_and_gradient(name, r, 0 * rw, s, sw))
    for nothing, flat in empty:
        assert nothing == 0
        np.testing.assert_array_equal(flat, np.zeros_like(s))


@pytest.mark.parametrize("name", OURS)
def test_classes_are_mapped_each_on_its_own(rng, name):
    r, rw, s, sw = clouds(rng)
    both = [np.stack(pair) for pair in ((r, 2 * r), (rw, 0 * rw), (s, s), (sw, 0 * sw))]
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(OURS[name], argnums=2)))(*map(jnp.asarray, both))
    value, gradient = value_and_gradient(name, r, rw, s, sw)
    np.testing.assert_allclose(values, [value, 0], rtol=1e-6)
    np.testing.assert_allclose(gradients[0], gradient, rtol=1e-5, atol=1e-6 * np.abs(gradient).max())
    np.testing.assert_array_equal(gradients[1], np.zeros_like(s))


def test_bfloat16_features_are_compared_in_float32(rng):
    r, rw, s, sw = clouds(rng)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (r, s)]
    for name, distance in OURS.items():
        value, same = (jax.jit(distance)(c[0], rw, c[1], sw) for c in (half, [x.astype(jnp.float32) for x in half]))
        assert value.dtype == jnp.float32, name
        np.testing.assert_allclose(value, same, rtol=1e-6)


def test_the_linear_kernel_gives_means_and_its_square_covariances(rng):
    r, rw, s, sw = clouds(rng)
    linear = jax.jit(lambda *clouds: distances.discrepancy(distances.linear, *clouds))
    np.testing.assert_allclose(linear(r, rw, s, sw), distances.mean(r, rw, s, sw), rtol=1e-5)

    def outer(x):
        x = x.reshape(len(x), -1).astype(np.float64)
        x = x - x.mean(0)
        return x.T @ x / (len(x) - 1)

    explicit = ((outer(r[rw > 0]) - outer(s[sw > 0])) ** 2).sum()  # of features by features
    np.testing.assert_allclose(distances.covariance(r, rw, s, sw), explicit, rtol=1e-5)


def test_fewer_than_two_images_have_no_covariance(rng):
    r, rw, s, _ = clouds(rng)
    alone = np.float32([1, 0, 0, 0, 0, 0])
    real = np.cov(r[rw > 0].reshape(7, -1).astype(np.float64).T)
    np.testing.assert_allclose(distances.covariance(r, rw, s, alone), (real**2).sum(), rtol=1e-5)


def test_kernel_discrepancy_is_the_closed_form_for_gaussians():
    """Two Gaussian clouds as the points and weights of a quadrature, which is exact to float32's precision."""
    points, masses = np.polynomial.hermite_e.hermegauss(20)
    plane = np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
    weights = np.outer(masses, masses).ravel()

    def cloud(centre, sigma):
        return np.float32(centre + sigma * plane), np.float32(weights)

    def expected(first, second, b):  # E k(x, y) of x ~ N(centre, sigma^2) and y likewise, in the plane
        variance = b**2 + first[1] ** 2 + second[1] ** 2
        return b**2 / variance * math.exp(-((first[0] - second[0]) ** 2).sum() / (2 * variance))

    real, synthetic = (np.array([3.0, -1.0]), 0.7), (np.array([3.5, -2.0]), 1.2)
    clouds = (*cloud(*real), *cloud(*synthetic))
    median = math.sqrt(distances.median_square_distance(*map(jnp.asarray, clouds[:2])))
    for bandwidths in ((1.0,), (0.8, 1.5, 3.0)):
        value = distances.kernel(*clouds, bandwidths=[b / median for b in bandwidths])
        parts = [
            expected(real, real, b) + expected(synthetic, synthetic, b) - 2 * expected(real, synthetic, b)
            for b in bandwidths
        ]
        np.testing.assert_allclose(value, sum(parts), rtol=2e-5)


def test_median_counts_pairs_by_weight_and_is_zero_without_pairs(rng):
    x = rng.normal(size=(9, 3)).astype(np.float32)
    weights = np.float32([0, 1, 1, 0, 1, 1, 1, 0, 0])
    chosen = x[weights > 0]
    pairs = sorted(((chosen[i] - chosen[j]) ** 2).sum() for i in range(5) for j in range(i))
    median = jax.jit(distances.median_square_distance)
    np.testing.assert_allclose(median(x, weights), pairs[4], rtol=1e-5)  # the lower one of the two in the middle
    np.testing.assert_allclose(median(x, 0.1 * weights), pairs[4], rtol=1e-5)
    # An image of great weight: half of the weight lies in its own pairs.
    heavy = np.float32([0, 1, 1, 0, 100, 1, 1, 0, 0])
    own = sorted(((x[4] - x[i]) ** 2).sum() for i in (1, 2, 5, 6))
    np.testing.assert_allclose(median(x, heavy), own[1], rtol=1e-5)
    for nothing in (0 * weights, np.eye(9, dtype=np.float32)[2]):
        assert median(x, nothing) == 0
    assert distances.median_square_distance(x[:1], weights[:1]) == 0


def test_kernel_is_zero_for_equal_clouds_only_and_does_not_know_the_scale(rng):
    r, rw, s, sw = clouds(rng)
    value = distances.kernel(r, rw, s, sw)
    np.testing.assert_allclose(distances.kernel(1000 * r, rw, 1000 * s, sw), value, rtol=1e-5)
    np.testing.assert_allclose(distances.kernel(r + 10, rw, s + 10, sw), value, rtol=1e-4)
    # Clouds of equal means and covariances are told apart: four points of a square and of the turned square.
    square = np.float32([[1, 0], [-1, 0], [0, 1], [0, -1]])
    turned = np.float32([[1, 1], [-1, 1], [1, -1], [-1, -1]]) / np.float32(math.sqrt(2))
    ones = np.ones(4, np.float32)
    for same in (distances.mean, distances.covariance):
        np.testing.assert_allclose(same(square, ones, turned, ones), 0, atol=1e-6)
    assert distances.kernel(square, ones, turned, ones) > 0.1


def test_characteristic_function_is_a_loop_over_frequencies_and_images(rng):
    x = rng.normal(size=(5, 6)).astype(np.float32)
    weights, t = np.float32([1, 0, 1, 1, 0]), frequencies(6)
    expected = np.zeros((2, FREQUENCIES))
    for k in range(FREQUENCIES):
        for i in (0, 2, 3):
            angle = sum(float(t[k, j]) * float(x[i, j]) for j in range(6)) / math.sqrt(sum(float(v) ** 2 for v in x[i]))
            expected[:, k] += np.array([math.cos(angle), math.sin(angle)]) / 3
    np.testing.assert_allclose(distances.characteristic_function(x, weights, t), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        distances.characteristic_function(1e-30 * x, weights, t), expected, rtol=1e-5, atol=1e-6
    )  # lengths do not matter, also where their squares are not numbers of float32


def test_characteristic_distance_keeps_its_digits_for_similar_clouds(rng):
    """Clouds that differ by a thousandth: the phase as a difference of products would be noise in float32."""
    r = rng.normal(size=(40, 6)).astype(np.float32)
    s, ones = r + np.float32(1e-3) * rng.normal(size=r.shape).astype(np.float32), np.ones(40, np.float32)

    def phi(x):
        x = x.astype(np.float64)
        return np.exp(1j * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ frequencies(6).T).mean(0)

    expected = (np.abs(phi(r) - phi(s)) / math.sqrt(2)).mean()
    assert expected < 1e-3
    np.testing.assert_allclose(characteristic(r, ones, s, ones), expected, rtol=1e-3)


def largest(function, *arrays):
    """Elements of the largest array that a function or its gradient makes."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    return max(sizes(jax.make_jaxpr(jax.value_and_grad(function, argnums=2))(*arrays).jaxpr))


def test_large_matrices_are_never_made():
    """Covariances make nothing of features by features, characteristic functions nothing of images by t by features."""
    r, s = jnp.zeros((6, 200)), jnp.zeros((5, 200))
    arrays = (r, jnp.ones(6), s, jnp.ones(5))
    assert largest(distances.covariance, *arrays) <= 6 * 200
    assert largest(distances.kernel, *arrays) <= 6 * 200
    assert largest(characteristic, *arrays) <= FREQUENCIES * 200  # the frequencies themselves
