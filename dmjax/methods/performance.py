"""What methods share that fit a model on the set and improve the set by the model's loss on real images.

The literature calls this performance matching: Dataset Distillation (`dd`), Label Distillation (`ld`) and Kernel
Inducing Points (`kip`) differ in the model and in how it is fitted. The model sees the images of all classes at once,
so that the set is the same on all devices; what is spread over them is the real batch. Every device computes the loss
and its derivative on the real images of its classes, and the derivatives are summed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dmjax.common.errors import UserError
from dmjax.config import Config, Count
from dmjax.data import Dataset, normalize, sampling
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.methods import optimizer
from dmjax.methods.base import DEVICES, ClassData, Method, Problem, in_chunks, real_batch
from dmjax.methods.optimizer import OptimizerConfig


class Targets(NamedTuple):
    """The part of the real batch that is on one device, as many images of each of its C' classes.

    Attributes:
      images: float32 [C' * b, H, W, D], normalised, class by class.
      labels: int32 [C' * b].
      weights: float32 [C' * b]. Over all devices they sum to 1, and each class weighs as much as it has images.
    """

    images: Any
    labels: Any
    weights: Any


@dataclasses.dataclass(frozen=True)
class PerformanceMatching(Method):
    """A method that improves a set by the loss of a model on real images; subclasses implement `start` and `step`.

    Its state is the same on all devices, whatever is in it. A real batch has equally many images of every class, where
    the authors of these methods (but of `kip`) draw from all classes together.
    """

    state_axes: ClassVar[Any] = None

    iterations: Count = 1000  # type: ignore[misc]
    """How many iterations."""
    batch_target: Count = 1024
    """Real images per iteration, of all classes together: equally many of each, at least one."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def default_learning_rate(self, config: Config) -> float:
        """The learning rate of what is learned where none is given."""
        return 1e-3

    def resolve(self, config: Config) -> Self:
        """Fills in the learning rate; raises a `UserError` for an optimizer that optax does not have."""
        settings = optimizer.with_rate(self.optimizer, self.default_learning_rate(config))
        return dataclasses.replace(self, optimizer=settings)

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` where a class has too few real images to start from."""
        sampling.check_enough(dataset, config.ipc, remedy)

    def random_real(self, problem: Problem, seed: int) -> jax.Array:
        """Random real images of every class, normalised, float32 [C, M, H, W, D]; noise where there are no data."""
        key, shape = first_key(seed), (problem.num_classes, problem.config.ipc, *problem.image_shape)
        if problem.dataset is None:
            return jax.random.normal(key, shape)
        self.check(problem.config, problem.dataset)
        real = sampling.random_images(problem.dataset, problem.config.ipc, key)
        return normalize(real, problem.mean, problem.std)

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer of what is learned."""
        return optimizer.create(self.optimizer)


def first_key(seed: int) -> jax.Array:
    """The key of the state before the first iteration."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def draw_targets(problem: Problem, key: jax.Array, data: ClassData, batch: int) -> Targets:
    """Draws the real batch, without replacement; how classes are spread over devices does not change it.

    Args:
      problem: What the method works on.
      key: PRNG key, the same on all devices.
      data: The real images of this device.
      batch: Images of all classes together, on all devices.
    """
    each = min(max(1, batch // problem.num_classes), data.images.shape[1])

    def draw(place):
        return real_batch(problem, jax.random.fold_in(key, data.index[place]), data, place, each)

    images, there = jax.vmap(draw)(jnp.arange(len(data.index)))
    share = data.count / over_devices(data.count.sum())
    weights = there / jnp.maximum(there.sum(axis=1, keepdims=True), 1) * share[:, None]
    images = normalize(images.reshape(-1, *images.shape[2:]), problem.mean, problem.std)
    return Targets(images, jnp.repeat(data.index, each), weights.reshape(-1))


def over_devices(tree: Any) -> Any:
    """Sums over the devices."""
    return jax.lax.psum(tree, DEVICES)


def weighted(targets: Targets, measure: Callable[[jax.Array, jax.Array], Any], at_once: int | None) -> Any:
    """What is measured of the real images of one device, times their weights.

    Args:
      targets: The real images.
      measure: Images [n, H, W, D] and labels [n] -> a tree of arrays [n], such as losses.
      at_once: How many images have their activations in memory; all where it is None.

    Returns:
      The tree, with arrays [C' * b], whose sum over all devices is a mean over images.
    """

    def part(images, labels, weights):
        return jax.tree.map(lambda values: values * weights, measure(images, labels))

    flat = lambda values: values.reshape(-1)[: len(targets.labels)]  # noqa: E731
    return jax.tree.map(flat, in_chunks(part, targets, at_once))


def by_class(problem: Problem, data: ClassData, losses: jax.Array) -> jax.Array:
    """Losses [C'] of the classes of one device, whose mean over all classes is the sum of the weighted losses."""
    return jax.lax.stop_gradient(losses.reshape(len(data.index), -1).sum(axis=1)) * problem.num_classes


def array_of(synthetic: SyntheticSet, name: str, shape: Sequence[int | None], kind: str) -> np.ndarray:
    """An array that a method has left in a set.

    Args:
      synthetic: The set.
      name: Of the array, in `extra`.
      shape: What its shape must be; None for a side of any length above 0.
      kind: What it must hold: "f" for floats, "i" for integers, "u" for unsigned ones.

    Raises:
      KeyError: it is not there.
      UserError: it has another shape or type.
    """
    array = np.asarray(synthetic.extra[name])
    fits = len(array.shape) == len(shape) and all(
        side > 0 if wanted is None else side == wanted for side, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind != kind:
        wanted = [side if side is not None else "any" for side in shape]
        raise UserError(
            f"{name} of the set is damaged: it is {array.dtype} {list(array.shape)}, and should be "
            f"{ {'f': 'floats', 'i': 'integers', 'u': 'unsigned integers'}[kind] } {wanted}"
        )
    return array


def flat_images(synthetic: SyntheticSet) -> jax.Array:
    """The images of a set as a model sees them: normalised, [C * M, H, W, D], class by class."""
    return normalize(synthetic.images, synthetic.mean, synthetic.std)
