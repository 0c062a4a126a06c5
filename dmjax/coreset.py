"""Real images chosen from the training set, as a baseline and as the start of condensing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dmjax import sampling
from dmjax.data import Dataset
from dmjax.errors import UserError


def random(dataset: Dataset, ipc: int, key: jax.Array) -> np.ndarray:
    """Draws `ipc` random training images of every class without replacement.

    Returns:
      uint8 [C, ipc, H, W, D].

    Raises:
      UserError: a class has fewer images.
    """
    check(dataset, ipc, "lower it, or start from noise with --init noise")
    keys = jax.random.split(key, dataset.num_classes)
    indices = np.asarray(_draw(keys, jnp.asarray(dataset.counts), dataset.images.shape[1], ipc))
    return np.stack([dataset.images[c][indices[c]] for c in range(dataset.num_classes)])


def check(dataset: Dataset, ipc: int, mend: str) -> None:
    """Raises a `UserError` that ends in `mend` if a class has fewer than `ipc` images."""
    smallest = int(np.argmin(dataset.counts))
    if ipc > dataset.counts[smallest]:
        raise UserError(
            f"ipc {ipc} asks for more images than class {dataset.class_names[smallest]!r} has "
            f"({dataset.counts[smallest]}); {mend}"
        )


@functools.partial(jax.jit, static_argnames=("size", "ipc"))
def _draw(keys, counts, size, ipc):
    return jax.vmap(lambda key, count: sampling.without_replacement(key, count, size, ipc)[0])(keys, counts)
