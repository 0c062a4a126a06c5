"""Dataset Distillation: its derivative through all steps against PyTorch, initialisations, crops, memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import CLASSES, METHODS, PLAIN, config_of, make_dataset, run

import dmjax
from dmjax import Config, NetworkConfig
from dmjax.methods import unrolled
from dmjax.methods.base import Problem
from dmjax.methods.unrolled import DD
from dmjax.run.program import make_problem, run_key
from dmjax.settings import experiment


@pytest.fixture
def dataset(rng):
    return make_dataset(rng)


def test_dd_moves_by_torchs_derivative_through_all_steps(torch, dataset):
    """Two steps in each of two epochs on an MLP, all real images as targets."""
    method = DD(batch_target=1000, distill_epochs=2, distill_steps=2, step_size=0.3, optimizer=PLAIN)
    config = config_of(method)
    start, after, losses = run(config, dataset)
    network_key, *_ = jax.random.split(jax.random.fold_in(run_key(0), 0), 3)
    variables = config.method._initial(make_problem(config, dataset), network_key, start.known_key)
    tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)  # noqa: E731
    weights = {
        (layer, kind): tensor(array)
        for layer, wrapped in variables["params"].items()
        for kind, array in wrapped["dense"].items()
    }

    def logits(w, x):
        for layer in ("linear0", "linear1"):
            x = torch.relu(x @ w[layer, "kernel"] + w[layer, "bias"])
        return x @ w["classifier", "kernel"] + w["classifier", "bias"]

    images, raw = tensor(start.learned.images), tensor(start.learned.raw_step_sizes)
    of_step = torch.arange(CLASSES)
    for epoch in range(2):
        for s in range(2):
            x = images[:, s].reshape(CLASSES, -1)
            loss = torch.nn.functional.cross_entropy(logits(weights, x), of_step)
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            size = torch.nn.functional.softplus(raw[epoch, s])
            weights = {k: w - size * g for (k, w), g in zip(weights.items(), gradients, strict=True)}
    real, shown = dataset.flat()
    real = (real / 255 - dataset.mean) / dataset.std
    loss = torch.nn.functional.cross_entropy(
        logits(weights, torch.tensor(real.reshape(len(real), -1))), torch.tensor(shown).long()
    )
    loss.backward()
    np.testing.assert_allclose(losses, [loss.item()], rtol=1e-5)
    for theirs, before, now in zip((images, raw), start.learned, after.learned, strict=True):
        wanted = theirs.grad.numpy()
        np.testing.assert_allclose((before - now) / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=1e-4)


def test_dd_halves_its_learning_rate_after_every_tenth_of_the_iterations(dataset):
    transformation = dataclasses.replace(METHODS["dd"], iterations=20).transformation()
    state, moves = transformation.init(jnp.zeros(1)), []
    for _ in range(6):
        updates, state = transformation.update(jnp.ones(1), state)
        moves.append(-float(updates[0]))
    assert moves == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_known_initialisations_are_the_same_in_every_iteration_and_travel_with_the_set(dataset):
    fixed = config_of(DD(iterations=4, network_init="fixed"))
    problem, state = make_problem(fixed, dataset), run(fixed, dataset, length=2)[1]
    first, second = (fixed.method._initial(problem, jax.random.key(k), state.known_key) for k in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    random = dataclasses.replace(fixed.method, network_init="random")
    kernels = [
        random._initial(problem, jax.random.key(k), state.known_key)["params"]["linear0"]["dense"]["kernel"]
        for k in (1, 2)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    assert (fixed.method.finish(problem, state).extra["known_key"] == state.known_key).all()


def test_xavier_weights_have_the_variance_of_their_fans():
    network = dmjax.networks.create(NetworkConfig(width=64, depth=2), 10, (16, 16, 3))
    variables = unrolled.xavier_normal(jax.random.key(0), dmjax.networks.init(network, jax.random.key(1), (16, 16, 3)))
    conv = variables["params"]["conv1"]["conv"]
    assert np.std(conv["kernel"]) == pytest.approx(np.sqrt(2 / (9 * 64 + 9 * 64)), rel=0.02)
    assert not np.asarray(conv["bias"]).any()
    assert (np.asarray(variables["params"]["norm0"]["norm"]["scale"]) == 1).all()


def test_crops_are_shifted_mirrored_images(rng):
    image = rng.normal(size=(1, 8, 8, 1)).astype(np.float32)
    out = np.asarray(unrolled.crop_and_mirror(jax.random.split(jax.random.key(0), 1), np.repeat(image, 200, axis=0)))
    padded = np.pad(image[0], ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = [padded[y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
    known = {w.tobytes() for w in windows} | {np.ascontiguousarray(w[:, ::-1]).tobytes() for w in windows}
    assert {np.ascontiguousarray(o).tobytes() for o in out} <= known
    assert len({np.ascontiguousarray(o).tobytes() for o in out}) > 60


@pytest.mark.parametrize("size", [1e-3, 0.3, 50.0, 1000.0])
def test_any_step_size_can_be_started_from(size):
    assert jax.nn.softplus(unrolled.inverse_softplus(jnp.float32(size))) == pytest.approx(size, rel=1e-5)


def test_memory_grows_by_the_weights_of_a_step_and_not_by_its_activations():
    """24 images of 16x16 leave a megabyte of activations in each step, the network has 40 kB of weights."""
    temporary, shape = [], (16, 16, 1)
    for epochs in (2, 10):
        method = DD(distill_steps=1, distill_epochs=epochs, step_size=0.1)
        config = experiment.resolve(Config(method=method, network=NetworkConfig(width=32, depth=1), ipc=8))
        network = dmjax.networks.create(config.network, CLASSES, shape)
        problem = Problem(config, network, CLASSES, shape, np.zeros(1, np.float32), np.ones(1, np.float32))
        state = config.method.start(problem, 0)
        variables = config.method._initial(problem, jax.random.key(0), state.known_key)
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))

        def loss(learned, config=config, problem=problem, variables=variables):
            trained = config.method._train(problem, variables, learned)
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(trained))

        compiled = jax.jit(jax.grad(loss)).lower(state.learned).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert (temporary[1] - temporary[0]) / 8 < 4 * weights
