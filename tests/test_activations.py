"""What networks note on the way to their features: outputs of activation functions, and the last map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_families import network_and_oracle
from test_networks import OPTIONS, init, torch_convnet

from dmjax import networks
from dmjax.config import NetworkConfig
from dmjax.networks import base, custom
from dmjax.networks.layers import pool

COUNTS = [
    ("ConvNet", (32, 32, 3), 3, (4, 4, 128)),
    ("ConvNetD4", (64, 64, 3), 4, (4, 4, 128)),
    ("MLP", (8, 8, 1), 2, None),
    ("LeNet", (28, 28, 1), 4, (5, 5, 16)),
    ("AlexNet", (32, 32, 3), 5, (4, 4, 192)),
    ("AlexCifarNet", (32, 32, 3), 4, (8, 8, 64)),
    ("VGG11BN", (32, 32, 3), 8, (1, 1, 512)),
    ("ResNet18BN", (32, 32, 3), 17, (4, 4, 512)),
    ("ResNet18_AP", (32, 32, 3), 17, (4, 4, 512)),
]


def shapes(network, image_shape):
    """Shapes and types of what `embed_all` gives for two images; nothing is computed."""
    variables = jax.eval_shape(lambda: networks.init(network, jax.random.key(0), image_shape))
    assert set(variables) <= {"params", "batch_stats"}
    run = lambda v: networks.embed_all(network, v, jnp.zeros((2, *image_shape)), jnp.ones(2))  # noqa: E731
    return jax.eval_shape(run, variables)


@pytest.mark.parametrize("config", OPTIONS, ids=lambda c: f"{c.norm}-{c.activation}-{c.pooling}-{c.depth}x{c.width}")
def test_activations_of_convnets_are_those_that_torchs_hooks_see(torch, rng, config):
    shape = (28, 28, 1)
    network = networks.create(config, 5, shape)
    variables = init(network, shape)
    embed, _ = torch_convnet(torch, config, variables["params"], 5, shape)
    kinds = (torch.nn.ReLU, torch.nn.LeakyReLU, torch.nn.Sigmoid, torch.nn.SiLU)
    seen = []
    hook = lambda module, _, output: seen.append(output) if isinstance(module, kinds) else None  # noqa: E731
    x = rng.normal(size=(4, *shape)).astype(np.float32)
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        with torch.no_grad():
            expected = embed(torch.tensor(x))
    finally:
        handle.remove()
    features, activations = jax.jit(lambda x: networks.embed_all(network, variables, x, jnp.ones(4))[:2])(x)
    assert len(activations) == networks.num_activations(network, shape) == config.depth
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(activations, seen, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "shape"),
    [("MLP", (9, 9, 1)), ("LeNet", (28, 28, 1)), ("AlexNet", (8, 8, 3)), ("AlexCifarNet", (8, 8, 3))],
)
def test_activations_of_families_are_torchs(torch, rng, family, shape):
    """Those of VGG and ResNet18 are compared with their features in test_families."""
    import torch_networks

    network, variables, oracle = network_and_oracle(rng, family, "none", shape)
    x = rng.normal(size=(3, *shape)).astype(np.float32)
    made = jax.jit(lambda x: networks.embed_all(network, variables, x, jnp.ones(3)))(x)
    with torch.no_grad():
        _, expected = torch_networks.activations(oracle, torch.tensor(x).double().permute(0, 3, 1, 2))
    for ours, theirs in zip(made.activations, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    if family == "AlexNet":
        np.testing.assert_array_equal(made.last_map.reshape(3, -1), made.features)
    elif family != "MLP":  # what the first linear layer reads
        dense = variables["params"]["linear0"]["dense"]
        hidden = nn.relu(made.last_map.reshape(3, -1) @ dense["kernel"] + dense["bias"][None])
        np.testing.assert_allclose(hidden, made.activations[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shape", "count", "last_map"), COUNTS)
def test_how_much_a_network_notes(name, shape, count, last_map):
    """Also with batch norm over classes, whose axis is not mapped where one only asks."""
    network = networks.create(NetworkConfig(name=name), 5, shape, axis_name=("classes",))
    assert networks.num_activations(network, shape) == count
    assert networks.has_last_map(network, shape) == (last_map is not None)
    half = shapes(networks.create(NetworkConfig(name=name, precision="bfloat16"), 5, shape), shape)
    assert len(half.activations) == count
    assert (half.last_map and half.last_map.shape) == (last_map and (2, *last_map))
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("name", "shape"), [case[:2] for case in COUNTS])
def test_noting_changes_nothing_where_nobody_asks(monkeypatch, name, shape):
    """The program of `embed` is the same one that a network without notes has, and gives no more variables."""
    network = networks.create(NetworkConfig(name=name), 5, shape)
    variables = jax.eval_shape(lambda: networks.init(network, jax.random.key(0), shape))

    def program():
        run = lambda v, x: networks.embed(network, v, x, jnp.ones(2))  # noqa: E731
        return str(jax.make_jaxpr(run)(variables, jnp.zeros((2, *shape))))

    with_notes = program()
    monkeypatch.setattr(nn.Module, "sow", lambda *_, **__: False)
    assert networks.num_activations(network, shape) == 0
    assert program() == with_notes


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_features_are_those_of_embed_with_the_batch_norm_of_the_weights(rng, norm):
    network = networks.create(NetworkConfig(width=8, depth=2, norm=norm), 5, (8, 8, 3))
    variables = init(network, (8, 8, 3))
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)
    weights = jnp.array([1, 1, 0, 1], jnp.float32)
    made = jax.jit(lambda x, w: networks.embed_all(network, variables, x, w))(x, weights)
    np.testing.assert_array_equal(made.features, jax.jit(lambda x: networks.embed(network, variables, x, weights))(x))
    np.testing.assert_array_equal(made.last_map.reshape(4, -1), made.features)
    alone = networks.embed_all(network, variables, x[jnp.array([0, 1, 3])], jnp.ones(3))[1]
    for padded, expected in zip(made.activations, alone, strict=True):
        np.testing.assert_allclose(padded[jnp.array([0, 1, 3])], expected, rtol=1e-5, atol=1e-5)


def test_gradients_flow_through_every_activation(rng):
    """A pooled activation has the gradient of the network that ends there, also when it is computed anew."""
    network = networks.create(NetworkConfig(width=4, depth=3), 5, (8, 8, 1))
    variables = init(network, (8, 8, 1))
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 1)), jnp.float32)
    for layer in range(3):
        ends = networks.create(NetworkConfig(width=4, depth=layer + 1), 5, (8, 8, 1))

        def inner(x, layer=layer):
            return pool(networks.embed_all(network, variables, x, jnp.ones(2)).activations[layer], "avg").reshape(2, -1)

        features, pull_back = jax.vjp(lambda x, ends=ends: networks.embed(ends, variables, x, jnp.ones(2)), x)
        cotangent = jnp.asarray(rng.normal(size=features.shape), jnp.float32)
        for function in (inner, jax.checkpoint(inner)):
            ours, our_pull_back = jax.vjp(jax.jit(function), x)
            np.testing.assert_allclose(ours, features, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(our_pull_back(cotangent)[0], pull_back(cotangent)[0], rtol=1e-4, atol=1e-5)


class Own(nn.Module):
    """A network of someone's own, of which one part notes its activation where `noting`."""

    num_classes: int
    noting: bool

    @nn.compact
    def embed(self, x):
        x = nn.relu(nn.Dense(6, name="first")(x.reshape(len(x), -1)))
        x = base.activated(self, x) if self.noting else x
        return nn.relu(nn.Dense(3, name="second")(x))

    def __call__(self, x):
        return self.embed(x)[:, : self.num_classes]


@pytest.mark.parametrize("noting", [False, True])
def test_a_network_of_ones_own_notes_what_it_likes(noting):
    network = custom.Custom(Own(3, noting))
    assert networks.num_activations(network, (4, 4, 1)) == noting
    assert not networks.has_last_map(network, (4, 4, 1))
    made = shapes(network, (4, 4, 1))
    assert made.features.shape == (2, 3)
    assert [x.shape for x in made.activations] == [(2, 6)] * noting
    assert made.last_map is None
