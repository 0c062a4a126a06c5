"""Training a network from scratch on arrays, by a recipe (`dmjax.evaluation.recipe`).

By default: SGD with momentum and weight decay on all parameters, one augmentation group per batch with parameters per
image, a learning rate that drops to a tenth after the middle epoch (where the momentum is cleared too, as in the
authors' code). Of E epochs the drop comes after E // 2 + 1. The authors' loop runs one epoch more, and drops the rate
after E // 2 + 2.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dmjax import networks
from dmjax.common import backend, signals
from dmjax.data import augment, normalize
from dmjax.evaluation import mixing
from dmjax.evaluation import recipe as recipes
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.recipe import Plan as Plan
from dmjax.evaluation.recipe import Recipe as Recipe
from dmjax.evaluation.recipe import make_plan as make_plan
from dmjax.evaluation.recipe import make_recipe as make_recipe

# Images per dispatch: long enough to hide the host, short enough for progress and signals on a slow machine.
_IMAGES_PER_DISPATCH = 4096
# Pixels of the images whose activations stay in the cache of a CPU: 8 images of 32x32.
_CPU_PIXELS_AT_ONCE = 2**13


class TrainState(NamedTuple):
    """What a training step changes.

    Attributes:
      variables: Of the network.
      momentum: Of the optimizer; with AdamW its two moments.
      order: int32 [n'], the epoch's order of the images, padded to whole batches.
      step: int32 scalar, steps done.
      correct: bool [n], whether an image was classified correctly when it was last trained on.
      forgotten: int32 [n], how often that went from true to false (Toneva et al. 2019).
    """

    variables: Any
    momentum: Any
    order: jax.Array
    step: jax.Array
    correct: jax.Array
    forgotten: jax.Array


def train(
    network: nn.Module,
    recipe: Recipe,
    key: jax.Array,
    examples: Examples,
    epochs: int,
    on_progress: Callable[[int], None] = lambda steps: None,
    teachers: Any = None,
) -> Any:
    """Trains a freshly initialised network and returns its variables.

    Args:
      network: Module with `__call__(x, train, weights)`.
      recipe: How it is trained.
      key: Of initialisation, order and augmentation.
      examples: The training set.
      epochs: Passes over it.
      on_progress: Called with the number of steps done since the last call.
      teachers: Variables of trained networks, [K, ...] each, where they label every view; None for labels of the set.
    """
    plan = make_plan(recipe, len(examples.labels), epochs)
    state = start(network, plan, key, examples)
    return advance(network, recipe, plan, state, key, examples, plan.total, on_progress, teachers).variables


def start(network: nn.Module, plan: Plan, key: jax.Array, examples: Examples) -> TrainState:
    """The state before the first step of a freshly initialised network."""
    variables = _variables(network, key, examples.images.shape[1:])
    return _start(variables, len(examples.labels), plan.batch * plan.per_epoch, plan.moments)


def advance(
    network: nn.Module,
    recipe: Recipe,
    plan: Plan,
    state: TrainState,
    key: jax.Array,
    examples: Examples,
    until: int,
    on_progress: Callable[[int], None] = lambda steps: None,
    teachers: Any = None,
) -> TrainState:
    """Trains up to step `until` of the plan; the state that is passed in is donated. The rest as for `train`.

    With keys [N], and a state that `join` made of N, it trains N networks as one program.
    """
    run = _run if key.ndim == 0 else _run_together
    length = min(plan.total, steps_per_dispatch(plan.batch))
    done, drops = int(state.step), np.array(plan.drops, np.int32)
    while done < until:
        state = run(network, recipe, length, plan.batch, state, key, examples, np.int32(until), drops, teachers)
        jax.block_until_ready(state.step)
        on_progress(min(length, until - done))
        done = min(done + length, until)
        signals.check()
    return state


def steps_per_dispatch(batch: int) -> int:
    """Training steps of one program, for batches of this size."""
    return max(1, _IMAGES_PER_DISPATCH // batch)


@functools.partial(jax.jit, static_argnames=("network", "image_shape"))
def _variables(network, key, image_shape):
    """A program of its own, which serves sets of any size."""
    return networks.init(network, jax.random.fold_in(key, 0), image_shape)


@functools.partial(jax.jit, static_argnames=("n", "padded", "moments"))
def _start(variables, n, padded, moments):
    momentum = recipes.start_moments(variables["params"], moments)
    order, forgotten = jnp.zeros((padded,), jnp.int32), jnp.zeros((n,), jnp.int32)
    return TrainState(variables, momentum, order, jnp.int32(0), jnp.zeros((n,), bool), forgotten)


@functools.partial(jax.jit, static_argnames=("network", "recipe", "length", "batch"), donate_argnames=("state",))
def _run(network, recipe, length, batch, state, key, examples, until, drops, teachers):
    """Advances by `length` steps, or up to step `until`: one program for any number of epochs."""

    def body(state, _):
        given = {"key": key, "examples": examples, "drops": drops, "teachers": teachers}
        one_step = functools.partial(step, network, recipe, batch, **given)
        return jax.lax.cond(state.step < until, one_step, lambda s: s, state), None

    return jax.lax.scan(body, state, None, length=length)[0]


def join(states: Sequence[TrainState]) -> TrainState:
    """The state of N networks at the same step, [N, ...] but for `step`, which is one for all."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state._replace(step=None) for state in states))
    return stacked._replace(step=states[0].step)


def part(state: TrainState, index: int) -> TrainState:
    """The state of one of the networks that `join` put together."""
    return jax.tree.map(lambda leaf: leaf[index], state._replace(step=None))._replace(step=state.step)


@functools.partial(jax.jit, static_argnames=("network", "recipe", "length", "batch"), donate_argnames=("state",))
def _run_together(network, recipe, length, batch, state, key, *rest):
    # With one step for all of them, what depends on it alone is not computed for nothing.
    axes = TrainState(0, 0, 0, None, 0, 0)  # type: ignore[arg-type]
    one = functools.partial(_run, network, recipe, length, batch)
    return jax.vmap(lambda state, key: one(state, key, *rest), in_axes=(axes, 0), out_axes=axes)(state, key)


def step(
    network: nn.Module,
    recipe: Recipe,
    batch: int,
    state: TrainState,
    key: jax.Array,
    examples: Examples,
    drops: Any,
    teachers: Any = None,
) -> TrainState:
    """One training step, for use inside compiled code.

    Args:
      network: As for `train`.
      recipe: How it is trained.
      batch: Images per step.
      state: Before the step.
      key: As for `train`.
      examples: The training set.
      drops: int32 scalar or [K], the first steps at lower learning rates.
      teachers: As for `train`.
    """
    n, padded = len(examples.labels), len(state.order)
    per_epoch = padded // batch
    epoch, position = state.step // per_epoch, state.step % per_epoch
    order_key, augment_key = jax.random.split(jax.random.fold_in(key, 1))

    def shuffle(_):
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), n).astype(jnp.int32)
        return jnp.pad(order, (0, padded - n))

    order = jax.lax.cond(position == 0, shuffle, lambda order: order, state.order)
    chosen = jax.lax.dynamic_slice(order, (position * batch,), (batch,))
    weights = (position * batch + jnp.arange(batch) < n).astype(jnp.float32)
    images = normalize(examples.images[chosen], examples.mean, examples.std)
    if recipe.resized_crop:
        images = augment.crop_and_resize(_step_key(key, 3, state.step), images, recipe.resized_crop)
    draws = augment.sample_each(jax.random.fold_in(augment_key, state.step), recipe.augment, images.shape[1:], batch)
    images = augment.apply_each(draws, images, networks.augmenting_precision(network))
    labels = examples.labels[chosen]
    if recipe.cutmix or recipe.mixup:
        labels = _soft(labels, jax.eval_shape(network.apply, state.variables, images).shape[-1])
        images, labels = mixing.mix(_step_key(key, 2, state.step), recipe, images, labels, weights)
    if teachers is not None:
        labels = mixing.teach(network, teachers, images, recipe.temperature)

    count = weights.sum()

    def loss(params, images, labels, weights):
        variables = {**state.variables, "params": params}
        # Batch norm counts images by these weights, so that they are 0 or 1 and do not sum to 1.
        logits, new = network.apply(variables, images, train=True, weights=weights, mutable=["batch_stats"])
        correct = logits.argmax(axis=-1) == _hard(labels)
        return (_cross_entropy(logits, labels) * (weights / count)).sum(), (new, correct)

    params = state.variables["params"]
    batch_args = images, labels, weights
    gradients, (new_variables, correct) = _gradient(
        jax.grad(loss, has_aux=True), params, batch_args, "batch_stats" in state.variables
    )
    drops = jnp.atleast_1d(drops)
    params, momentum = recipes.update(recipe, state.step, drops, params, state.momentum, gradients)
    place = jnp.where(weights > 0, chosen, n)  # what pads a batch is dropped
    unlearned = (state.correct[chosen] & ~correct).astype(jnp.int32)
    forgotten = state.forgotten.at[place].add(unlearned, mode="drop")
    correct = state.correct.at[place].set(correct, mode="drop")
    return TrainState({**new_variables, "params": params}, momentum, order, state.step + 1, correct, forgotten)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy [n] of logits [n, C] and labels that are classes [n] or soft, [n, C]."""
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, labels)


def _step_key(key: jax.Array, purpose: int, step: jax.Array) -> jax.Array:
    """The key of one step; purpose 0 is the initialisation, and 1 order and augmentation."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), step)


def _soft(labels: jax.Array, classes: int) -> jax.Array:
    """Labels as distributions [n, C]."""
    return jax.nn.one_hot(labels, classes) if labels.ndim == 1 else labels


def _hard(labels: jax.Array) -> jax.Array:
    return labels if labels.ndim == 1 else labels.argmax(axis=-1)


def _gradient(gradient, params, batch, whole):
    """Gradient of a sum over a batch. On a CPU a few images at a time, whose activations stay in the cache."""
    n, at_once = len(batch[0]), max(1, _CPU_PIXELS_AT_ONCE // math.prod(batch[0].shape[1:3]))
    if whole or backend.current() != "cpu" or n <= at_once:
        return gradient(params, *batch)
    parts = -(-n // at_once)
    size = -(-n // parts)  # as even as possible; what is padded has no weight

    def split(x):
        return jnp.pad(x, [(0, parts * size - n)] + [(0, 0)] * (x.ndim - 1)).reshape(parts, size, *x.shape[1:])

    def body(total, part):
        more, new = gradient(params, *part)
        return jax.tree.map(jnp.add, total, more), new

    total, (new, correct) = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), jax.tree.map(split, batch))
    return total, (new, correct.reshape(-1)[:n])
