"""Label Distillation: both derivatives by the labels, in closed form and against PyTorch, and when networks restart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import CLASSES, METHODS, config_of, make_dataset, run

from dmjax import Config, NetworkConfig, condense
from dmjax.common.errors import UserError
from dmjax.methods import labels, patience
from dmjax.methods.labels import LD
from dmjax.run.own_evaluation import judge_own
from dmjax.run.program import make_problem, run_key
from dmjax.settings import experiment


@pytest.fixture
def dataset(rng):
    return make_dataset(rng)


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


def test_networks_with_batch_norm_are_refused_by_the_own_evaluation_too(dataset):
    config = experiment.resolve(Config(method=LD(iterations=2), network=NetworkConfig(name="MLP"), ipc=2))
    made = condense.condense(dataclasses.replace(config, progress=False), dataset)
    other = dataclasses.replace(config, network=NetworkConfig(name="ConvNet", width=4, depth=1, norm="batch"))
    with pytest.raises(UserError, match="ld does not train networks with batch norm"):
        judge_own(other, dataset, made)
