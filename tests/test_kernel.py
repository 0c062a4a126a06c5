"""Kernel Inducing Points: kernels in closed form and of wide networks, the derivative against PyTorch."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from fitted import CLASSES, PLAIN, config_of, make_dataset, run

import dmjax
from dmjax import Config, OptimizerConfig, compare, condense
from dmjax.common.errors import UserError
from dmjax.evaluation import on_device
from dmjax.methods import kernel
from dmjax.methods.kernel import KIP, KernelConfig
from dmjax.run.program import make_problem


@pytest.fixture
def dataset(rng):
    return make_dataset(rng)


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


def test_kernel_regression_on_the_whole_training_set_knows_it(dataset):
    """With the training images as support, the regression gives them their own classes."""
    config = config_of(KIP(kernel=KernelConfig(ridge=1e-4)), ipc=5)
    images = dataset.images[:, :5]
    made = dmjax.data.synthetic_set.from_pixels(images, dataset.mean, dataset.std, dataset.class_names)
    made = dataclasses.replace(made, extra={"regression_labels": np.asarray(kernel.centred_labels(CLASSES, 5))})
    shown = np.repeat(np.arange(CLASSES), 5)
    examples = on_device.place_test(made.pixels(), shown, dataset.mean, dataset.std)
    assert config.method.test(make_problem(config, dataset), made, examples, jax.random.key(0)).accuracy == 1


def test_a_singular_kernel_is_said_before_anything_is_learned(dataset):
    same = dataclasses.replace(dataset, images=np.repeat(dataset.images[:, :1], dataset.images.shape[1], axis=1))
    config = Config(method=KIP(iterations=3, kernel=KernelConfig(ridge=0.0)), ipc=2, progress=False)
    with pytest.raises(UserError, match=r"the ntk kernel of these 6 images is singular .* raise --kernel.ridge"):
        condense.condense(config, same)
