"""One condensation step, and many of them in one program: pure functions of (key, state, data).

Everything has the class axis in front, whatever the number of devices: `parallel` cuts that axis up, and the code
here sees only its share. All randomness of iteration i and class c is folded from the key, i and c, so that neither
the devices nor an interruption change a run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dmjax import augment, networks, sampling
from dmjax.config import Config
from dmjax.data import normalize
from dmjax.objectives import distribution

CLASSES, DEVICES = "classes", "devices"  # names of the mapped axes


class State(NamedTuple):
    """What a step changes.

    Attributes:
      images: float32 [C, M, H, W, D], the synthetic images, normalised.
      optimizer: State of the optimizer, one per class: every leaf is [C, ...].
      iteration: int32 scalar, steps done.
    """

    images: Any
    optimizer: Any
    iteration: Any


class ClassData(NamedTuple):
    """The real images of the classes at hand.

    Attributes:
      images: uint8 [C, N, H, W, D].
      count: int32 [C], how many of the N are images; 0 for a class that only pads the class axis.
      index: int32 [C], number of the class in the whole data set.
    """

    images: Any
    count: Any
    index: Any


class Chunks(NamedTuple):
    """How much is computed at once, which bounds memory and changes nothing else; None for all.

    Attributes:
      classes: Classes.
      real: Real images of a class.
      synthetic: Synthetic images of a class.
    """

    classes: int | None = None
    real: int | None = None
    synthetic: int | None = None


Program = Callable[..., tuple[State, jax.Array]]


def init_state(optimizer: optax.GradientTransformation, images: np.ndarray) -> State:
    """The state before the first step, from normalised images [C, M, H, W, D]."""
    return State(images, jax.vmap(optimizer.init)(images), np.int32(0))


def make_chunk(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    config: Config,
    mean: np.ndarray,
    std: np.ndarray,
    length: int,
    chunks: Chunks,
) -> Program:
    """Returns `(key, state, data, trained) -> (state, losses)`: `length` steps in one program; losses [length, C]."""

    def run(key, state, data, trained=None):
        return jax.lax.scan(lambda s, _: step(key, s, data, trained), state, None, length=length)

    step = make_step(network, optimizer, config, mean, std, chunks)
    return run


def make_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    config: Config,
    mean: np.ndarray,
    std: np.ndarray,
    chunks: Chunks,
) -> Program:
    """Returns `(key, state, data, trained) -> (state, losses [C])`: one iteration of Algorithm 1.

    The program's `trained` holds the variables of K trained networks, [K, ...] each, of which every step draws one
    (Table 4 of the paper); without it every step draws fresh parameters.

    Args:
      network: Embeds the images.
      optimizer: Of the synthetic images.
      config: For the batch size and the augmentation.
      mean: [D], of pixels / 255.
      std: [D], of pixels / 255.
      chunks: How much is computed at once.
    """

    def step(key, state, data, trained=None):
        network_key, key = jax.random.split(jax.random.fold_in(key, state.iteration))
        if trained is None:
            variables = networks.init(network, network_key, state.images.shape[2:])
        else:
            chosen = jax.random.randint(network_key, (), 0, len(jax.tree.leaves(trained)[0]))
            variables = jax.tree.map(lambda leaf: leaf[chosen], trained)

        def loss_and_gradient(images, real, count, index):
            class_key = jax.random.fold_in(key, index)
            return class_loss_and_gradient(class_key, variables, images, real, count)

        losses, gradients = map_classes(loss_and_gradient, chunks.classes, state.images, *data)
        updates, optimizer_state = jax.vmap(optimizer.update)(gradients, state.optimizer, state.images)
        return State(optax.apply_updates(state.images, updates), optimizer_state, state.iteration + 1), losses

    def class_loss_and_gradient(key, variables, synthetic, real, count):
        sample_key, augment_key = jax.random.split(key)
        size = real.shape[0]
        indices, real_weights = sampling.without_replacement(sample_key, count, size, min(config.batch_real, size))
        synthetic_weights = jnp.broadcast_to(jnp.float32(count > 0), synthetic.shape[:1])
        siamese = augment.sample(augment_key, config.augment, synthetic.shape[1:])
        real = augment.apply(siamese, normalize(real[indices], mean, std))

        def loss(synthetic):
            return distribution.class_loss(
                lambda images, weights: networks.embed(network, variables, images, weights),
                real,
                real_weights,
                augment.apply(siamese, synthetic),
                synthetic_weights,
                chunks.real,
                chunks.synthetic,
            )

        return jax.value_and_grad(loss)(synthetic)

    return step


def map_classes(function: Callable, at_once: int | None, *args: Any) -> Any:
    """Maps `function` over the leading class axis: `at_once` classes under `vmap`, one chunk after another.

    Only the chunk at hand has its activations in memory. None takes all classes at once, with the axis named, as
    batch norm over all classes needs it.
    """
    if at_once is None:
        return jax.vmap(function, axis_name=CLASSES)(*args)
    if at_once == 1:  # nothing to vectorise: plain convolutions are faster than vmapped ones on a CPU
        return jax.lax.map(lambda a: function(*a), args)
    return jax.lax.map(lambda a: function(*a), args, batch_size=at_once)
