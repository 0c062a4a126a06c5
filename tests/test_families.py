"""Every family against PyTorch, the short names, and networks of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax import DM, networks
from dmjax.common.errors import UserError
from dmjax.config import Config, NetworkConfig
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.settings import experiment

FAST = [
    ("MLP", "none", (28, 28, 1)),
    ("LeNet", "none", (32, 32, 3)),
    ("AlexNet", "none", (28, 28, 1)),
    ("AlexNet", "batch", (32, 32, 3)),
    ("AlexCifarNet", "none", (32, 32, 3)),
    ("AlexCifarNet", "none", (28, 28, 1)),
]
# The gradients of deep networks take half a minute each to compile: by default only what they compute is compared.
DEEP = [
    ("VGG11", "batch", (32, 32, 3)),
    ("ResNet18", "instance", (28, 28, 1)),
    ("ResNet18_AP", "batch", (28, 28, 1)),
]
# Every option at one size, and every size with one option.
SLOW = [
    ("MLP", "none", (64, 64, 3)),
    ("LeNet", "none", (28, 28, 1)),
    ("LeNet", "none", (64, 64, 3)),
    *(("AlexNet", norm, (28, 28, 1)) for norm in ("batch", "instance", "group")),
    ("AlexNet", "none", (64, 64, 3)),
    *(("VGG11", norm, (28, 28, 1)) for norm in ("none", "instance", "group")),
    ("VGG11", "instance", (64, 64, 3)),
    *((f"VGG{n}", "batch", (32, 32, 3)) for n in (13, 16, 19)),
    *(("ResNet18", norm, (32, 32, 3)) for norm in ("none", "batch", "group")),
    ("ResNet18", "instance", (64, 64, 3)),
    *(("ResNet18_AP", norm, (32, 32, 3)) for norm in ("none", "batch", "group")),
    ("ResNet18_AP", "instance", (64, 64, 3)),
]


def network_and_oracle(rng, family, norm, shape):
    """A network, variables for it, and PyTorch's with the same parameters in double precision."""
    import torch_networks

    config = NetworkConfig(name=family, norm=norm if "norm" in networks.FAMILIES[family].options else None)
    network = networks.create(config, 7, shape)
    variables = jax.jit(lambda key: networks.init(network, key, shape))(jax.random.key(0))
    # Scales and biases of norms start at 1 and 0, where mistakes hide.
    noise = lambda p: p + jnp.asarray(rng.normal(size=p.shape) * 0.1 * (np.std(p) or 1), jnp.float32)  # noqa: E731
    variables = {**variables, "params": jax.tree.map(noise, variables["params"])}
    oracle = torch_networks.load(torch_networks.create(family, norm, 7, shape), variables["params"])
    count = sum(p.numel() for p in oracle.parameters())
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count

    return network, variables, oracle.double()


@pytest.mark.parametrize(("family", "norm", "shape"), [*DEEP[:2], pytest.param(*DEEP[2], marks=pytest.mark.slow)])
def test_deep_family_computes_what_torch_does(torch, rng, family, norm, shape):
    """Activations, features, logits and the number of parameters, from the same parameters."""
    import torch_networks

    network, variables, oracle = network_and_oracle(rng, family, norm, shape)
    x = rng.normal(size=(3, *shape)).astype(np.float32)
    made = jax.jit(lambda x: networks.embed_all(network, variables, x, jnp.ones(len(x))))(x)
    with torch.no_grad():
        inputs = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2)
        expected, activations = torch_networks.activations(oracle, inputs)
    features, expected = made.features, expected.numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for ours, theirs in zip(made.activations, activations, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    last = made.last_map.mean(axis=(1, 2)) if family == "ResNet18" else made.last_map.reshape(len(x), -1)
    np.testing.assert_allclose(last, features, rtol=1e-5, atol=1e-6)
    logits = features @ variables["params"]["classifier"]["dense"]["kernel"]
    logits += variables["params"]["classifier"]["dense"]["bias"][None]
    np.testing.assert_allclose(logits, oracle.classifier(torch.tensor(expected)).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "norm", "shape"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in [*DEEP, *SLOW])]
)
def test_family_matches_torch(torch, rng, family, norm, shape):
    """Features, logits, the gradient w.r.t. the images, and the number of parameters, from the same parameters."""
    network, variables, oracle = network_and_oracle(rng, family, norm, shape)

    @jax.jit  # one program: compiling is what takes time here
    def ours(x, cotangent):
        features, pull_back = jax.vjp(lambda x: networks.embed(network, variables, x, jnp.ones(len(x))), x)
        logits, _ = network.apply(variables, x, train=True, mutable=["batch_stats"])
        return features, logits, pull_back(cotangent)[0]

    errors = []
    for _ in range(10):
        x = rng.normal(size=(3 if norm == "batch" else 1, *shape)).astype(np.float32)
        tx = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        features = oracle.embed(tx.permute(0, 3, 1, 2))
        expected = features.detach().numpy()
        cotangent = rng.normal(size=expected.shape).astype(np.float32)
        actual, logits, pulled_back = ours(x, cotangent)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(logits, oracle.classifier(features).detach(), rtol=1e-4, atol=1e-4)
        features.backward(torch.tensor(cotangent, dtype=torch.float64))
        gradient = tx.grad.numpy()
        errors.append(np.abs(pulled_back - gradient).max() / np.abs(gradient).max())
        if errors[-1] < 1e-4:
            break
    # In float32 a relu of many thousands may fall on the other side of its kink, in PyTorch's float32 as well; that
    # changes the gradient at a few pixels of one draw, a mistake would change all draws.
    assert min(errors) < 1e-4


@pytest.mark.parametrize(
    "name", ["MLP", "LeNet", "AlexNetBN", pytest.param("VGG11", marks=pytest.mark.slow), "ResNet18_AP"]
)
def test_initial_parameters_are_pytorchs(name):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, 1 and 0 for norms."""
    network = networks.create(NetworkConfig(name=name), 10, (32, 32, 3))
    params = jax.jit(lambda key: networks.init(network, key, (32, 32, 3)))(jax.random.key(1))["params"]
    for layer, wrapped in params.items():
        ((kind, values),) = wrapped.items()
        values = {k: np.asarray(v) for k, v in values.items()}
        if kind == "norm":
            np.testing.assert_array_equal(values["scale"], np.ones_like(values["scale"]))
            np.testing.assert_array_equal(values["bias"], np.zeros_like(values["bias"]))
            continue
        bound = 1 / np.sqrt(values["kernel"].size / values["kernel"].shape[-1])
        kernel = np.sort(values["kernel"].ravel())
        assert np.abs(kernel).max() <= bound, layer
        np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=12 / np.sqrt(len(kernel)))
        # Kolmogorov-Smirnov distance to the uniform distribution, at a level of about one in a million
        empirical = np.arange(1, len(kernel) + 1) / len(kernel)
        assert np.abs(empirical - (kernel + bound) / (2 * bound)).max() < 2.7 / np.sqrt(len(kernel)), layer
        if "bias" in values:
            assert 0 < np.abs(values["bias"]).max() <= bound


@pytest.mark.parametrize(
    ("name", "family", "options"),
    [
        ("ConvNet", "ConvNet", {"width": 128, "depth": None, "norm": "instance"}),
        ("ConvNetD4", "ConvNet", {"depth": 4}),
        ("ConvNetW256", "ConvNet", {"width": 256}),
        ("ConvNetBN", "ConvNet", {"norm": "batch"}),
        ("ConvNetASwishBN", "ConvNet", {"norm": "batch", "activation": "swish"}),
        ("ConvNetW64D2ASNPNN", "ConvNet", {"width": 64, "depth": 2, "pooling": "none", "norm": "none"}),
        ("AlexNet", "AlexNet", {"norm": "none", "width": None}),
        ("AlexNetBN", "AlexNet", {"norm": "batch"}),
        ("VGG11BN", "VGG11", {"norm": "batch"}),
        ("ResNet18BN_AP", "ResNet18_AP", {"norm": "batch"}),
        ("ResNet18_AP", "ResNet18_AP", {"norm": "instance"}),
    ],
)
def test_short_names(name, family, options):
    resolved = networks.resolve(NetworkConfig(name=name))
    assert resolved.name == family
    assert {option: getattr(resolved, option) for option in options} == options
    assert networks.resolve(resolved) == resolved
    assert networks.resolve(NetworkConfig(name=networks.short_name(resolved))) == resolved


@pytest.mark.parametrize("name", [name for pool in networks.POOLS.values() for name in pool])
def test_pools_hold_networks(name):
    assert networks.create(NetworkConfig(name=name), 10, (32, 32, 3)).num_classes == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NetworkConfig(name="ConvNetBM"), "did you mean 'ConvNetBN'"),
        (NetworkConfig(name="Resnet18"), "did you mean 'ResNet18'"),
        (NetworkConfig(name="ResNet18_APBN"), r"did you mean .*'ResNet18BN_AP'\?$"),
        (NetworkConfig(name="ConvNetD3D4"), "gives depth twice"),
        (NetworkConfig(name="VGG11LN"), "norm layer is not defined for VGG11"),
        (NetworkConfig(name="VGG12"), "unknown network 'VGG12'"),
        (NetworkConfig(name="ConvNetD4", depth=3), "contradict"),
        (NetworkConfig(name="AlexNet", width=64), "width is not an option of AlexNet; its options are norm"),
        (NetworkConfig(name="MLP", norm="batch"), "norm is not an option of MLP; it has none"),
        (NetworkConfig(name="no_such_module:Net"), "cannot be imported: No module named 'no_such_module'; start"),
        (NetworkConfig(name="math:sin"), "sin is no Flax module"),
        (NetworkConfig(name="flax.linen:Dense"), "Dense needs a method embed"),
    ],
    ids=lambda x: x.name if isinstance(x, NetworkConfig) else "",
)
def test_bad_names_say_what_is_wrong(config, message):
    with pytest.raises(UserError, match=message):
        networks.create(config, 10, (32, 32, 3))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("LeNet", (8, 8, 3)), ("VGG11", (28, 28, 3)), ("ResNet18", (16, 16, 3)), ("AlexNet", (4, 4, 3))],
)
def test_images_that_are_too_small(name, shape):
    with pytest.raises(UserError, match=f"{name} needs images of at least"):
        networks.create(NetworkConfig(name=name), 10, shape)


@pytest.mark.parametrize("name", [n for n in networks.FAMILIES if n not in ("VGG13", "VGG16", "VGG19")])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_smallest_image_leaves_features(name, channels):
    side = networks.FAMILIES[name].smallest[channels == 1]
    network = networks.create(NetworkConfig(name=name), 3, (side, side, channels))
    x = jnp.zeros((2, side, side, channels))
    logits, _ = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), x, train=True))
    assert logits.shape == (2, 3)
    features, _ = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), x, method="embed"))
    assert features.shape[1] > 0


def test_a_network_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "import flax.linen as nn\n"
        "class Mine(nn.Module):\n"
        "    num_classes: int\n"
        "    width: int = 4\n"
        "    def setup(self):\n"
        "        self.conv, self.dense = nn.Conv(self.width, (3, 3)), nn.Dense(self.num_classes)\n"
        "    def embed(self, x):\n"
        "        return nn.relu(self.conv(x))\n"
        "    def __call__(self, x):\n"
        "        return self.dense(self.embed(x).mean((1, 2)))\n"
    )
    (tmp_path / "bad_networks.py").write_text(
        "import flax.linen as nn\n"
        "class Empty(nn.Module):\n"
        "    def embed(self, x):\n"
        "        return x\n"
        "    def __call__(self, x):\n"
        "        return x\n"
        "class Raises(Empty):\n"
        "    def embed(self, x):\n"
        "        raise ValueError('of no use')\n"
        "class Wide(Empty):\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        return nn.Dense(5)(x.reshape(len(x), -1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, message in (
        ("Empty", "no parameters"),
        ("Raises", "ValueError: of no use"),
        ("Wide", r"logits \(2, 5\)"),
    ):
        with pytest.raises(UserError, match=message):
            networks.create(NetworkConfig(name=f"bad_networks:{name}"), 3, (8, 8, 1))
    network = networks.create(NetworkConfig(name="my_networks:Mine", width=6), 3, (8, 8, 1))
    variables = networks.init(network, jax.random.key(0), (8, 8, 1))
    assert networks.embed(network, variables, jnp.ones((2, 8, 8, 1)), jnp.ones(2)).shape == (2, 8 * 8 * 6)
    assert network.apply(variables, jnp.ones((2, 8, 8, 1)), train=True).shape == (2, 3)


def test_every_family_has_a_learning_rate_for_condensing():
    """At 1, 10 and 50 images per class, as written in experiments/results/learning_rates.md.

    The ConvNet's is the paper's at all sizes, and with batch norm all networks have 1 at 50, as the authors' code.
    """
    rates = {
        "ConvNet": (1, 1, 1), "ConvNetBN": (1, 1, 1), "ConvNetNN": (50, 50, 50), "MLP": (1, 1, 1),
        "LeNet": (20, 20, 20), "AlexNet": (200, 200, 200), "AlexNetBN": (0.02, 0.0774, 1), "VGG11": (0.002, 0.0172, 1),
        "VGG19BN": (0.002, 0.0172, 1), "ResNet18BN": (0.01, 0.0492, 1), "ResNet18_AP": (0.002, 0.0172, 1),
        "ResNet18BN_AP": (0.002, 0.0172, 1), "my_package:Mine": (1, 1, 1),
    }  # fmt: skip
    for name, expected in rates.items():
        given = [Config(network=NetworkConfig(name=name), ipc=ipc) for ipc in (1, 10, 50)]
        found = [experiment.resolve(config).method.optimizer.learning_rate for config in given]
        np.testing.assert_allclose(found, expected, rtol=0.005, err_msg=name)
    larger = experiment.resolve(Config(network=NetworkConfig(name="VGG11BN"), ipc=200))
    assert larger.method.optimizer.learning_rate == 1
    own = experiment.resolve(
        Config(network=NetworkConfig(name="VGG11"), method=DM(optimizer=OptimizerConfig(learning_rate=3.0)))
    )
    assert own.method.optimizer.learning_rate == 3


def test_a_network_of_ones_own_with_batch_norm_says_so(tmp_path, monkeypatch):
    """It is found out without an option; its statistics are over all classes where it takes `axis_name`."""
    template = (
        "import flax.linen as nn\n"
        "from dmjax.networks.layers import BatchNorm\n"
        "class Mine(nn.Module):\n"
        "    num_classes: int\n"
        "    axis_name: tuple = ()\n"
        "    def setup(self):\n"
        "        self.norm = BatchNorm(self.axis_name)\n"
        "        self.last = nn.Dense(self.num_classes)\n"
        "    def embed(self, x, train=False, weights=None):\n"
        "        return self.norm(x, train, weights).reshape(len(x), -1)\n"
        "    def __call__(self, x, train=False):\n"
        "        return self.last(self.embed(x, train))\n"
    )
    (tmp_path / "reduced.py").write_text(template)
    (tmp_path / "alone.py").write_text(
        template.replace("    axis_name: tuple = ()\n", "").replace("self.axis_name", "")
    )
    (tmp_path / "unweighted.py").write_text(
        template.replace(", weights=None", "").replace("train, weights", "train, None")
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = NetworkConfig(name="reduced:Mine")
    with jax.numpy_dtype_promotion("standard"):  # for flax's own layers
        network = networks.create(config, 3, (8, 8, 1), ("classes",))
        assert networks.has_batch_norm(network, (8, 8, 1))
        variables = networks.init(network, jax.random.key(0), (8, 8, 1))
        x = np.random.default_rng(0).normal(size=(2, 4, 8, 8, 1)).astype(np.float32)
        weights = np.float32([[1, 1, 1, 0], [1, 1, 0, 0]])  # what fills up a batch does not count
        embed = lambda images, weights: networks.embed(network, variables, images, weights)  # noqa: E731
        features = jax.vmap(embed, axis_name="classes")(x, weights).reshape(x.shape)
        counted = x[weights > 0]
        np.testing.assert_allclose(features, (x - counted.mean()) / counted.std(), rtol=1e-3, atol=1e-3)
        for module in ("alone", "unweighted"):
            networks.create(NetworkConfig(name=f"{module}:Mine"), 3, (8, 8, 1))  # good to evaluate
            with pytest.raises(UserError, match="give it a field axis_name and embed an argument weights"):
                networks.create(NetworkConfig(name=f"{module}:Mine"), 3, (8, 8, 1), ("classes",))
        with pytest.raises(UserError, match=r"network\.depth is not a field of reduced:Mine"):
            networks.create(NetworkConfig(name="reduced:Mine", depth=3), 3, (8, 8, 1))
