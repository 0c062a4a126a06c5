"""Coresets: real images chosen from the training set (Zhao & Bilen, section 3.1). They need no iterations.

All but random ones look at a network that was trained on the whole set: at its features, or at what it forgot while it
was trained. Seeds take the configured number of trained networks in turn, so that their sets differ.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.data import Dataset, sampling
from dmjax.evaluation import pretrained, testing
from dmjax.methods.base import Condensed, Method, Problem


@dataclasses.dataclass(frozen=True)
class Coreset(Method):
    """A method that chooses real images; its state is the images uint8 [C, M, H, W, D], in the order of choice."""

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` where a class has fewer images than are to be chosen."""
        sampling.check_enough(dataset, config.ipc, remedy)

    def start(self, problem: Problem, seed: int) -> np.ndarray:
        """The chosen images."""
        assert problem.dataset is not None, "coresets are chosen from a data set"
        self.check(problem.config, problem.dataset)
        return self.choose(problem, problem.dataset, seed)

    def choose(self, problem: Problem, dataset: Dataset, seed: int) -> np.ndarray:
        """Returns the images of every class, uint8 [C, M, H, W, D]."""
        assert problem.trained is not None, "there are no trained networks without a data set"
        indices = self.choose_by(problem, dataset, problem.trained.last_of(seed))
        return np.stack([dataset.images[c][chosen] for c, chosen in enumerate(indices)])

    def choose_by(self, problem: Problem, dataset: Dataset, network: pretrained.State) -> Any:
        """Returns the numbers of the chosen images of every class, [C] arrays [M], by a trained network."""
        raise TypeError(f"{type(self).__name__} has no choose_by(problem, dataset, network)")

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """Batches of 256, as where DM's authors train the networks that they choose images by.

        And 5 epochs, by which herding and k-center reached what is published for 10 images per class, with a network of
        width 32 (`experiments/coreset_networks.py`).
        """
        return {**super().pretraining(config), "batch_size": 256, "epochs": 5}

    def uses_trained_networks(self) -> bool:
        """Whether a network that was trained on the whole set is looked at."""
        return True

    def finish(self, problem: Problem, state: np.ndarray) -> Condensed:
        """The images as they are."""
        return Condensed(state)


@dataclasses.dataclass(frozen=True)
class Random(Coreset):
    """Random real images of every class."""

    name: ClassVar[str] = "random"
    # From Table 1 of Zhao & Bilen 2023; FashionMNIST, and MNIST at 1 and 50, as later papers repeat them.
    published: ClassVar[Any] = {
        "mnist": (64.9, 95.1, 97.9),
        "fashion_mnist": (51.4, 73.8, 82.5),
        "cifar10": (14.4, 26.0, 43.4),
        "cifar100": (4.2, 14.6, 30.0),
        "tiny_imagenet": (1.4, 5.0, 15.0),
    }
    bound: ClassVar[str | None] = "lower"

    def choose(self, problem: Problem, dataset: Dataset, seed: int) -> np.ndarray:
        """Draws without replacement."""
        key = jax.random.fold_in(jax.random.key(seed), 0)
        return sampling.random_images(dataset, problem.config.ipc, key)

    def uses_trained_networks(self) -> bool:
        """No network is looked at."""
        return False

    def separates_classes(self, config: Config) -> bool:
        """Every class is drawn from on its own."""
        return True


@dataclasses.dataclass(frozen=True)
class Herding(Coreset):
    """Images whose running mean stays closest to the mean of the class (Welling 2009; Rebuffi et al. 2017)."""

    name: ClassVar[str] = "herding"
    # From Table 1 of Zhao & Bilen 2023; FashionMNIST, and MNIST at 1 and 50, as later papers repeat them.
    published: ClassVar[Any] = {
        "mnist": (89.2, 93.7, 94.8),
        "fashion_mnist": (67.0, 71.1, 71.9),
        "cifar10": (21.5, 31.6, 40.4),
        "cifar100": (8.4, 17.3, 33.7),
        "tiny_imagenet": (2.8, 6.3, 16.7),
    }

    def choose_by(self, problem: Problem, dataset: Dataset, network: pretrained.State) -> list[np.ndarray]:
        """Chooses by the features of a trained network."""
        return _by_features(herding, problem, dataset, network)


@dataclasses.dataclass(frozen=True)
class KCenter(Coreset):
    """The image nearest the class mean, then those farthest from their nearest centre (Sener & Savarese 2018)."""

    name: ClassVar[str] = "kcenter"
    # As later papers repeat them.
    published: ClassVar[Any] = {
        "fashion_mnist": (66.9, 54.7, 68.3),
        "cifar10": (21.5, 14.7, 27.0),
        "cifar100": (8.3, 7.1, 30.5),
    }

    def choose_by(self, problem: Problem, dataset: Dataset, network: pretrained.State) -> list[np.ndarray]:
        """Chooses by the features of a trained network."""
        return _by_features(k_center, problem, dataset, network)


@dataclasses.dataclass(frozen=True)
class Forgetting(Coreset):
    """The images that a network unlearned most often while it was trained (Toneva et al. 2019)."""

    name: ClassVar[str] = "forgetting"
    # From Table 1 of Zhao & Bilen 2023; FashionMNIST and SVHN as the authors' repository and later papers have them.
    published: ClassVar[Any] = {
        "mnist": (35.5, 68.1, 88.2),
        "cifar10": (13.5, 23.3, 23.3),
        "cifar100": (4.5, 15.1, 30.5),
        "tiny_imagenet": (1.6, 5.1, 15.0),
    }

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """20 epochs, over which it is counted how often a network unlearns an image."""
        return {**super().pretraining(config), "epochs": 20}

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` where the network was trained on fewer images of a class than are to be chosen."""
        super().check(config, dataset, remedy)
        trained_on = pretrained.trained_on(config, dataset)
        smallest = int(np.argmin(trained_on))
        if config.ipc > trained_on[smallest]:
            raise UserError(
                f"ipc {config.ipc} asks for more images than the network is trained on of class "
                f"{dataset.class_names[smallest]!r} ({trained_on[smallest]}); {remedy}, or --pretrained.holdout"
            )

    def choose_by(self, problem: Problem, dataset: Dataset, network: pretrained.State) -> np.ndarray:
        """Chooses by the forgetting events of the training."""
        return most_forgotten(network.forgotten(), dataset.counts, problem.config.ipc)


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


def _by_features(rule: Callable, problem: Problem, dataset: Dataset, network: pretrained.State) -> list[np.ndarray]:
    """The choice of a rule in every class; one class at a time has its features in memory."""
    variables, most = network.load(), dataset.images.shape[1]
    chosen = []
    for c, count in enumerate(dataset.counts):
        images = dataset.images[c, :count]
        features = testing.features(problem.network, variables, images, dataset.mean, dataset.std)
        features = np.pad(features, ((0, most - count), (0, 0)))  # so that one program serves all classes
        chosen.append(np.asarray(rule(features, np.int32(count), problem.config.ipc)))
    return chosen
