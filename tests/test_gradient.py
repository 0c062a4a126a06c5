"""Gradient matching (DC, DSA) against PyTorch, its loops, and classes over devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax import DC, DSA, networks
from dmjax.config import AugmentConfig, Config, NetworkConfig
from dmjax.data import augment, normalize
from dmjax.methods import gradient
from dmjax.methods.base import Chunks
from dmjax.methods.gradient import GradientConfig
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.run.devices import ClassSharding
from dmjax.run.program import RunState, make_abstract_problem, make_chunk, state_axes
from dmjax.settings import experiment, fields

SHAPE = (8, 8, 1)
MEAN, STD = np.float32([0.4]), np.float32([0.3])
CONFIG = experiment.resolve(
    Config(
        method=DSA(batch_real=4, gradient=GradientConfig(outer=2, inner=2, batch_size=4)),
        ipc=2,
        network=NetworkConfig(width=4, depth=1),
        augment=AugmentConfig("color_crop_scale_rotate"),
    )
)


@pytest.mark.parametrize(
    ("ipc", "expected"),
    [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (50, (50, 10)), (15, (15, 38)), (5, (5, 23)), (100, (100, 5))],
)
def test_loops_of_the_table_and_between(ipc, expected):
    assert gradient.loops(ipc) == expected


def torch_distance(torch, ours, theirs, kind):
    """From section 6 of the definitions; gradients in PyTorch's layout."""
    if kind == "ours":
        total = 0
        for a, b in zip(ours, theirs, strict=True):
            if a.dim() == 1:
                continue
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        return total
    a, b = (torch.cat([g.flatten() for g in gs]) for gs in (ours, theirs))
    return ((a - b) ** 2).sum() if kind == "mse" else 1 - (a * b).sum() / (a.norm() * b.norm() + 1e-6)


def torch_gradient(torch, params, images, label, norm):
    """Gradients of the mean cross entropy by all parameters of a ConvNet of depth 2, differentiable by the images."""
    functional = torch.nn.functional
    leaves = {}

    def leaf(layer, name, order=None):
        value = torch.tensor(np.asarray(params[layer][next(iter(params[layer]))][name], np.float64))
        leaves[layer, name] = (value.permute(order) if order else value).contiguous().requires_grad_()
        return leaves[layer, name]

    x = images.permute(0, 3, 1, 2)
    for d in range(2):
        kernel, bias = leaf(f"conv{d}", "kernel", (3, 2, 0, 1)), leaf(f"conv{d}", "bias")
        x = functional.conv2d(x, kernel, bias, padding=3 if d == 0 else 1)
        if norm == "layer":
            scale, shift = (leaf(f"norm{d}", n, (2, 0, 1)) for n in ("scale", "bias"))
            x = functional.layer_norm(x, x.shape[1:], scale, shift)
        else:
            scale, shift = leaf(f"norm{d}", "scale"), leaf(f"norm{d}", "bias")
            x = functional.group_norm(x, x.shape[1], scale, shift)
        x = functional.avg_pool2d(functional.relu(x), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    kernel, bias = leaf("classifier", "kernel", (1, 0)), leaf("classifier", "bias")
    loss = functional.cross_entropy(x @ kernel.T + bias, torch.full((len(x),), label))
    return torch.autograd.grad(loss, list(leaves.values()), create_graph=True)


@pytest.mark.parametrize("norm", ["instance", "layer"])
@pytest.mark.parametrize("kind", ["ours", "mse", "cos"])
def test_distance_and_its_derivative_match_torch(torch, rng, kind, norm):
    """Both by the second derivative of the network, through our own gradients of convolutions."""
    network = networks.create(NetworkConfig(width=4, depth=2, norm=norm), 3, SHAPE)
    variables = jax.jit(lambda key: networks.init(network, key, SHAPE))(jax.random.key(0))
    real, synthetic = (rng.normal(size=(n, *SHAPE)).astype(np.float32) for n in (5, 2))

    @jax.jit
    def ours(synthetic):
        target = gradient.class_gradient(network, variables, real, jnp.ones(5), jnp.int32(1), at_once=2)
        of = lambda x: gradient.class_gradient(network, variables, x, jnp.ones(2), jnp.int32(1))  # noqa: E731
        return jax.value_and_grad(lambda x: gradient.distance(of(x), target, kind))(synthetic)

    value, derivative = ours(synthetic)
    theirs = [torch.tensor(np.float64(x), requires_grad=True) for x in (real, synthetic)]
    gradients = [torch_gradient(torch, variables["params"], x, 1, norm) for x in theirs]
    expected = torch_distance(torch, gradients[1], [g.detach() for g in gradients[0]], kind)
    expected.backward()
    wanted = theirs[1].grad.numpy()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-4)
    np.testing.assert_allclose(derivative / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=1e-4)


def test_fillers_of_a_batch_do_not_count(rng):
    network = networks.create(NetworkConfig(width=4, depth=2), 3, SHAPE)
    variables = jax.jit(lambda key: networks.init(network, key, SHAPE))(jax.random.key(0))
    images = rng.normal(size=(5, *SHAPE)).astype(np.float32)
    of = jax.jit(lambda x, w: gradient.class_gradient(network, variables, x, w, jnp.int32(0)))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, of(images, np.float32([1, 1, 1, 0, 0])), of(images[:3], np.ones(3, np.float32)))


def test_a_gradient_of_zeros_has_a_finite_derivative():
    zero, one = {"k": jnp.zeros((3, 2))}, {"k": jnp.ones((3, 2))}
    value, derivative = jax.value_and_grad(lambda a: gradient.distance(a, one, "ours"))(zero)
    assert value == 2
    assert np.isfinite(derivative["k"]).all()


def data_of(rng, counts):
    images = np.zeros((len(counts), max(counts), *SHAPE), np.uint8)
    for c, n in enumerate(counts):
        images[c, :n] = np.clip(rng.normal(60 + 60 * c, 40, size=(n, *SHAPE)), 0, 255)
    return images, np.int32(counts)


def run(config, images, counts, devices, chunks=None, length=2):
    """Images and losses [length] after some iterations on so many devices."""
    classes, axes = len(counts), state_axes(config.method)
    sharding = ClassSharding(classes, jax.local_devices()[:devices])
    problem = make_abstract_problem(config, classes, SHAPE, MEAN, STD)
    start = config.method.state_of(normalize(images[:, : config.ipc], MEAN, STD))
    states = [sharding.put_state(RunState(np.int32(0), jax.device_get(start)), axes)]
    chunk = make_chunk(dataclasses.replace(problem, chunks=chunks or Chunks(1)), length)
    keys, data = sharding.put_keys([jax.random.key(0)]), sharding.put_data(images, counts)
    states, losses = sharding.compile(chunk, keys, states, axes, data, None)(keys, states, data, None)
    return sharding.get_state(states[0], axes).method.images, sharding.losses(losses)[0]


@pytest.mark.parametrize(
    ("devices", "norm"), [(2, "instance"), pytest.param(4, "instance", marks=pytest.mark.slow), (2, "batch")]
)
def test_devices_agree_and_need_not_divide_the_classes(rng, devices, norm):
    config = dataclasses.replace(CONFIG, network=NetworkConfig(width=4, depth=1, norm=norm))
    images, counts = data_of(rng, [6, 5, 3])
    alone = run(config, images, counts, 1)
    for a, b in zip(alone, run(config, images, counts, devices), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 if norm == "instance" else 1e-4)


def test_chunks_change_nothing(rng):
    images, counts = data_of(rng, [6, 5, 3])
    alone = run(CONFIG, images, counts, 1, length=1)
    for chunks in (Chunks(None, None), Chunks(2, 2)):
        for a, b in zip(alone, run(CONFIG, images, counts, 1, chunks, length=1), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_an_outer_step_matches_by_hand(rng):
    """With one outer step, no augmentation and all real images, the update is minus the rate times the derivative."""
    method = DC(
        batch_real=6,
        gradient=GradientConfig(outer=1, inner=1),
        optimizer=OptimizerConfig(learning_rate=0.1, options=()),
    )
    config = dataclasses.replace(CONFIG, method=method)
    images, counts = data_of(rng, [6, 6, 6])
    moved, losses = run(config, images, counts, 1, length=1)
    network = networks.create(config.network, 3, SHAPE)
    network_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    variables = networks.init(network, jax.random.fold_in(network_key, 0), SHAPE)
    start, expected = normalize(images[:, :2], MEAN, STD), []
    for c in range(3):
        of = lambda x, c=c: gradient.class_gradient(network, variables, x, jnp.ones(len(x)), jnp.int32(c))  # noqa: E731
        target = of(normalize(images[c], MEAN, STD))
        loss = lambda x, of=of, target=target: gradient.distance(of(x), target, "ours")  # noqa: E731
        expected.append(jax.value_and_grad(loss)(start[c]))
    np.testing.assert_allclose(losses, [np.mean([value for value, _ in expected])], rtol=1e-4)
    np.testing.assert_allclose(moved, start - 0.1 * np.stack([g for _, g in expected]), rtol=1e-4, atol=1e-5)


def test_the_network_is_trained_between_outer_steps(rng):
    """With more inner epochs the later steps meet another network; with one outer step there is no later one."""
    images, counts = data_of(rng, [6, 6, 6])

    def losses(outer, inner):
        settings = GradientConfig(outer=outer, inner=inner, learning_rate=0.1)
        method = dataclasses.replace(CONFIG.method, gradient=settings)
        return run(dataclasses.replace(CONFIG, method=method), images, counts, 1, length=1)[1]

    assert losses(2, 1) != losses(2, 5)
    assert losses(1, 1) == losses(1, 5)


def test_dc_does_not_augment(rng):
    images, counts = data_of(rng, [6, 6, 6])
    dc = dataclasses.replace(CONFIG, method=fields.carry_over(CONFIG.method, DC()))
    plain = dataclasses.replace(dc, augment=AugmentConfig("none"))
    not_augmented = run(dc, images, counts, 1, length=1)[0]
    np.testing.assert_array_equal(not_augmented, run(plain, images, counts, 1, length=1)[0])
    assert (run(CONFIG, images, counts, 1, length=1)[0] != not_augmented).any()
    assert augment.groups(CONFIG.augment)


def test_defaults_of_the_methods():
    """As the papers: 1000 networks, rate 0.1; dc starts from noise, dsa from real images."""
    for method, init, iterations, rate in (
        ("dm", "real", 20_000, 1.0),
        ("dc", "noise", 1000, 0.1),
        ("dsa", "real", 1000, 0.1),
    ):
        found = experiment.resolve(Config(method=method)).method
        assert (found.init, found.iterations, found.optimizer.learning_rate) == (init, iterations, rate)
    assert experiment.resolve(Config(method=DC(iterations=5, init="real"))).method.init == "real"
    for_mlp = experiment.resolve(Config(method="dc", network=NetworkConfig(name="MLP")))
    assert for_mlp.method.optimizer.learning_rate == 0.01
