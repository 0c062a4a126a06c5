"""What the iterations of all methods share: state, real images, chunks of classes; and many of them as one program.

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

from dmjax import sampling
from dmjax.config import Config

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


class Problem(NamedTuple):
    """What an iteration is made from; it does not change in a run.

    Attributes:
      network: Embeds or classifies the images; its parameters are drawn anew in every iteration.
      optimizer: Of the synthetic images.
      config: Of the run.
      mean: float32 [D], of pixels / 255.
      std: float32 [D], of pixels / 255.
      num_classes: C, of all devices together.
    """

    network: nn.Module
    optimizer: optax.GradientTransformation
    config: Config
    mean: np.ndarray
    std: np.ndarray
    num_classes: int


Step = Callable[..., tuple[State, jax.Array]]
"""`(key, state, data, trained) -> (state, losses [C])`: one iteration of a method.

`trained` holds the variables of K trained networks, [K, ...] each; it is left out where parameters are drawn afresh.
"""

Chunk = Callable[..., tuple[list[State], jax.Array]]
"""`(keys [R], R states, data, trained) -> (R states, losses [R, length, C])`: many iterations of R runs."""


def init_state(optimizer: optax.GradientTransformation, images: np.ndarray) -> State:
    """The state before the first step, from normalised images [C, M, H, W, D]."""
    return State(images, jax.vmap(optimizer.init)(images), np.int32(0))


def make_chunk(step: Step, length: int) -> Chunk:
    """Returns `length` iterations of independent runs as one program, in which they share the real images.

    One run after the other, so that each computes what it computes alone: under `vmap` the networks of several runs
    would become grouped convolutions, which are slower on a CPU. On an accelerator neither is measured.
    """

    def chunk(keys, states, data, trained=None):
        def one_run(of_run):
            key, state = of_run
            return jax.lax.scan(lambda s, _: step(key, s, data, trained), state, None, length=length)

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        stacked, losses = jax.lax.map(one_run, (keys, stacked))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(states))], losses

    return chunk


def real_batch(key: jax.Array, images: jax.Array, count: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
    """Draws a class's real batch without replacement: uint8 [B, H, W, D], and weights [B] that are 0 for fillers.

    Args:
      key: PRNG key.
      images: uint8 [N, H, W, D], of which the first `count` are images.
      count: int32 scalar.
      batch: How many; all where the class has fewer.
    """
    size = images.shape[0]
    indices, weights = sampling.without_replacement(key, count, size, min(batch, size))
    return images[indices], weights


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
