"""Gradient matching: Dataset Condensation (DC; Zhao, Mopuri & Bilen 2021) and, with Siamese augmentation, DSA (2021).

An iteration draws a network and follows its training on the synthetic images for some outer steps. In each of them the
images of every class move so that the loss gradient on them matches that on real images of the class; then the network
is trained on the synthetic images of all classes for some epochs.
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dmjax import augment, training
from dmjax.config import AugmentConfig
from dmjax.data import normalize
from dmjax.step import DEVICES, Chunks, Problem, State, Step, map_classes, real_batch

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Outer steps and inner epochs by images per class, as in the authors' code."""

_STATISTICS = 16  # real images per class from which batch norm takes its statistics


def loops(ipc: int) -> tuple[int, int]:
    """Outer steps and inner epochs; between the sizes of the table linearly, beyond it 500 epochs in all."""
    if ipc in LOOPS:
        return LOOPS[ipc]
    sizes = sorted(LOOPS)
    if ipc > sizes[-1]:
        return ipc, max(1, round(500 / ipc))
    outer, inner = (np.interp(ipc, sizes, [LOOPS[size][i] for size in sizes]) for i in (0, 1))
    return max(1, round(float(outer))), max(1, round(float(inner)))


def make_step(problem: Problem, chunks: Chunks) -> Step:
    """One iteration: a network from its initialisation through all outer steps. The losses are means over these.

    Args:
      problem: Whose network has no axes: batch norm sees whole batches here, wherever the classes are; its optimizer
        moves the images once in an outer step, and the augmentation of its configuration is DSA's alone.
      chunks: How much is computed at once.
    """
    network, optimizer, config, mean, std, num_classes = problem
    settings = config.gradient
    default_outer, default_inner = loops(config.ipc)
    outer, inner = settings.outer or default_outer, settings.inner or default_inner
    augmentation = config.augment if config.method == "dsa" else AugmentConfig("none")
    recipe = training.Recipe(settings.learning_rate, 0.0, 0.0, settings.batch_size, augmentation)
    plan = training.make_plan(recipe, num_classes * config.ipc, max(1, (outer - 1) * inner))
    everyones = functools.partial(_gather, num_classes)

    def step(key, state, data, trained=None):
        network_key, key = jax.random.split(jax.random.fold_in(key, state.iteration))
        examples = _examples(everyones(state.images))
        learner = training.start(network, plan, network_key, examples)
        chex.assert_tree_shape_prefix(data.images, state.images.shape[:1])

        def advance(carry, i):
            images, optimizer_state, learner = carry
            match_key, train_key, statistics_key = jax.random.split(jax.random.fold_in(key, i), 3)
            if "batch_stats" in learner.variables:
                learner = learner._replace(variables=observe(statistics_key, learner.variables, data))

            def loss_and_gradient(images, real, count, index):
                return match(jax.random.fold_in(match_key, index), learner.variables, images, real, count, index)

            losses, gradients = map_classes(loss_and_gradient, chunks.classes, images, *data)
            updates, optimizer_state = jax.vmap(optimizer.update)(gradients, optimizer_state, images)
            images = optax.apply_updates(images, updates)
            learner = jax.lax.cond(i < outer - 1, lambda: train(train_key, learner, images), lambda: learner)
            return (images, optimizer_state, learner), losses

        carry = state.images, state.optimizer, learner
        (images, optimizer_state, _), losses = jax.lax.scan(advance, carry, jnp.arange(outer))
        return State(images, optimizer_state, state.iteration + 1), losses.mean(axis=0)

    def match(key, variables, synthetic, real, count, index):
        """The distance of the gradients of one class, and its derivative by the synthetic images."""
        sample_key, augment_key = jax.random.split(key)
        real, weights = real_batch(sample_key, real, count, config.batch_real)
        siamese = augment.sample(augment_key, augmentation, synthetic.shape[1:])
        of = functools.partial(class_gradient, network, variables, label=index)
        real = augment.apply(siamese, normalize(real, mean, std))
        target = jax.lax.stop_gradient(of(images=real, weights=weights, at_once=chunks.real))
        ones = jnp.broadcast_to(jnp.float32(count > 0), synthetic.shape[:1])  # 0 for a class that only pads

        def loss(synthetic):
            return distance(of(images=augment.apply(siamese, synthetic), weights=ones), target, settings.distance)

        value, gradient = jax.value_and_grad(loss)(synthetic)
        return value * ones[0], gradient * ones[0]

    def observe(key, variables, data):
        """Batch norm's running statistics after one more batch, of real images of all classes."""
        batch = lambda index, real, count: real_batch(jax.random.fold_in(key, index), real, count, _STATISTICS)  # noqa: E731
        images, weights = jax.vmap(batch)(data.index, data.images, data.count)
        images, weights = everyones(images), everyones(weights)
        images = normalize(images.reshape(-1, *images.shape[2:]), mean, std)
        _, new = network.apply(variables, images, train=True, weights=weights.reshape(-1), mutable=["batch_stats"])
        return {**variables, **new}

    def train(key, learner, images):
        """The network after `inner` more epochs on the synthetic images of all classes."""
        examples = _examples(everyones(images))
        one_step = functools.partial(training.step, network, recipe, plan.batch)
        body = lambda learner, _: (one_step(learner, key, examples, np.int32(plan.total + 1)), None)  # noqa: E731
        return jax.lax.scan(body, learner, None, length=inner * plan.per_epoch)[0]

    return step


def class_gradient(
    network: nn.Module,
    variables: Any,
    images: jax.Array,
    weights: jax.Array,
    label: jax.Array,
    at_once: int | None = None,
) -> Any:
    """Gradient by the parameters of the mean cross entropy of images of one class; running statistics stand still.

    Args:
      network: The network.
      variables: Its variables.
      images: float32 [n, H, W, D], normalised.
      weights: [n], 1 for an image and 0 for a filler.
      label: int32 scalar, of all images.
      at_once: How many images to treat at once; all where it is None.
    """

    def loss(params, images, weights):
        logits = network.apply({**variables, "params": params}, images, train=False)
        labels = jnp.full(len(images), label)
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights).sum()

    weights = weights / jnp.maximum(weights.sum(), 1)
    n = len(images)
    if at_once is None or at_once >= n:
        return jax.grad(loss)(variables["params"], images, weights)
    parts = -(-n // at_once)
    size = -(-n // parts)
    images = jnp.pad(images, [(0, parts * size - n)] + [(0, 0)] * 3).reshape(parts, size, *images.shape[1:])
    weights = jnp.pad(weights, (0, parts * size - n)).reshape(parts, size)

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.grad(loss)(variables["params"], *part)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, variables["params"]), (images, weights))[0]


def distance(synthetic: Any, real: Any, kind: str) -> jax.Array:
    """How far two gradients of the same parameters are apart.

    `ours`: the sum over layers and over their outputs of one minus the cosine (DC, section 3.3); biases and other
    vectors do not count. `mse`: the squared distance of the whole gradients. `cos`: one minus their cosine.
    """
    pairs = list(zip(jax.tree.leaves(synthetic), jax.tree.leaves(real), strict=True))
    if kind == "ours":
        return sum((_rows(a, b) for a, b in pairs if a.ndim > 1), jnp.float32(0))
    a, b = (jnp.concatenate([leaf.ravel() for leaf in leaves]) for leaves in zip(*pairs, strict=True))
    return jnp.sum((a - b) ** 2) if kind == "mse" else _one_minus_cosine(a[None], b[None])


def _rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """Rows are the outputs: the last axis of kernels, and of the scale and bias [H, W, D] of a layer norm."""
    return _one_minus_cosine(*(x.reshape(-1, x.shape[-1]).T for x in (a, b)))


def _one_minus_cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over rows [rows, n]. A row of zeros counts 1, and its gradient is zero instead of undefined."""
    squares = [(x**2).sum(axis=1) for x in (a, b)]
    lengths = [jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1)), 0) for s in squares]
    return (1 - (a * b).sum(axis=1) / (lengths[0] * lengths[1] + 1e-6)).sum()


def _gather(num_classes: int, share: jax.Array) -> jax.Array:
    """Of all devices, [C / devices, ...] -> [C, ...] without what pads the last share."""
    return jax.lax.all_gather(share, DEVICES, tiled=True)[:num_classes]


def _examples(images: jax.Array) -> training.Examples:
    """Normalised images [C, M, H, W, D] as a training set."""
    classes, each = images.shape[:2]
    labels = jnp.repeat(jnp.arange(classes, dtype=jnp.int32), each)
    flat = images.reshape(-1, *images.shape[2:])
    return training.Examples(
        flat, labels, np.zeros(images.shape[-1], np.float32), np.ones(images.shape[-1], np.float32)
    )
