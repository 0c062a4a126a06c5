"""Performance matching: dd, ld and kip against PyTorch, closed forms, and on any number of devices."""

import dataclasses
import itertools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

import dmjax
from dmjax import Config, Dataset, NetworkConfig, OptimizerConfig, compare, condense, evaluate
from dmjax.common.errors import UserError
from dmjax.config import EvaluationConfig
from dmjax.evaluation import training
from dmjax.methods import kernel, labels, patience, performance, unrolled
from dmjax.methods.base import Chunks, Problem
from dmjax.methods.kernel import KIP, KernelConfig
from dmjax.methods.labels import LD
from dmjax.methods.unrolled import DD
from dmjax.run.devices import ClassSharding
from dmjax.run.own_evaluation import judge_own
from dmjax.run.program import RunState, make_chunk, make_problem, run_key, state_axes
from dmjax.settings import experiment

CLASSES, SHAPE = 3, (8, 8, 1)
SMALL = (
    *("--config", "experiments/tiny.py", "--network.width", "4", "--network.depth", "1", "--images-every", "0"),
    *("--evaluation.networks", "2", "--evaluation.epochs", "2", "--evaluation.whole-dataset", "false"),
    *("--evaluation.random-real", "false", "--progress", "false"),
)


@pytest.fixture
def dataset(rng):
    """Three classes of unequal size, which differ in where they are bright."""

    def draw(counts):
        shown = np.repeat(np.arange(CLASSES), counts)
        images = rng.uniform(0, 0.5, (len(shown), 8, 8))
        images[np.arange(len(shown)), 2 * shown] += 0.5
        return images, shown

    return Dataset.from_arrays(*draw([9, 7, 5]), *draw([20, 20, 20]))


def config_of(method, ipc=2, network="MLP"):
    config = Config(method=method, network=NetworkConfig(name=network), ipc=ipc, progress=False)
    return experiment.resolve(dataclasses.replace(config, evaluation=EvaluationConfig(networks=2, epochs=2)))


def run(config, dataset, devices=1, length=1, chunks=None):
    """State before and after some iterations on so many devices, and the losses [length]."""
    classes, axes = dataset.num_classes, state_axes(config.method)
    sharding = ClassSharding(classes, jax.local_devices()[:devices])
    problem = dataclasses.replace(make_problem(config, dataset), chunks=chunks or Chunks())
    start = jax.device_get(config.method.start(problem, config.seed))
    states = [sharding.put_state(RunState(np.int32(0), start), axes)]
    keys, data = sharding.put_keys([run_key(config.seed)]), sharding.put_data(dataset.images, dataset.counts)
    program = sharding.compile(make_chunk(problem, length), keys, states, axes, data, None)
    states, losses = program(keys, states, data, None)
    return start, sharding.get_state(states[0], axes).method, sharding.losses(losses)[0]


PLAIN = OptimizerConfig("sgd", 1.0, ())  # then an iteration subtracts the derivative itself
METHODS = {
    "dd": DD(iterations=100, batch_target=12, optimizer=PLAIN),
    "ld": LD(batch_target=12, optimizer=PLAIN),
    "ld second order": LD(batch_target=12, optimizer=PLAIN, variant="second_order"),
    "kip": KIP(batch_target=12, optimizer=PLAIN, learn_labels=True),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_devices_agree_and_need_not_divide_the_classes(dataset, name, devices):
    config = config_of(METHODS[name])
    (_, alone, losses), (_, spread, others) = (run(config, dataset, n, length=2) for n in (1, devices))
    np.testing.assert_allclose(losses, others, rtol=1e-4)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, alone, spread)


@pytest.mark.parametrize("name", ["dd", "ld second order"])
def test_chunks_of_real_images_change_nothing(dataset, name):
    config = config_of(METHODS[name])
    whole, parts = run(config, dataset)[1], run(config, dataset, chunks=Chunks(None, 5, None))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole, parts)


def test_a_class_weighs_as_much_as_it_has_images(dataset):
    """12 targets of 3 classes are 4 of each, which stand for 9, 7 and 5 of 21 images."""
    data = ClassSharding(CLASSES, jax.local_devices()[:1]).put_data(dataset.images, dataset.counts)
    data = jax.tree.map(lambda leaf: leaf[0], data)
    problem = make_problem(config_of(DD()), dataset)
    draw = jax.vmap(lambda _: performance.draw_targets(problem, jax.random.key(0), data, 12), axis_name="devices")
    targets = jax.tree.map(lambda leaf: leaf[0], draw(jnp.zeros(1)))
    np.testing.assert_array_equal(targets.labels, np.repeat([0, 1, 2], 4))
    np.testing.assert_allclose(targets.weights, np.repeat(np.array([9, 7, 5]) / 21 / 4, 4), rtol=1e-6)
    for c in range(CLASSES):
        drawn = np.asarray(targets.images[4 * c : 4 * c + 4])
        real = (dataset.images[c, : dataset.counts[c]] / 255 - dataset.mean) / dataset.std
        apart = np.abs(drawn[:, None] - real[None]).max(axis=(2, 3, 4))
        assert (apart.min(axis=1) < 1e-5).all()  # images of the class,
        assert len(set(apart.argmin(axis=1))) == 4  # none of them twice


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


def test_ld_moves_its_labels_by_the_closed_form(dataset):
    """`.01 (Phi Phi^T + I)^-1 Phi f(x)^T dL/dlogits`, in NumPy, for the first step, whose classifier is zero."""
    config = config_of(METHODS["ld"], ipc=2)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, batch_target=1000))
    start, after, losses = run(config, dataset)
    problem = make_problem(config, dataset)
    _, choice_key, _ = jax.random.split(jax.random.fold_in(run_key(0), 0), 3)
    chosen = np.asarray(config.method._choose(problem, choice_key, 6))

    def features(x):
        x = jnp.asarray(x, jnp.float32)
        return np.asarray(labels._features(problem, start.learner.variables, x), np.float64)

    phi, y = features(start.images[chosen]), start.labels[chosen].astype(np.float64)
    real, shown = dataset.flat()
    target = features((real / 255 - dataset.mean) / dataset.std)
    inverse = np.linalg.inv(phi @ phi.T + np.eye(len(phi)))
    logits = target @ (0.01 * phi.T @ inverse @ y)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope = (probabilities - np.eye(CLASSES)[shown]) / len(shown)
    wanted = np.zeros((6, CLASSES))
    wanted[chosen] = 0.01 * inverse @ phi @ target.T @ slope
    moved = np.clip(start.labels - wanted, 0, 1)
    np.testing.assert_allclose(after.labels, moved / moved.sum(axis=1, keepdims=True), atol=1e-6)
    assert np.abs(after.labels - start.labels).max() > 1e-5
    np.testing.assert_allclose(losses, [-np.log(probabilities[np.arange(len(shown)), shown]).mean()], rtol=1e-5)


def test_ld_second_order_matches_torch(torch, dataset):
    config = config_of(METHODS["ld second order"])
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, batch_target=1000))
    start, after, losses = run(config, dataset)
    tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)  # noqa: E731
    weights = {
        (layer, kind): tensor(array)
        for layer, wrapped in start.learner.variables["params"].items()
        for kind, array in wrapped["dense"].items()
    }

    def logits(w, x):
        for layer in ("linear0", "linear1"):
            x = torch.relu(x @ w[layer, "kernel"] + w[layer, "bias"])
        return x @ w["classifier", "kernel"] + w["classifier", "bias"]

    soft = tensor(start.labels)
    x = torch.tensor(start.images.reshape(len(start.images), -1), dtype=torch.float64)
    inner = torch.nn.functional.cross_entropy(logits(weights, x), soft)
    gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    fast = {k: w - 0.01 * g for (k, w), g in zip(weights.items(), gradients, strict=True)}
    real, shown = dataset.flat()
    real = torch.tensor(((real / 255 - dataset.mean) / dataset.std).reshape(len(real), -1), dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(logits(fast, real), torch.tensor(shown).long())
    wanted = torch.autograd.grad(loss, soft)[0].numpy()
    moved = np.clip(start.labels - wanted, 0, 1)
    np.testing.assert_allclose(losses, [loss.item()], rtol=1e-5)
    np.testing.assert_allclose(after.labels, moved / moved.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_network_starts_anew_when_its_error_has_stopped_falling():
    """A window of 3: sums 6, 5, 4, 4, 4, 4, 4; the fourth step without a lower sum is one too many."""
    state, restarts = patience.new_patience(3, jnp.int32([7, 0, 0])), []
    for error in (3.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0):
        state, restart = patience.note_error(state, jnp.float32(error))
        restarts.append(bool(restart))
    assert restarts == [False] * 8 + [True]
    np.testing.assert_array_equal(state.lengths, [5, 7, 0])  # the smallest sum, 4, was first reached after five steps
    assert (int(state.steps), float(state.errors.sum())) == (0, 0)


def test_rows_of_labels_stay_probabilities():
    rows = np.asarray(labels.as_probabilities(jnp.float32([[0.5, 0.7, -0.2], [-1, -1, -1], [2, 0, 0]])))
    np.testing.assert_allclose(rows, [[0.5 / 1.2, 0.7 / 1.2, 0], [1 / 3] * 3, [1, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_tangent_kernel_is_that_of_a_wide_network(rng, layers):
    """Products of the parameter gradients of networks of width 512, averaged over draws."""
    x, sizes, draws = rng.normal(size=(4, 6)).astype(np.float32), [6, *[512] * layers, 1], 32

    def network(params, x):
        for i, (w, b) in enumerate(params):
            x = jnp.sqrt(2 / len(x)) * (x @ w) + 0.1 * b
            x = jax.nn.relu(x) if i < layers else x
        return x[0]

    def empirical(key):
        keys = jax.random.split(key, (layers + 1, 2))
        shapes = list(itertools.pairwise(sizes))
        params = [
            (jax.random.normal(of_w, shape), jax.random.normal(of_b, shape[1:]))
            for (of_w, of_b), shape in zip(keys, shapes, strict=True)
        ]
        gradients = jax.vmap(jax.grad(network), in_axes=(None, 0))(params, jnp.asarray(x))
        flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(gradients)], axis=1)
        return flat @ flat.T

    measured = np.asarray(
        jax.jit(lambda keys: jax.lax.map(empirical, keys))(jax.random.split(jax.random.key(0), draws))
    )
    ours = np.asarray(kernel.tangent(x, x, layers))
    error = measured.std(axis=0) / np.sqrt(draws)
    assert (np.abs(measured.mean(axis=0) - ours) < 4 * error + 0.01 * ours.max()).all()
    assert error.max() < 0.05 * ours.max()


def test_the_tangent_kernel_of_closed_forms():
    """Of equal vectors `2 S + .01` with one layer and `3 S + .04` with two; of orthogonal ones by their angle."""
    x = np.float32([[2, 0, 0, 0], [0, 0, 1, 0]])
    of = 2 * np.array([4, 1]) / 4 + 0.01  # S of each
    np.testing.assert_allclose(np.diag(kernel.tangent(x, x, 1)), 2 * of + 0.01, rtol=1e-5)
    np.testing.assert_allclose(np.diag(kernel.tangent(x, x, 2)), 3 * of + 0.03, rtol=1e-5)
    q, angle = np.sqrt(of.prod()), np.arccos(0.01 / np.sqrt(of.prod()))
    active = (np.pi - angle) / (2 * np.pi)
    expected = 2 * (q * np.sin(angle) / (2 * np.pi) + active * 0.01) + 0.01 + 2 * active * 0.01
    np.testing.assert_allclose(kernel.tangent(x, x, 1)[0, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(kernel.gaussian(x, x, 0.5), np.exp(-0.5 * np.array([[0, 5], [5, 0]]) / 4), rtol=1e-5)


@pytest.mark.parametrize("name", ["ntk", "rbf"])
def test_kip_moves_by_torchs_derivative(torch, dataset, name):
    """The regression written out with matrix inverses, in double precision."""
    config = config_of(
        KIP(batch_target=1000, optimizer=PLAIN, learn_labels=True, kernel=KernelConfig(name, ridge=1e-3))
    )
    start, after, losses = run(config, dataset)
    tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)  # noqa: E731
    images, soft = tensor(start.support.images.reshape(6, -1)), tensor(start.support.labels)

    def gram(a, b, same=False):
        if name == "rbf":
            return torch.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 64)
        s = 2 * a @ b.T / 64 + 0.01
        q = torch.sqrt((2 * (a**2).sum(1) / 64 + 0.01)[:, None] * (2 * (b**2).sum(1) / 64 + 0.01)[None])
        # On the diagonal the angle is zero whatever the images are.
        ratio = s / q
        off = ~torch.eye(len(a), dtype=bool) if same else torch.ones_like(s, dtype=bool)
        angle = torch.where(off, torch.acos(torch.where(off, ratio, torch.zeros_like(ratio))), 0)
        active = (np.pi - angle) / (2 * np.pi)
        new = 2 * (q * torch.sin(angle) / (2 * np.pi) + active * s) + 0.01
        return new + 2 * active * s

    real, shown = dataset.flat()
    real = torch.tensor(((real / 255 - dataset.mean) / dataset.std).reshape(len(real), -1), dtype=torch.float64)
    k_ss = gram(images, images, same=True)
    k_ss = k_ss + 1e-3 * torch.trace(k_ss) / 6 * torch.eye(6, dtype=torch.float64)
    wanted = torch.eye(CLASSES, dtype=torch.float64)[torch.tensor(shown).long()] - 1 / CLASSES
    loss = 0.5 * ((wanted - gram(real, images) @ torch.linalg.solve(k_ss, soft)) ** 2).mean()
    loss.backward()
    np.testing.assert_allclose(losses, [loss.item()], rtol=1e-4)
    for theirs, before, now in zip((images, soft), start.support, after.support, strict=True):
        moved = (before - now).reshape(theirs.shape)
        scale = np.abs(theirs.grad.numpy()).max()
        np.testing.assert_allclose(moved / scale, theirs.grad.numpy() / scale, atol=1e-3)


@pytest.mark.parametrize("given", [PLAIN, OptimizerConfig("adamw", 0.1, (("weight_decay", 1.0),))])
def test_labels_are_learned_only_where_that_is_asked_for(dataset, given):
    """A decay of weights does not move them either."""
    start, after, _ = run(config_of(KIP(batch_target=12, optimizer=given)), dataset, length=2)
    np.testing.assert_array_equal(start.support.labels, after.support.labels)
    assert np.abs(start.support.images - after.support.images).max() > 1e-4


@pytest.mark.parametrize(
    ("method", "changed", "message"),
    [
        (DD(iterations=2), {"step_sizes": np.zeros((3, 0), np.float32)}, "step_sizes of the set is damaged"),
        (DD(iterations=2), {"step_sizes": np.full((3, 2), -1, np.float32)}, "they must be above 0"),
        (DD(iterations=2), {"step_sizes": np.ones((3, 3), np.float32)}, "equally many of each class in each of 3"),
        (DD(iterations=2), {"known_key": np.ones(2, np.float32)}, "known_key of the set is damaged"),
        (LD(iterations=2), {"steps": np.int32([3, 4])}, "steps of the set is damaged: it is int32 .2., and should be"),
        (LD(iterations=2), {"steps": np.int32(-5)}, "they must be above 0, not -5"),
        (KIP(iterations=2), {"regression_labels": np.zeros((6, 2), np.float32)}, "regression_labels of the set is"),
    ],
)
def test_damaged_arrays_of_a_set_are_one_line(dataset, method, changed, message):
    config = Config(method=method, network=NetworkConfig(name="MLP"), ipc=2, progress=False)
    made = condense.condense(config, dataset)
    damaged = dataclasses.replace(made, extra={**made.extra, **changed})
    with pytest.raises(UserError, match=message):
        judge_own(experiment.resolve(config), dataset, damaged)


def test_images_that_are_all_alike_or_in_another_order_are_one_line(dataset):
    method = KIP(iterations=2, kernel=KernelConfig(ridge=0.0))
    config = Config(method=method, network=NetworkConfig(name="MLP"), ipc=2, progress=False)
    made = condense.condense(config, dataset)
    alike = dataclasses.replace(made, images=np.repeat(made.images[:1], 6, axis=0))
    with pytest.raises(UserError, match="kernel of these 6 images is singular"):
        judge_own(experiment.resolve(config), dataset, alike)
    config = dataclasses.replace(config, method=DD(iterations=2))
    made = condense.condense(config, dataset)
    with pytest.raises(UserError, match="in the order of their classes"):
        judge_own(experiment.resolve(config), dataset, dataclasses.replace(made, labels=made.labels[::-1]))


def test_networks_with_batch_norm_are_refused_by_the_own_evaluation_too(dataset):
    config = experiment.resolve(Config(method=LD(iterations=2), network=NetworkConfig(name="MLP"), ipc=2))
    made = condense.condense(dataclasses.replace(config, progress=False), dataset)
    other = dataclasses.replace(config, network=NetworkConfig(name="ConvNet", width=4, depth=1, norm="batch"))
    with pytest.raises(UserError, match="ld does not train networks with batch norm"):
        judge_own(other, dataset, made)


@pytest.mark.parametrize("size", [1e-3, 0.3, 50.0, 1000.0])
def test_any_step_size_can_be_started_from(size):
    assert jax.nn.softplus(unrolled.inverse_softplus(jnp.float32(size))) == pytest.approx(size, rel=1e-5)


def test_a_singular_kernel_is_said_before_a_comparison_makes_anything(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = ["--config", "experiments/tiny.py", "--methods", "random", "kip", "--ipc", "1", "--runs", "1"]
    flags += [
        "--kernel.name",
        "rbf",
        "--kernel.gamma",
        "1e-9",
        "--kernel.ridge",
        "0",
        "--workdir",
        str(tmp_path / "all"),
    ]
    assert compare.main(flags) == 2
    assert "the rbf kernel of these 10 images is singular" in capsys.readouterr().err
    assert not (tmp_path / "all" / "cells").exists()


def test_nearest_probabilities_are_the_projection(rng):
    values = rng.normal(size=(20, 4)).astype(np.float32)
    nearest = kernel.nearest_probabilities(values)
    np.testing.assert_allclose(nearest.sum(axis=1), 1, rtol=1e-5)
    assert (nearest >= 0).all()
    others = rng.dirichlet(np.ones(4), size=2000)
    for value, point in zip(values, nearest, strict=True):
        assert ((value - point) ** 2).sum() <= ((value[None] - others) ** 2).sum(axis=1).min() + 1e-6


@pytest.mark.parametrize("method", [DD(iterations=3), LD(iterations=3), KIP(iterations=3, learn_labels=True)])
def test_a_set_is_judged_in_both_ways_from_its_file_alone(dataset, tmp_path, method):
    config = Config(method=method, network=NetworkConfig(name="MLP"), ipc=2, progress=False)
    config = dataclasses.replace(config, evaluation=EvaluationConfig(networks=2, epochs=2))
    made = condense.condense(config, dataset)
    made.save(tmp_path / "set.npz")
    kept = dmjax.SyntheticSet.load(tmp_path / "set.npz")
    assert kept.digest() == made.digest()
    assert set(kept.extra) == set(made.extra) != set()
    resolved = experiment.resolve(config)
    own = judge_own(resolved, dataset, kept)
    assert own == dataclasses.replace(judge_own(resolved, dataset, made), training_seconds=own.training_seconds)
    assert len(own.values) == (2 if method.own_evaluation_is_random else 1)
    assert len(evaluate.evaluate(kept, dataset, networks=1, epochs=1, progress=False).values) == 1
    bare = dataclasses.replace(kept, extra={})
    with pytest.raises(UserError, match=f"the set has no '.*', which {method.name} leaves in it"):
        judge_own(resolved, dataset, bare)


def test_kernel_regression_on_the_whole_training_set_knows_it(dataset):
    """With the training images as support, the regression gives them their own classes."""
    config = config_of(KIP(kernel=KernelConfig(ridge=1e-4)), ipc=5)
    images = dataset.images[:, :5]
    made = dmjax.data.synthetic_set.from_pixels(images, dataset.mean, dataset.std, dataset.class_names)
    made = dataclasses.replace(made, extra={"regression_labels": np.asarray(kernel.centred_labels(CLASSES, 5))})
    shown = np.repeat(np.arange(CLASSES), 5)
    examples = training.test_examples(made.pixels(), shown, dataset.mean, dataset.std)
    assert config.method.test(make_problem(config, dataset), made, examples, jax.random.key(0)).accuracy == 1


@pytest.mark.parametrize(
    ("method", "network", "message"),
    [
        (DD(distill_steps=3), "MLP", "distill_steps 3 must divide the 2 images per class"),
        (LD(), "ConvNetBN", "ld does not train networks with batch norm"),
        (KIP(kernel=KernelConfig(hidden_layers=4)), "MLP", "kernel.hidden_layers must be between 1 and 3, not 4"),
        (KIP(kernel=KernelConfig(name="cntk")), "MLP", "kernel.name must be one of ntk, rbf, not 'cntk'"),
        (KIP(kernel=KernelConfig(ridge=-1.0)), "MLP", "kernel.ridge must be at least 0"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(method, network, message):
    with pytest.raises(UserError, match=message):
        config_of(method, network=network)


def test_a_singular_kernel_is_said_before_anything_is_learned(dataset):
    same = dataclasses.replace(dataset, images=np.repeat(dataset.images[:, :1], dataset.images.shape[1], axis=1))
    config = Config(method=KIP(iterations=3, kernel=KernelConfig(ridge=0.0)), ipc=2, progress=False)
    with pytest.raises(UserError, match=r"the ntk kernel of these 6 images is singular .* raise --kernel.ridge"):
        condense.condense(config, same)


@pytest.mark.parametrize("method", ["kip", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dd", "ld"))])
def test_a_killed_run_ends_in_the_same_bytes(run_command, tmp_path, method):
    flags = (*SMALL, "--method", method, "--chunk", "2", "--checkpoint.every", "4", "--ipc", "2")
    whole = run_command("dmjax.condense", *flags, "--iterations", "12", "--workdir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    process = run_command.start("dmjax.condense", *flags, "--iterations", "12", "--workdir", tmp_path / "killed")
    while process.poll() is None:
        if (tmp_path / "killed" / "checkpoints" / "4").exists():
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    again = run_command("dmjax.condense", *flags, "--iterations", "12", "--workdir", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    first, second = (np.load(tmp_path / name / "synthetic.npz") for name in ("whole", "killed"))
    for name in first.files:
        if name != "metadata":
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    accuracy = json.loads((tmp_path / "killed" / "results.json").read_text())["accuracy"]
    assert set(accuracy["own"]) >= {"mean", "std", "values"}


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
