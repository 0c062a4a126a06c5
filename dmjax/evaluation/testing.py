"""What a trained network makes of images: how many it classifies correctly, their features, labels for them."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmjax.common import backend
from dmjax.data import normalize
from dmjax.evaluation import mixing
from dmjax.evaluation.on_device import TEST_BATCH, Examples

# Pixels of the images whose activations stay in the cache of a CPU: 16 images of 32x32.
_CPU_PIXELS_AT_ONCE = 2**14


class Tested(NamedTuple):
    """How well one network, or another classifier, does on the test images.

    Attributes:
      accuracy: Fraction of the images whose class has the highest score.
      top5: Fraction of the images whose class is among the five with the highest scores.
      best: The highest accuracy over moments of the training, chosen on the test images; None where it is not measured.
    """

    accuracy: float
    top5: float
    best: float | None = None


def accuracy(network: nn.Module, variables: Any, examples: Examples) -> float:
    """Fraction of the images of `place_test` that the network classifies correctly."""
    return test(network, variables, examples).accuracy


def test(network: nn.Module, variables: Any, examples: Examples) -> Tested:
    """Tests a network on what `place_test` has placed."""
    return tested(_count(network, variables, examples))


def tested(counts: tuple[jax.Array, jax.Array]) -> Tested:
    """Fractions from what `count_correct` returns."""
    correct, total = jax.device_get(counts)
    return Tested(*(float(n) / float(total) for n in correct))


@functools.partial(jax.jit, static_argnames=("network",))
def _count(network, variables, examples):
    batch, pixels = TEST_BATCH, math.prod(examples.images.shape[1:3])
    while backend.current() == "cpu" and batch > 1 and batch * pixels > _CPU_PIXELS_AT_ONCE:
        batch //= 2
    return count_correct(lambda images: network.apply(variables, images), examples, batch)


def count_correct(
    scores: Callable[[jax.Array], jax.Array], examples: Examples, batch: int = TEST_BATCH
) -> tuple[jax.Array, jax.Array]:
    """Counts what a classifier gets right among images of `place_test`, for use inside compiled code.

    Args:
      scores: Normalised images [n, H, W, D] -> scores [n, C], such as logits.
      examples: The test images.
      batch: Images at a time; a divisor of 256, since they are padded to a multiple of that.

    Returns:
      int32 [2], the images that are right by the highest score and by the five highest, and how many images there are.
    """

    def body(correct, some):
        images, labels = some
        given = scores(normalize(images, examples.mean, examples.std))
        of_class = jnp.take_along_axis(given, jnp.maximum(labels, 0)[:, None], axis=1)
        better = (given > of_class).sum(axis=1)
        right = jnp.stack([given.argmax(axis=-1) == labels, (better < 5) & (labels >= 0)])
        return correct + right.sum(axis=1), None

    batches = jax.tree.map(lambda x: x.reshape(-1, batch, *x.shape[1:]), (examples.images, examples.labels))
    return jax.lax.scan(body, jnp.zeros(2, jnp.int32), batches)[0], (examples.labels >= 0).sum()


def features(network: nn.Module, variables: Any, images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Features float32 [n, F] of images [n, H, W, D] (as in `Examples`) in a trained network, on the host."""
    parts = [
        _features(network, variables, images[i : i + TEST_BATCH], mean, std) for i in range(0, len(images), TEST_BATCH)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


@functools.partial(jax.jit, static_argnames=("network",))
def _features(network, variables, images, mean, std):
    return network.apply(variables, normalize(images, mean, std), train=False, method="embed").astype(jnp.float32)


def teach(network: nn.Module, teachers: Any, examples: Examples, temperature: float) -> jax.Array:
    """Soft labels [n, C] of images as they are, by trained networks (`mixing.teach`)."""
    images, moments = examples.images, (examples.mean, examples.std)
    parts = [images[i : i + TEST_BATCH] for i in range(0, len(images), TEST_BATCH)]
    return jnp.concatenate([_teach(network, teachers, part, *moments, temperature) for part in parts])


@functools.partial(jax.jit, static_argnames=("network", "temperature"))
def _teach(network, teachers, images, mean, std, temperature):
    return mixing.teach(network, teachers, normalize(images, mean, std), temperature)
