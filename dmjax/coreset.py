"""Real images chosen from the training set: random, herding, k-center, forgetting (Zhao & Bilen, section 3.1).

Random images are also the start of condensing. The others look at a network trained on the whole set (`pretrained`):
at its features, or at what it forgot while it was trained.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dmjax import networks, pretrained, sampling, training
from dmjax.config import Config
from dmjax.data import Dataset
from dmjax.errors import UserError


def select(config: Config, dataset: Dataset) -> tuple[np.ndarray, float]:
    """The images of a coreset by `config.method`, in the order in which they were chosen.

    Returns:
      uint8 [C, ipc, H, W, D], and the seconds that training the network for it took, in this run or an earlier one.

    Raises:
      UserError: a class has fewer images, or the networks that are needed cannot be had.
    """
    check_method(config, dataset)
    if config.method == "random":
        return random(dataset, config.ipc, jax.random.fold_in(jax.random.key(config.seed), 0)), 0.0
    last = network(config, dataset)
    if config.method == "forgetting":
        indices = most_forgotten(last.forgotten(), dataset.counts, config.ipc)
    else:
        rule = {"herding": herding, "kcenter": k_center}[config.method]
        indices = _by_features(rule, config, dataset, last)
    return np.stack([dataset.images[c][chosen] for c, chosen in enumerate(indices)]), last.seconds


def network(config: Config, dataset: Dataset) -> pretrained.State:
    """The trained network that a coreset is chosen by: seeds take `pretrained.networks` different ones, in turn."""
    index = config.seed % config.pretrained.networks
    needed = dataclasses.replace(config.pretrained, networks=index + 1)
    return pretrained.states(dataclasses.replace(config, pretrained=needed), dataset)[index][-1]


def check_method(config: Config, dataset: Dataset, mend: str = "lower it") -> None:
    """Raises a `UserError` that ends in `mend` where the method of a configuration has too few images of a class."""
    check(dataset, config.ipc, mend)
    if config.method == "forgetting":  # knows those only that its network was trained on
        trained_on = pretrained.trained_on(config, dataset)
        smallest = int(np.argmin(trained_on))
        if config.ipc > trained_on[smallest]:
            raise UserError(
                f"ipc {config.ipc} asks for more images than the network is trained on of class "
                f"{dataset.class_names[smallest]!r} ({trained_on[smallest]}); {mend}, or --pretrained.holdout"
            )


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


@functools.partial(jax.jit, static_argnames=("ipc",))
def herding(features: jax.Array, count: jax.Array, ipc: int) -> jax.Array:
    """Images whose running mean stays closest to the mean of the class (Welling 2009; Rebuffi et al. 2017).

    The i-th choice minimises `|| mu (i + 1) - sum of the chosen - f_j ||` over the images j not chosen before.

    Args:
      features: float32 [N, F], of which the first `count` are those of images.
      count: int32 scalar, at least `ipc`.
      ipc: How many to choose.

    Returns:
      int32 [ipc], in the order of choice.
    """
    there = jnp.arange(len(features)) < count
    mean = jnp.where(there[:, None], features, 0).sum(0) / count.astype(jnp.float32)
    square = (features**2).sum(1)

    def choose(carry, i):
        free, total = carry
        target = mean * (i + 1) - total
        # |target|^2 is the same for all
        chosen = jnp.argmin(jnp.where(free, square - 2 * features @ target, jnp.inf)).astype(jnp.int32)
        return (free.at[chosen].set(False), total + features[chosen]), chosen

    return jax.lax.scan(choose, (there, jnp.zeros_like(mean)), jnp.arange(ipc, dtype=jnp.float32))[1]


@functools.partial(jax.jit, static_argnames=("ipc",))
def k_center(features: jax.Array, count: jax.Array, ipc: int) -> jax.Array:
    """The image nearest the class mean, then again and again the one farthest from its nearest centre.

    Sener & Savarese 2018. Arguments and result are those of `herding`.
    """
    there = jnp.arange(len(features)) < count
    mean = jnp.where(there[:, None], features, 0).sum(0) / count.astype(jnp.float32)

    def distances(point):
        return jnp.where(there, ((features - point[None]) ** 2).sum(1), -1)

    first = jnp.argmin(jnp.where(there, distances(mean), jnp.inf)).astype(jnp.int32)

    def choose(nearest, _):
        chosen = jnp.argmax(nearest).astype(jnp.int32)
        return jnp.minimum(nearest, distances(features[chosen])).at[chosen].set(-1), chosen

    rest = jax.lax.scan(choose, distances(features[first]).at[first].set(-1), None, length=ipc - 1)[1]
    return jnp.concatenate([first[None], rest])


def most_forgotten(forgotten: np.ndarray, counts: np.ndarray, ipc: int) -> np.ndarray:
    """The images of every class that a network unlearned most often while it was trained (Toneva et al. 2019).

    Args:
      forgotten: int32 [sum of counts], class by class; below 0 for images that it was not trained on.
      counts: int32 [C].
      ipc: How many to choose; of equals the first.

    Returns:
      int32 [C, ipc].
    """
    classes = np.split(forgotten, np.cumsum(counts)[:-1])
    return np.stack([np.argsort(-of_class, kind="stable")[:ipc] for of_class in classes])


def _by_features(rule: Callable, config: Config, dataset: Dataset, state: pretrained.State) -> list[np.ndarray]:
    """The choice of a rule in every class; one class at a time has its features in memory."""
    network = networks.create(config.network, dataset.num_classes, dataset.image_shape)
    variables, most = state.load(), dataset.images.shape[1]
    chosen = []
    for c, count in enumerate(dataset.counts):
        features = training.features(network, variables, dataset.images[c, :count], dataset.mean, dataset.std)
        features = np.pad(features, ((0, most - count), (0, 0)))  # so that one program serves all classes
        chosen.append(np.asarray(rule(features, np.int32(count), config.ipc)))
    return chosen


@functools.partial(jax.jit, static_argnames=("size", "ipc"))
def _draw(keys, counts, size, ipc):
    return jax.vmap(lambda key, count: sampling.without_replacement(key, count, size, ipc)[0])(keys, counts)
