"""What methods share that learn images by gradient descent: settings, state, start, update and finish."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax

from dmjax.config import Config, Count
from dmjax.data import Dataset, normalize, sampling
from dmjax.methods import optimizer
from dmjax.methods.base import Condensed, Method, Problem
from dmjax.methods.optimizer import OptimizerConfig


class ImageState(NamedTuple):
    """What an iteration changes.

    Attributes:
      images: float32 [C, M, H, W, D], the synthetic images, normalised.
      optimizer: State of the optimizer, one per class: every leaf is [C, ...].
    """

    images: Any
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class LearnedImages(Method):
    """A method that moves the synthetic images against a gradient; subclasses implement `step`."""

    state_axes: ClassVar[Any] = ImageState(0, 0)

    iterations: Count = 20_000  # type: ignore[misc]
    """How many iterations."""
    batch_real: Count = 256
    """Real images per class and iteration (all of a class that has fewer)."""
    init: Literal["real", "noise"] = "real"
    """Start from random real images of each class, or from Gaussian noise."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def default_learning_rate(self, config: Config) -> float:
        """The learning rate of the images where none is given."""
        return 1.0

    def resolve(self, config: Config) -> Self:
        """Fills in the learning rate; raises a `UserError` for an optimizer that optax does not have."""
        settings = optimizer.with_rate(self.optimizer, self.default_learning_rate(config))
        return dataclasses.replace(self, optimizer=settings)

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` where a class has too few real images to start from."""
        if self.init == "real":
            sampling.check_enough(dataset, config.ipc, f"{remedy}, or start from noise with --init noise")

    def start(self, problem: Problem, seed: int) -> ImageState:
        """Starts from random real images of each class, or from noise."""
        key, config = jax.random.fold_in(jax.random.key(seed), 0), problem.config
        shape = (problem.num_classes, config.ipc, *problem.image_shape)
        if self.init == "noise" or problem.dataset is None:
            return self.state_of(jax.random.normal(key, shape))
        self.check(config, problem.dataset)
        real = sampling.random_images(problem.dataset, config.ipc, key)
        return self.state_of(normalize(real, problem.mean, problem.std))

    def state_of(self, images: Any) -> ImageState:
        """The state before the first update of normalised images [C, M, H, W, D]."""
        return ImageState(images, jax.vmap(optimizer.create(self.optimizer).init)(images))

    def update(self, state: ImageState, gradients: jax.Array) -> ImageState:
        """Moves the images of every class by the optimizer, against gradients [C, M, H, W, D]."""
        of_class = functools.partial(optimizer.move, optimizer.create(self.optimizer))
        return ImageState(*jax.vmap(of_class)(state.images, gradients, state.optimizer))

    def finish(self, problem: Problem, state: ImageState) -> Condensed:
        """The images in units of pixels / 255, as they are: neither clipped nor rounded."""
        return Condensed(state.images * problem.std + problem.mean)
