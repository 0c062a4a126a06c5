"""Objective, step and sharding: against NumPy and PyTorch, and for what must not change a run."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_networks import torch_convnet

from dmjax import DM, networks
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, Config, NetworkConfig
from dmjax.data import augment, normalize, sampling
from dmjax.methods import optimizer
from dmjax.methods.base import CLASSES, DEVICES, Chunks, ClassData
from dmjax.methods.cloud import Cloud
from dmjax.methods.embedding import Drawn
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.run.devices import ClassSharding
from dmjax.run.program import RunState, make_abstract_problem, make_chunk, state_axes
from dmjax.settings import experiment

SHAPE = (8, 8, 1)
MEAN, STD = np.array([0.4], np.float32), np.array([0.3], np.float32)
CONFIG = experiment.resolve(
    Config(
        method=DM(batch_real=4),
        ipc=2,
        network=NetworkConfig(width=4, depth=2),
        augment=AugmentConfig("color_crop_scale_rotate"),
    )
)
ALL = Chunks()


def data_of(rng, classes=3, n=6, counts=None):
    images = rng.integers(0, 256, (classes, n, *SHAPE)).astype(np.uint8)
    counts = np.full(classes, n, np.int32) if counts is None else np.array(counts, np.int32)
    return ClassData.of(images, counts)


def start_of(rng, classes=3, method=CONFIG.method):
    images = rng.normal(size=(classes, CONFIG.ipc, *SHAPE)).astype(np.float32)
    return RunState(np.int32(0), jax.device_get(method.state_of(images)))


def problem_of(config, classes=3, axis_name=(), chunks=ALL):
    problem = make_abstract_problem(config, classes, SHAPE, MEAN, STD)
    network = networks.create(config.network, classes, SHAPE, axis_name)
    return dataclasses.replace(problem, network=network, chunks=chunks)


def make(config=CONFIG, chunks=ALL, axis_name=()):
    """One iteration, compiled: (key of the run, RunState, ClassData) -> (RunState, losses)."""
    problem = problem_of(config, 3, axis_name, chunks)

    def one_step(key, state, data):
        key = jax.random.fold_in(key, state.iteration)
        after, losses = config.method.step(problem, key, state.method, data, None)
        return RunState(state.iteration + 1, after), losses

    return jax.jit(one_step)


def run_sharded(config, data, state, devices, length=3, times=1):
    axis_name = (CLASSES, DEVICES) if config.network.norm == "batch" else ()
    sharding, axes = ClassSharding(len(data.count), jax.local_devices()[:devices]), state_axes(config.method)
    chunk = make_chunk(problem_of(config, len(data.count), axis_name), length)
    keys, placed = sharding.put_keys([jax.random.key(0)]), sharding.put_data(data.images, data.count)
    states = [sharding.put_state(state, axes)]
    program = sharding.compile(chunk, keys, states, axes, placed, None)
    losses = []
    for _ in range(times):
        states, loss = program(keys, states, placed, None)
        losses.append(sharding.losses(loss)[0])
    return sharding.get_state(states[0], axes), np.concatenate(losses)


def test_the_distance_matches_numpy_and_its_closed_form_gradient(rng):
    """With embed(x) = x W the gradient is -2/M (mean real - mean synthetic) W W^T, for each synthetic image."""
    weight = rng.normal(size=(64, 5)).astype(np.float32)
    real, synthetic = (rng.normal(size=(n, *SHAPE)).astype(np.float32) for n in (7, 3))
    real_weights = np.array([1, 1, 1, 1, 1, 0, 0], np.float32)

    def loss(real, synthetic):
        clouds = [
            Cloud(x.reshape(len(x), -1) @ weight, weights)
            for x, weights in ((real, jnp.asarray(real_weights)), (synthetic, jnp.ones(3)))
        ]
        return CONFIG.method.distance(jax.random.key(0), *clouds)

    exact_real, exact_synthetic, exact_weight = (a.astype(np.float64) for a in (real, synthetic, weight))
    difference = (exact_real[:5].reshape(5, -1).mean(0) - exact_synthetic.reshape(3, -1).mean(0)) @ exact_weight
    np.testing.assert_allclose(loss(real, synthetic), (difference**2).sum(), rtol=1e-5)
    to_synthetic = jax.grad(loss, argnums=1)(jnp.asarray(real), jnp.asarray(synthetic))
    expected = -2 / 3 * exact_weight @ difference
    close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(to_synthetic.reshape(3, -1), np.stack([expected] * 3), **close)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_whole_step_matches_torch(torch, rng, norm):
    """Same parameters, indices and augmentation as the step draws: loss, gradient and the SGD update agree."""
    config = dataclasses.replace(CONFIG, network=networks.resolve(NetworkConfig(width=4, depth=2, norm=norm)))
    one_step = make(config, axis_name=(CLASSES,) if norm == "batch" else ())
    data, state = data_of(rng, counts=[6, 5, 3]), start_of(rng)  # class 2 is smaller than the batch
    key = jax.random.key(7)
    after, losses = one_step(key, state, data)

    network_key, key = jax.random.split(jax.random.fold_in(key, 0))
    plain = networks.create(config.network, 3, SHAPE)
    variables = jax.jit(lambda k: networks.init(plain, k, SHAPE))(network_key)
    embed, _ = torch_convnet(torch, config.network, variables["params"], 3, SHAPE)
    synthetic = [torch.tensor(state.method.images[c], requires_grad=True) for c in range(3)]
    draw = jax.jit(lambda k, n: sampling.without_replacement(k, n, 6, 4))
    sample = jax.jit(lambda k: augment.sample(k, config.augment, SHAPE))
    apply = jax.jit(augment.apply)
    reals, fakes = [], []
    for c in range(3):
        sample_key, augment_key = jax.random.split(jax.random.fold_in(key, c))
        indices, weights = draw(sample_key, jnp.int32(data.count[c]))
        chosen = np.asarray(indices)[np.asarray(weights) > 0]
        assert len(chosen) == min(4, data.count[c])
        siamese = sample(augment_key)
        pixels = data.images[c][chosen].reshape(-1, *SHAPE)
        reals.append(torch.tensor(np.asarray(apply(siamese, normalize(pixels, MEAN, STD)))))
        # The augmentation is affine in the images: its matrix carries the gradient to PyTorch.
        basis = jnp.eye(64, dtype=jnp.float32).reshape(64, *SHAPE)
        constant = np.asarray(apply(siamese, jnp.zeros((1, *SHAPE)))).reshape(-1)
        matrix = torch.tensor(np.asarray(apply(siamese, basis)).reshape(64, 64) - constant)
        fakes.append((synthetic[c].reshape(2, 64) @ matrix + torch.tensor(constant)).reshape(2, *SHAPE))
    if norm == "batch":  # one batch of all real images, another of all synthetic ones
        real_features = torch.split(embed(torch.cat(reals)), [len(r) for r in reals])
        fake_features = torch.split(embed(torch.cat(fakes)), [2, 2, 2])
    else:
        real_features, fake_features = [embed(r) for r in reals], [embed(f) for f in fakes]
    expected = [
        ((r.detach().mean(0) - f.mean(0)) ** 2).sum() for r, f in zip(real_features, fake_features, strict=True)
    ]
    sum(expected).backward()
    np.testing.assert_allclose(losses, [e.item() for e in expected], rtol=1e-5)
    for c in range(3):
        np.testing.assert_allclose(
            after.method.images[c], state.method.images[c] - 1.0 * synthetic[c].grad.numpy(), rtol=1e-5, atol=1e-5
        )


def test_momentum_is_one_half_and_state_is_per_class(rng):
    one_step = make()
    data, first = data_of(rng), start_of(rng)
    key = jax.random.key(0)
    second, _ = one_step(key, first, data)
    third, _ = one_step(key, second, data)
    # A step from the same images without memory gives the gradient of the second iteration alone.
    fresh, _ = one_step(key, RunState(second.iteration, second.method._replace(optimizer=first.method.optimizer)), data)
    gradient = second.method.images - fresh.method.images
    velocity = first.method.images - second.method.images
    np.testing.assert_allclose(
        second.method.images - third.method.images, gradient + 0.5 * velocity, rtol=1e-4, atol=1e-5
    )


def test_every_iteration_draws_a_new_network_batch_and_augmentation(rng):
    one_step = make()
    data, state = data_of(rng), start_of(rng)
    losses = [one_step(jax.random.key(0), state._replace(iteration=np.int32(i)), data)[1] for i in range(3)]
    assert len({float(loss[0]) for loss in losses}) == 3
    other = one_step(jax.random.key(1), state, data)[1]
    assert float(other[0]) != float(losses[0][0])
    with jax.debug_key_reuse(True):
        make()(jax.random.key(0), state, data)


def test_real_activations_are_not_stored(rng):
    """The gradient w.r.t. one synthetic image takes a fraction of the memory that one w.r.t. the real ones takes."""
    network = networks.create(NetworkConfig(width=32, depth=2), 3, (32, 32, 3))
    variables = jax.jit(lambda k: networks.init(network, k, (32, 32, 3)))(jax.random.key(0))
    embed = lambda x, w: networks.embed(network, variables, x, w)  # noqa: E731
    real, synthetic = jnp.zeros((256, 32, 32, 3)), jnp.zeros((1, 32, 32, 3))
    weights = jnp.ones(256)

    def temporary(function, *args):
        return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes

    config = dataclasses.replace(CONFIG, method=DM(batch_real=256), augment=AugmentConfig("none"))
    problem = dataclasses.replace(problem_of(config), network=network, image_shape=(32, 32, 3))
    drawn, data = Drawn(variables, variables), ClassData.of(np.zeros((1, *real.shape), np.uint8), [256])
    data, key = jax.tree.map(jnp.asarray, data), jax.random.key(0)

    def loss_and_gradient(synthetic):
        seen = config.method._observe_real(problem, key, drawn, data, 0)
        return config.method._loss_and_gradient(problem, key, drawn, 0.0, synthetic, None, seen, 0, 1.0)

    ours = temporary(loss_and_gradient, synthetic)
    stored = temporary(jax.grad(lambda r: embed(r, weights).sum()), real)
    assert ours < 0.1 * stored


SLOW_CHUNKS = [pytest.param(c, marks=pytest.mark.slow) for c in [(2,), (None, 4, None), (None, None, 1), (1, 1, 1)]]


@pytest.mark.parametrize("chunks", [(1,), (3,), (2, 3, 1), (1, None, 1, 1, True), *SLOW_CHUNKS])
def test_chunks_of_classes_and_images_change_nothing(rng, chunks):
    data, state = data_of(rng), start_of(rng)
    whole, losses = make()(jax.random.key(0), state, data)
    chunked, chunked_losses = make(chunks=Chunks(*chunks))(jax.random.key(0), state, data)
    np.testing.assert_allclose(chunked.method.images, whole.method.images, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(chunked_losses, losses, rtol=1e-5)


@pytest.mark.parametrize(("norm", "tolerance"), [("instance", 1e-6), ("batch", 1e-5)])
@pytest.mark.parametrize("devices", [2, 4])
def test_devices_agree_and_need_not_divide_the_classes(rng, devices, norm, tolerance):
    """10 classes on 4 devices: 3 + 3 + 3 + 1 and two empty ones."""
    config = dataclasses.replace(CONFIG, network=NetworkConfig(width=4, depth=2, norm=norm))
    data, state = data_of(rng, classes=10), start_of(rng, classes=10)
    one, one_losses = run_sharded(config, data, state, 1)
    many, many_losses = run_sharded(config, data, state, devices)
    np.testing.assert_allclose(many.method.images, one.method.images, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(many_losses, one_losses, rtol=1e-5)
    assert int(many.iteration) == 3


def test_real_images_live_on_the_device_of_their_class_only(rng):
    data = data_of(rng, classes=10)
    placed = ClassSharding(10).put_data(data.images, data.count)
    assert placed.images.shape == (4, 3, 6, math.prod(SHAPE))
    for shard in placed.images.addressable_shards:
        d = shard.index[0].start or 0
        mine = data.images[3 * d : 3 * d + 3]
        np.testing.assert_array_equal(np.asarray(shard.data)[0, : len(mine)], mine)
    np.testing.assert_array_equal(jax.device_get(placed.count)[3], [6, 0, 0])


def test_after_warm_up_nothing_is_traced_and_nothing_is_copied(rng):
    sharding = ClassSharding(10)
    data, state = data_of(rng, classes=10), start_of(rng, classes=10)
    axes = state_axes(CONFIG.method)
    chunk = make_chunk(problem_of(CONFIG, 10, chunks=Chunks(1)), 2)
    keys = sharding.put_keys([jax.random.key(0), jax.random.key(1)])
    data = sharding.put_data(data.images, data.count)
    states = [sharding.put_state(state, axes) for _ in range(2)]
    program = sharding.compile(chunk, keys, states, axes, data, None)
    with jax.no_tracing(), jax.transfer_guard("disallow"):
        for _ in range(3):
            old = states
            states, losses = program(keys, states, data, None)
        assert sharding.losses(losses).shape == (2, 2)  # the one explicit transfer of a chunk
    assert all(state.method.images.is_deleted() for state in old)  # donated
    assert [int(jax.device_get(state.iteration)) for state in states] == [6, 6]


def test_a_chunk_is_its_steps(rng):
    data, state = data_of(rng), start_of(rng)
    long, losses = run_sharded(CONFIG, data, state, 1, length=4)
    short, short_losses = run_sharded(CONFIG, data, state, 1, length=2, times=2)
    np.testing.assert_array_equal(long.method.images, short.method.images)
    np.testing.assert_array_equal(losses, short_losses)


def test_sampling_is_uniform_without_replacement():
    keys = jax.random.split(jax.random.key(0), 3000)
    indices, weights = jax.vmap(lambda k: sampling.without_replacement(k, jnp.int32(7), 9, 4))(keys)
    indices = np.asarray(indices)
    assert indices.max() == 6
    assert all(len(set(row)) == 4 for row in indices)
    np.testing.assert_array_equal(weights, 1)
    expected = 3000 * 4 / 7
    assert np.abs(np.bincount(indices.ravel(), minlength=7) - expected).max() < 5 * np.sqrt(expected * 3 / 7)
    indices, weights = sampling.without_replacement(jax.random.key(0), jnp.int32(3), 9, 5)
    assert sorted(np.asarray(indices)[:3]) == [0, 1, 2]  # all of a class that has fewer
    np.testing.assert_array_equal(weights, [1, 1, 1, 0, 0])


def test_any_optax_optimizer(rng):
    method = DM(batch_real=4, optimizer=OptimizerConfig("adam", 0.1, (("b1", 0.5),)))
    config, data, state = dataclasses.replace(CONFIG, method=method), data_of(rng), start_of(rng, method=method)
    assert state.method.optimizer[0].count.shape == (3,)  # one optimizer per class
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer
        after, _ = make(config)(jax.random.key(0), state, data)
    # The first step of Adam moves every pixel that has a gradient by the learning rate.
    moved = np.abs(np.asarray(after.method.images - state.method.images))
    np.testing.assert_allclose(moved[moved > 1e-3], 0.1, rtol=1e-2)
    assert isinstance(optimizer.create(OptimizerConfig("sgd", 1.0, (("nesterov", 1),))), optax.GradientTransformation)
    with pytest.raises(UserError, match=r"no optimizer 'adan_'; did you mean .*'adam'"):
        optimizer.create(OptimizerConfig("adan_"))
    with pytest.raises(UserError, match="momentum must be at least 0 and below 1, not 2"):
        optimizer.create(OptimizerConfig(options=(("momentum", 2.0),)))
    with pytest.raises(UserError, match="no option 'momentum'"):
        optimizer.create(OptimizerConfig("adam"))


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group"])
@pytest.mark.parametrize(
    ("precision", "bound"), [pytest.param("tf32", 0.01, marks=pytest.mark.slow), ("bfloat16", 0.05)]
)
def test_precision_bounds_the_change_of_the_loss(rng, norm, precision, bound):
    """tf32 has 11 bits, which a CPU rounds to by itself, bfloat16 8; means are taken in float32."""
    data, state = data_of(rng), start_of(rng)

    def step_in(precision):
        network = NetworkConfig(width=16, depth=2, norm=norm, precision=precision)
        return make(dataclasses.replace(CONFIG, network=network), axis_name=("classes",) if norm == "batch" else ())(
            jax.random.key(0), state, data
        )

    (after, losses), (exact_after, exact) = step_in(precision), step_in("float32")
    np.testing.assert_allclose(losses, exact, rtol=bound)
    assert after.method.images.dtype == np.float32
    assert (
        np.abs(after.method.images - exact_after.method.images).max()
        <= 10 * bound * np.abs(exact_after.method.images - state.method.images).max()
    )
    assert bool((losses != exact).any())  # and it does compute in it
