"""Random choices among the images of a class: inside compiled code, and of whole small sets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dmjax.common.errors import UserError
from dmjax.data.dataset import Dataset, class_major


def without_replacement(key: jax.Array, count: jax.Array, size: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Draws `batch` distinct indices below `count` uniformly (all of them where `count` is smaller).

    Args:
      key: PRNG key.
      count: int32 scalar, how many of the `size` slots are occupied; the first ones are.
      size: Number of slots (static).
      batch: Number of indices (static, at most `size`).

    Returns:
      Indices int32 [batch], and weights float32 [batch]: 1 for an index below `count`, 0 for a filler.
    """
    slots = jnp.arange(size, dtype=jnp.int32)
    bits = jax.lax.bitcast_convert_type(jax.random.bits(key, (size,)) >> 1, jnp.int32)
    # Occupied slots carry a random number >= 0, the others -1: the largest `batch` are a uniform draw.
    _, indices = jax.lax.top_k(jnp.where(slots < count, bits, -1), batch)
    weights = (jnp.arange(batch, dtype=jnp.int32) < count).astype(jnp.float32)
    return indices, weights


def random_images(dataset: Dataset, per_class: int, key: jax.Array) -> np.ndarray:
    """Draws random training images of every class without replacement.

    Returns:
      uint8 [C, per_class, H, W, D].

    Raises:
      UserError: a class has fewer images.
    """
    check_enough(dataset, per_class, "lower it")
    keys = jax.random.split(key, dataset.num_classes)
    indices = np.asarray(_draw(keys, jnp.asarray(dataset.counts), dataset.images.shape[1], per_class))
    return np.stack([dataset.images[c][indices[c]] for c in range(dataset.num_classes)])


def check_enough(dataset: Dataset, per_class: int, remedy: str, factor: int = 1) -> None:
    """Raises a `UserError` that ends in `remedy` if a class has fewer than `per_class` training images.

    With a factor, each of them is filled with factor^2 images.
    """
    smallest = int(np.argmin(dataset.counts))
    if factor > 1 and per_class * factor**2 > dataset.counts[smallest]:
        raise UserError(
            f"{per_class * factor**2} images of each class are needed to fill {per_class} with {factor**2} each, and "
            f"class {dataset.class_names[smallest]!r} has {dataset.counts[smallest]}; {remedy}"
        )
    if per_class > dataset.counts[smallest]:
        raise UserError(
            f"ipc {per_class} asks for more images than class {dataset.class_names[smallest]!r} has "
            f"({dataset.counts[smallest]}); {remedy}"
        )


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """Takes a random fraction of the training images out, of all classes together.

    Returns:
      The data set without them, whose mean and std stay as they are; the images uint8 [n, H, W, D]; their labels.

    Raises:
      UserError: nothing would be held out, or a class would be left without images.
    """
    images, labels = dataset.flat()
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out, kept = np.split(order, [round(fraction * len(labels))])
    left = np.bincount(labels[kept], minlength=dataset.num_classes)
    if len(held_out) == 0 or left.min() == 0:
        raise UserError(
            f"data set {dataset.name!r} has too few training images ({len(labels)}, {dataset.counts.min()} of its "
            "smallest class) to hold some of them out for validation"
        )
    rest, counts = class_major(images[kept], labels[kept], dataset.num_classes)
    left_over = dataclasses.replace(dataset, images=rest, counts=counts, derived_from=None)
    return left_over, images[held_out], labels[held_out]


@functools.partial(jax.jit, static_argnames=("size", "per_class"))
def _draw(keys, counts, size, per_class):
    return jax.vmap(lambda key, count: without_replacement(key, count, size, per_class)[0])(keys, counts)
