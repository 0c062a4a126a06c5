"""The evaluation recipe against a PyTorch trajectory, and the counting of correct answers."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax import networks
from dmjax.config import AugmentConfig, EvaluationConfig, NetworkConfig
from dmjax.evaluation import on_device, testing, training
from dmjax.networks.layers import Conv

NONE = AugmentConfig("none")


def examples_of(rng, n=10, classes=3):
    images = rng.uniform(size=(n, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, classes, n).astype(np.int32)
    return on_device.Examples(images, labels, np.array([0.5], np.float32), np.array([0.25], np.float32))


def torch_model(torch, network, key, examples):
    """Parameters of a ConvNet of depth 1 in PyTorch, as they are initialised here, and its loss on all images."""
    start = networks.init(network, jax.random.fold_in(key, 0), (8, 8, 1))["params"]
    params = {
        jax.tree_util.keystr(k): torch.tensor(np.asarray(v), requires_grad=True)
        for k, v in jax.tree_util.tree_leaves_with_path(start)
    }
    x = torch.tensor((examples.images - 0.5) / 0.25).permute(0, 3, 1, 2)
    y = torch.tensor(examples.labels).long()

    def loss():
        h = torch.nn.functional.conv2d(
            x, params["['conv0']['conv']['kernel']"].permute(3, 2, 0, 1), params["['conv0']['conv']['bias']"], padding=3
        )
        h = torch.nn.functional.group_norm(
            h, 4, params["['norm0']['norm']['scale']"], params["['norm0']['norm']['bias']"]
        )
        h = torch.nn.functional.avg_pool2d(h.relu(), 2).permute(0, 2, 3, 1).flatten(1)
        logits = h @ params["['classifier']['dense']['kernel']"] + params["['classifier']['dense']['bias']"]
        return torch.nn.functional.cross_entropy(logits, y)

    return params, loss


BIAS = "['conv0']['conv']['bias']"  # before an instance norm: its gradient is rounding, which AdamW makes large


def assert_same(actual, params, rtol=1e-4, but=()):
    for path, value in jax.tree_util.tree_leaves_with_path(actual):
        if jax.tree_util.keystr(path) in but:
            continue
        np.testing.assert_allclose(value, params[jax.tree_util.keystr(path)].detach(), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("epochs", [6, 7])
def test_full_batch_training_matches_torch_sgd(torch, rng, epochs):
    """Weight decay on everything, momentum, the drop after the middle epoch, momentum cleared there."""
    config = EvaluationConfig(learning_rate=0.1, batch_size=256)
    examples = examples_of(rng)
    network = networks.create(NetworkConfig(width=4, depth=1), 3, (8, 8, 1))
    key = jax.random.key(3)
    actual = training.train(network, training.make_recipe(config, NONE), key, examples, epochs)["params"]
    params, loss = torch_model(torch, network, key, examples)

    def sgd(rate):
        return torch.optim.SGD(params.values(), lr=rate, momentum=0.9, weight_decay=5e-4)

    optimizer = sgd(0.1)
    for epoch in range(epochs):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if epoch == epochs // 2:
            optimizer = sgd(0.01)
    assert_same(actual, params)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("epochs", "schedule", "factor"), [(10, (0.2, 0.4, 0.6, 0.8), 0.5), (7, (2 / 3, 5 / 6), 0.2), (5, (), 0.1)]
)
def test_every_step_of_optimizers_and_schedules_is_torchs(torch, rng, optimizer, epochs, schedule, factor):
    """A scheduler of milestones, which leaves the optimizer's state as it is."""
    settings = {"schedule": schedule, "rate_factor": factor, "restart": False, "weight_decay": 0.05}
    config = EvaluationConfig(optimizer=optimizer, learning_rate=0.02, **settings)
    recipe, examples = training.make_recipe(config, NONE), examples_of(rng)
    network = networks.create(NetworkConfig(width=4, depth=1), 3, (8, 8, 1))
    key = jax.random.key(3)
    plan = training.make_plan(recipe, len(examples.labels), epochs)
    state = training.start(network, plan, key, examples)
    params, loss = torch_model(torch, network, key, examples)
    if optimizer == "sgd":
        oracle = torch.optim.SGD(params.values(), lr=0.02, momentum=0.9, weight_decay=0.05)
    else:
        oracle = torch.optim.AdamW(params.values(), lr=0.02, weight_decay=0.05)
    milestones = [int(fraction * epochs + 1e-6) for fraction in schedule]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(oracle, milestones, gamma=factor)
    for step in range(epochs):
        state = training.advance(network, recipe, plan, state, key, examples, step + 1)
        oracle.zero_grad()
        loss().backward()
        oracle.step()
        scheduler.step()
        assert_same(state.variables["params"], params, 1e-3, [BIAS] if optimizer == "adamw" else [])


def test_adamw_made_anew_is_a_fresh_one(torch, rng):
    """With a restart the rate falls an epoch later, and moments and their corrections begin again."""
    config = EvaluationConfig(optimizer="adamw", learning_rate=0.02)
    examples = examples_of(rng)
    network = networks.create(NetworkConfig(width=4, depth=1), 3, (8, 8, 1))
    key = jax.random.key(3)
    actual = training.train(network, training.make_recipe(config, NONE), key, examples, 6)["params"]
    params, loss = torch_model(torch, network, key, examples)
    oracle = torch.optim.AdamW(params.values(), lr=0.02, weight_decay=5e-4)
    for epoch in range(6):
        oracle.zero_grad()
        loss().backward()
        oracle.step()
        if epoch == 3:
            oracle = torch.optim.AdamW(params.values(), lr=0.002, weight_decay=5e-4)
    assert_same(actual, params, 1e-3, [BIAS])


class Counter(nn.Module):
    """Its only parameter learns how often each image was shown: the gradient of logit 0 is a one-hot of the pixel."""

    @nn.compact
    def __call__(self, x, train=False, weights=None):
        seen = self.param("seen", nn.initializers.zeros_init(), (x.shape[1] * x.shape[2],))
        flat = x.reshape(x.shape[0], -1)
        return jnp.stack([flat @ seen, jnp.zeros(x.shape[0])], axis=1)


def test_every_epoch_shows_every_image_once_in_a_new_order():
    """With batches of 4 of 10 images the last one is partial, and is kept."""
    n = 10
    images = np.zeros((n, 4, 4, 1), np.float32)
    images[np.arange(n), np.arange(n) // 4, np.arange(n) % 4, 0] = 1
    examples = on_device.Examples(images, np.ones(n, np.int32), np.zeros(1, np.float32), np.ones(1, np.float32))
    rate = 1e-3  # so small that the softmax stays at one half
    recipe = training.Recipe(rate, 0.0, 0.0, 4, NONE)
    seen = np.asarray(training.train(Counter(), recipe, jax.random.key(0), examples, 1)["params"]["seen"])[:n]
    # Every image has gradient 1/2, divided by the size of its batch: 4, 4, and 2.
    np.testing.assert_allclose(np.sort(-seen) / rate, [0.125] * 8 + [0.25] * 2, rtol=1e-2)
    other = np.asarray(training.train(Counter(), recipe, jax.random.key(1), examples, 1)["params"]["seen"])[:n]
    assert (np.argsort(seen) != np.argsort(other)).any()


def test_batch_norm_ignores_the_padding_of_the_last_batch(rng):
    """6 images in batches of 4: the running statistics are those of a batch of 4 and then one of the 2 others."""
    examples = examples_of(rng, n=6)
    network = networks.create(NetworkConfig(width=4, depth=1, norm="batch"), 3, (8, 8, 1))
    recipe = training.Recipe(1e-12, 0.0, 0.0, 4, NONE)  # the parameters stay as they are drawn
    variables = training.train(network, recipe, jax.random.key(0), examples, 1)
    running = np.concatenate([variables["batch_stats"]["norm0"]["norm"][name] for name in ("mean", "var")])
    conv = variables["params"]["conv0"]["conv"]
    before = Conv(4, padding=3).apply({"params": {"conv": conv}}, (examples.images - 0.5) / 0.25)
    before = np.asarray(before)
    candidates = []
    for first in itertools.combinations(range(6), 4):
        statistics = np.repeat([0.0, 1.0], 4)  # four channels start at mean 0 and variance 1
        for batch in (list(first), [i for i in range(6) if i not in first]):
            pixels = before[batch].reshape(-1, 4)
            statistics = 0.9 * statistics + 0.1 * np.concatenate([pixels.mean(0), pixels.var(0, ddof=1)])
        candidates.append(statistics)
    assert np.abs(np.array(candidates) - running).max(axis=1).min() < 1e-6


@pytest.mark.parametrize("images", [3, 5])
def test_running_variances_are_torchs_where_few_pixels_are_left(torch, rng, images):
    """The last convolution sees 2x2 pixels, so that n H W / (n H W - 1), by which variances grow, is far from 1."""
    import torch_networks

    network = networks.create(NetworkConfig(name="AlexNetBN"), 3, (8, 8, 3))
    x = rng.uniform(size=(images, 8, 8, 3)).astype(np.float32)
    labels = rng.integers(0, 3, images).astype(np.int32)
    examples = on_device.Examples(x, labels, np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))
    recipe = training.Recipe(1e-12, 0.0, 0.0, 256, NONE)  # the parameters stay as they are drawn
    variables = training.train(network, recipe, jax.random.key(0), examples, epochs=3)

    oracle = torch_networks.load(torch_networks.create("AlexNet", "batch", 3, (8, 8, 3)), variables["params"]).train()
    for module in oracle.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()  # which making the oracle has changed
    for _ in range(3):
        oracle(torch.tensor((x - 0.5) / 0.25).permute(0, 3, 1, 2))
    for name, norm in variables["batch_stats"].items():
        expected = getattr(oracle, name)
        np.testing.assert_allclose(norm["norm"]["var"], expected.running_var, rtol=1e-4)
        np.testing.assert_allclose(norm["norm"]["mean"], expected.running_mean, rtol=1e-3, atol=1e-5)


def test_accuracy_counts_all_images_of_an_uneven_test_set(rng):
    n = 300  # one whole batch and a partial one
    images = rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
    network = networks.create(NetworkConfig(width=4, depth=1), 3, (8, 8, 1))
    variables = networks.init(network, jax.random.key(0), (8, 8, 1))
    mean, std = np.array([0.5], np.float32), np.array([0.25], np.float32)
    predicted = np.asarray(network.apply(variables, (images / np.float32(255) - 0.5) / 0.25)).argmax(-1)
    labels = predicted.astype(np.int32)
    labels[:45] = (labels[:45] + 1) % 3
    assert testing.accuracy(network, variables, on_device.place_test(images, labels, mean, std)) == pytest.approx(0.85)


def test_top_five_counts_the_images_whose_class_is_among_the_five_best(rng):
    n, classes = 300, 12
    scores = rng.normal(size=(n, classes)).astype(np.float32)
    shown = rng.integers(0, classes, n).astype(np.int32)
    images = np.zeros((n, 4, 4, 1), np.uint8)
    images[np.arange(n), 0, 0, 0], images[np.arange(n), 0, 1, 0] = np.arange(n) % 200, np.arange(n) // 200
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    examples = on_device.place_test(images, shown, zero, one)

    def of_images(x):
        number = jnp.round(x[:, 0, 0, 0] * 255) + 200 * jnp.round(x[:, 0, 1, 0] * 255)
        return jnp.asarray(scores)[jnp.minimum(number.astype(jnp.int32), n - 1)]

    found = testing.tested(testing.count_correct(of_images, examples))
    best = np.argsort(-scores, axis=1)[:, :5]
    assert found.accuracy == pytest.approx((best[:, 0] == shown).mean())
    assert found.top5 == pytest.approx((best == shown[:, None]).any(axis=1).mean())


def test_training_is_a_function_of_its_key_and_does_not_recompile(rng):
    examples = examples_of(rng)
    network = networks.create(NetworkConfig(width=4, depth=1), 3, (8, 8, 1))
    recipe = training.make_recipe(EvaluationConfig(), AugmentConfig())
    first = training.train(network, recipe, jax.random.key(0), examples, 5)
    with jax.no_tracing():
        again = training.train(network, recipe, jax.random.key(0), examples, 5)
        other = training.train(network, recipe, jax.random.key(1), examples, 5)
    kernel = lambda v: np.asarray(v["params"]["conv0"]["conv"]["kernel"])  # noqa: E731
    np.testing.assert_array_equal(kernel(first), kernel(again))
    assert np.abs(kernel(first) - kernel(other)).max() > 1e-3
