"""ConvNet, its layers and its initial parameters against PyTorch and NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax import networks
from dmjax.common.errors import UserError
from dmjax.config import NetworkConfig
from dmjax.networks.convolution import conv_general_dilated
from dmjax.networks.layers import BatchNorm, pool


def init(network, shape, seed=0):
    return jax.jit(lambda key: networks.init(network, key, shape))(jax.random.key(seed))


def randomize(variables, rng):
    """Scales and biases of norms start at 1 and 0, where mistakes hide."""
    return jax.tree.map(lambda p: p + jnp.asarray(rng.normal(size=p.shape) * 0.1, jnp.float32), variables)


def torch_norm(nn, kind, channels, height, width):
    makers = {
        "none": lambda: None,
        "batch": lambda: nn.BatchNorm2d(channels),
        "layer": lambda: nn.LayerNorm([channels, height, width]),
        "instance": lambda: nn.GroupNorm(channels, channels),
        "group": lambda: nn.GroupNorm(4, channels),
    }
    return makers[kind]()


def torch_convnet(torch, config, params, num_classes, shape):
    """The same network from PyTorch's layers, from the definition; returns (embed, classify)."""
    nn = torch.nn

    def tensor(a):
        return torch.tensor(np.asarray(a))

    layers, height, width, channels = [], *shape
    for d in range(config.depth):
        conv = nn.Conv2d(channels, config.width, 3, padding=3 if d == 0 and channels == 1 else 1)
        grow = 4 if d == 0 and channels == 1 else 0
        height, width, channels = height + grow, width + grow, config.width
        conv.weight.data = tensor(params[f"conv{d}"]["conv"]["kernel"]).permute(3, 2, 0, 1)
        conv.bias.data = tensor(params[f"conv{d}"]["conv"]["bias"])
        layers.append(conv)
        norm = torch_norm(nn, config.norm, channels, height, width)
        if norm is not None:
            scale, bias = (tensor(params[f"norm{d}"]["norm"][k]) for k in ("scale", "bias"))
            if config.norm == "layer":
                scale, bias = scale.permute(2, 0, 1), bias.permute(2, 0, 1)
            norm.weight.data, norm.bias.data = scale, bias
            layers.append(norm)
        activations = {"relu": nn.ReLU(), "leakyrelu": nn.LeakyReLU(0.01), "sigmoid": nn.Sigmoid(), "swish": nn.SiLU()}
        layers.append(activations[config.activation])
        if config.pooling != "none":
            layers.append({"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[config.pooling](2, 2))
            height, width = height // 2, width // 2
    features = nn.Sequential(*layers)
    dense = params["classifier"]["dense"]

    def embed(x):
        return features(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1)

    def classify(x):
        return embed(x) @ tensor(dense["kernel"]) + tensor(dense["bias"])

    return embed, classify


OPTIONS = [
    networks.resolve(config)
    for config in (
        NetworkConfig(width=8, depth=3),
        NetworkConfig(width=64, depth=3),  # wide enough for Winograd's algorithm
        NetworkConfig(width=8, depth=1, norm="none", pooling="none"),
        NetworkConfig(width=8, depth=2, norm="layer", activation="swish"),
        NetworkConfig(width=8, depth=2, norm="group", activation="sigmoid", pooling="max"),
        NetworkConfig(width=8, depth=2, norm="batch", activation="leakyrelu"),
        NetworkConfig(width=12, depth=4, norm="instance", activation="leakyrelu", pooling="max"),
    )
]


@pytest.mark.parametrize("shape", [(16, 16, 3), (28, 28, 1)])
@pytest.mark.parametrize("config", OPTIONS, ids=lambda c: f"{c.norm}-{c.activation}-{c.pooling}-{c.depth}x{c.width}")
def test_convnet_matches_torch(torch, rng, config, shape):
    network = networks.create(config, 5, shape)
    variables = init(network, shape)
    variables = {**variables, "params": randomize(variables["params"], rng)}
    embed, classify = torch_convnet(torch, config, variables["params"], 5, shape)
    x = rng.normal(size=(4, *shape)).astype(np.float32)
    weights = jnp.ones(4)

    tx = torch.tensor(x, requires_grad=True)
    expected = embed(tx)
    run = jax.jit(lambda v: networks.embed(network, variables, v, weights))
    actual, pull_back = jax.vjp(run, jnp.asarray(x))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected.detach(), rtol=1e-5, atol=1e-5)
    logits, _ = jax.jit(lambda v: network.apply(variables, v, train=True, mutable=["batch_stats"]))(x)
    np.testing.assert_allclose(logits, classify(tx).detach(), rtol=1e-5, atol=1e-5)
    cotangent = rng.normal(size=expected.shape).astype(np.float32)
    expected.backward(torch.tensor(cotangent))
    gradient = tx.grad.numpy()
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(pull_back(jnp.asarray(cotangent))[0] / scale, gradient / scale, rtol=1e-5, atol=1e-5)


def test_parameter_count_and_embedding_of_the_papers_convnet():
    network = networks.create(NetworkConfig(), 10, (32, 32, 3))
    variables = init(network, (32, 32, 3))
    # 3x3x3x128+128, twice 3x3x128x128+128, three norms of 2x128, 2048x10+10
    assert sum(p.size for p in jax.tree.leaves(variables)) == 3584 + 2 * 147584 + 3 * 256 + 20490
    for shape in ((32, 32, 3), (28, 28, 1)):
        network = networks.create(NetworkConfig(), 10, shape)
        variables = init(network, shape)
        assert networks.embed(network, variables, jnp.zeros((1, *shape)), jnp.ones(1)).shape == (1, 2048)


def test_initial_parameters_are_uniform_with_the_fan_in():
    shape = (32, 32, 3)
    network = networks.create(NetworkConfig(width=64), 10, shape)
    params = init(network, shape, seed=1)["params"]
    for layer, fan_in in (("conv0", 27), ("conv1", 576), ("classifier", 1024)):
        (inner,) = params[layer].values()
        kernel, bias = np.asarray(inner["kernel"]).ravel(), np.asarray(inner["bias"])
        bound = 1 / np.sqrt(fan_in)
        assert np.abs(kernel).max() <= bound
        assert np.abs(bias).max() <= bound
        # Kolmogorov-Smirnov distance to the uniform distribution, at a level of about one in a million
        order = np.sort(kernel)
        empirical = np.arange(1, len(order) + 1) / len(order)
        assert np.abs(empirical - (order + bound) / (2 * bound)).max() < 2.7 / np.sqrt(len(order))
        assert len(np.unique(bias)) > 1
    np.testing.assert_array_equal(params["norm0"]["norm"]["scale"], np.ones(64))
    np.testing.assert_array_equal(params["norm0"]["norm"]["bias"], np.zeros(64))


@pytest.mark.parametrize(
    ("channels", "size", "padding", "stride"),
    [
        (1, 3, 3, 1),
        (3, 3, 1, 1),
        (8, 3, 1, 1),
        (64, 3, 1, 1),
        (64, 3, 0, 1),
        (64, 3, 2, 1),
        (8, 1, 0, 1),
        (6, 5, 2, 1),
        (3, 5, 4, 1),
        (8, 3, 1, 2),
        (3, 3, 1, 2),
        (64, 3, 1, 2),
        (8, 1, 0, 2),
        (8, 5, 2, 3),
    ],
)
def test_convolution_and_its_gradients_match_xla(rng, channels, size, padding, stride):
    x = jnp.asarray(rng.normal(size=(2, 9, 8, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, 5)), jnp.float32)
    pad = [(padding, padding)] * 2
    ours, ours_back = jax.vjp(jax.jit(lambda x, k: conv_general_dilated(x, k, (stride, stride), pad)), x, kernel)
    layout = ("NHWC", "HWIO", "NHWC")
    xla, xla_back = jax.vjp(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (stride, stride), pad, dimension_numbers=layout), x, kernel
    )
    np.testing.assert_allclose(ours, xla, rtol=1e-6, atol=2e-6 * np.abs(xla).max())
    cotangent = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    for a, b in zip(ours_back(cotangent), xla_back(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_batch_norm_counts_by_weight_and_over_mapped_axes(rng):
    """Padding, unequal groups and a mapped axis give the statistics of the flat batch of what counts."""
    x = jnp.asarray(rng.normal(size=(3, 4, 5, 5, 2)) + 3, jnp.float32)
    weights = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], jnp.float32)
    mapped = BatchNorm(axis_name=("classes",))
    variables = BatchNorm().init(jax.random.key(0), x[0], True, None)
    out, updates = jax.vmap(
        lambda x, w: mapped.apply(variables, x, True, w, mutable=["batch_stats"]), axis_name="classes"
    )(x, weights)
    flat = np.asarray(x)[np.asarray(weights) > 0]
    mean, var = flat.mean(axis=(0, 1, 2)), flat.var(axis=(0, 1, 2))
    np.testing.assert_allclose(
        out, (x - mean[None, None, None, None]) / np.sqrt(var + 1e-5)[None, None, None, None], rtol=1e-5, atol=1e-5
    )
    n = flat[..., 0].size
    np.testing.assert_allclose(updates["batch_stats"]["mean"][0], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"][0], 0.9 + 0.1 * var * n / (n - 1), rtol=1e-5)


def test_batch_norm_uses_running_statistics_when_not_training(torch, rng):
    x = rng.normal(size=(6, 5, 5, 3)).astype(np.float32)
    norm, reference = BatchNorm(), torch.nn.BatchNorm2d(3)
    variables = norm.init(jax.random.key(0), x, True, None)
    for _ in range(3):
        _, new = norm.apply(variables, x, True, None, mutable=["batch_stats"])
        variables = {**variables, **new}
        reference(torch.tensor(x).permute(0, 3, 1, 2))
    expected = reference.eval()(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
    np.testing.assert_allclose(norm.apply(variables, x, False, None), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "depth"), [(8, 3), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_default_depth(side, depth):
    assert networks.create(NetworkConfig(), 10, (side, side, 3)).depth == depth


def test_errors_name_the_mend():
    with pytest.raises(UserError, match="too deep for 8x8"):
        networks.create(NetworkConfig(depth=4), 10, (8, 8, 3))
    with pytest.raises(UserError, match="did you mean 'ConvNet'"):
        networks.create(NetworkConfig(name="Convnet"), 10, (8, 8, 3))
    with pytest.raises(UserError, match="4 divides"):
        networks.create(NetworkConfig(norm="group", width=6), 10, (8, 8, 3))


def test_max_pooling_is_that_of_a_window_with_ties_odd_sides_and_nan(rng):
    """Values and gradients, which go to the first of equal values; a NaN is not lost."""
    x = jnp.asarray(rng.integers(0, 3, (4, 7, 6, 5)), jnp.float32)
    window = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))  # noqa: E731
    weights = jnp.asarray(rng.normal(size=(4, 3, 3, 5)), jnp.float32)
    ours = lambda x: pool(x, "max")  # noqa: E731
    np.testing.assert_array_equal(ours(x), window(x))
    gradients = [jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (ours, window)]
    np.testing.assert_array_equal(*gradients)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert np.isnan(pool(x.at[0, *corner, 0].set(jnp.nan), "max")[0, 0, 0, 0])
