"""Kernel Inducing Points: images learned by kernel regression, which trains no network (Nguyen et al. 2021).

Kernel ridge regression on the synthetic images predicts the labels of real ones in closed form, and the images (and
labels) move against the squared error. The kernel is that of a fully connected network of infinite width as gradient
descent trains it, the neural tangent kernel, or a Gaussian one.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmjax.common.errors import UserError
from dmjax.config import Config, Count, NamedFields, Positive, Range
from dmjax.data import Dataset, normalize, sampling
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import testing
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.testing import Tested
from dmjax.methods import optimizer, performance
from dmjax.methods.base import ClassData, Condensed, Problem
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.methods.performance import PerformanceMatching, first_key, over_devices

_WEIGHT, _BIAS = 2.0, 0.01  # variances of weights and biases of the network behind the tangent kernel
_SINGULAR = 1e-7  # smallest over largest eigenvalue: less is lost in float32


@dataclasses.dataclass(frozen=True)
class KernelConfig(NamedFields):
    """The kernel of the regression."""

    name: Literal["ntk", "rbf"] = "ntk"
    """ntk: neural tangent kernel of a fully connected relu network; rbf: exp(-gamma |x - x'|^2 / size of an image)."""
    hidden_layers: Annotated[int, Range(1, 3)] = 1
    """Of the network behind the tangent kernel."""
    gamma: Positive = 1.0
    """Of the Gaussian kernel."""
    ridge: Annotated[float, Range(0)] = 1e-6
    """Added to the diagonal, in units of its mean."""


class Support(NamedTuple):
    """What is learned.

    Attributes:
      images: float32 [C * M, H, W, D], normalised, class by class.
      labels: float32 [C * M, C], whose rows sum to 0 before they are learned.
    """

    images: Any
    labels: Any


class KIPState(NamedTuple):
    """What an iteration changes: images and labels, and the state of their optimizer."""

    support: Support
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class KIP(PerformanceMatching):
    """Kernel Inducing Points (Nguyen, Chen & Lee, ICLR 2021; arXiv 2011.00050), equation 4 and Algorithm 1.

    It computes in float32, where the authors' code takes float64, and does not augment real images.
    """

    name: ClassVar[str] = "kip"
    published_note: ClassVar[str | None] = (
        "none at these sizes with these kernels; the authors' notebook goes from 24.3 to 46.7 % on CIFAR-10 by kernel "
        "regression on 10 images per class, in 300 iterations with one hidden layer"
    )
    own_evaluation: ClassVar[str | None] = "kernel regression"
    own_evaluation_is_random: ClassVar[bool] = False

    iterations: Count = 1000  # type: ignore[misc]
    """How many iterations."""
    batch_target: Count = 5000
    """Real images per iteration, of all classes together: equally many of each, at least one."""
    kernel: KernelConfig = dataclasses.field(default_factory=KernelConfig)
    learn_labels: bool = False
    """Learn the labels too; networks are then trained on the nearest probabilities."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig("adam", None, ()))

    def default_learning_rate(self, config: Config) -> float:
        """0.04, that of the authors."""
        return 0.04

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` where a class has too few images to start from, or the kernel of these is singular."""
        super().check(config, dataset, remedy)
        real = sampling.random_images(dataset, config.ipc, first_key(config.seed))
        self._check_regular(jnp.asarray(normalize(real, dataset.mean, dataset.std)).reshape(-1, *dataset.image_shape))

    def start(self, problem: Problem, seed: int) -> KIPState:
        """Starts from random real images and centred one-hot labels; a `UserError` where their kernel is singular."""
        images = jnp.asarray(self.random_real(problem, seed)).reshape(-1, *problem.image_shape)
        support = Support(images, centred_labels(problem.num_classes, problem.config.ipc))
        if problem.dataset is not None:
            self._check_regular(images)
        return KIPState(support, self.transformation().init(support))

    def _check_regular(self, images: jax.Array) -> None:
        """Raises a `UserError` where the kernel of these images is singular."""
        values = np.linalg.eigvalsh(np.asarray(self._regularised(images), np.float64))
        if values[0] <= _SINGULAR * values[-1]:
            raise UserError(
                f"the {self.kernel.name} kernel of these {len(images)} images is singular (eigenvalues "
                f"{values[0]:.2g} to {values[-1]:.2g}; are two of them alike?); raise --kernel.ridge "
                f"(now {self.kernel.ridge:g}) or choose another --seed"
            )

    def step(
        self, problem: Problem, key: jax.Array, state: KIPState, data: ClassData, constants: Any
    ) -> tuple[KIPState, jax.Array]:
        """One update against `1/2 mean (y_t - K_ts (K_ss + ridge)^-1 y_s)^2`, the mean over targets and classes."""
        targets = performance.draw_targets(problem, key, data, self.batch_target)

        def loss(support):
            weights = self._fit(support)

            def of_images(images, labels):
                wanted = jax.nn.one_hot(labels, problem.num_classes) - 1 / problem.num_classes
                return 0.5 * ((wanted - self._kernel(images, support.images) @ weights) ** 2).mean(axis=1)

            losses = performance.weighted(targets, of_images, None)
            return losses.sum(), performance.by_class(problem, data, losses)

        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(state.support)
        if not self.learn_labels:
            gradients = gradients._replace(labels=jnp.zeros_like(gradients.labels))
        moved, optimizer_state = optimizer.move(
            self.transformation(), state.support, over_devices(gradients), state.optimizer
        )
        if not self.learn_labels:  # which a decay of weights would move
            moved = moved._replace(labels=state.support.labels)
        return KIPState(moved, optimizer_state), losses

    def finish(self, problem: Problem, state: KIPState) -> Condensed:
        """The images in units of pixels / 255; learned labels both as they are and as the nearest probabilities."""
        images = np.asarray(state.support.images).reshape(problem.num_classes, -1, *problem.image_shape)
        images, labels = images * problem.std + problem.mean, np.asarray(state.support.labels)
        soft = nearest_probabilities(labels + 1 / problem.num_classes) if self.learn_labels else None
        soft = None if soft is None else soft.reshape(problem.num_classes, -1, problem.num_classes)
        return Condensed(images, soft, extra={"regression_labels": labels})

    def test(self, problem: Problem, synthetic: SyntheticSet, examples: Examples, key: jax.Array) -> Tested:
        """Kernel regression, in which nothing is random."""
        shape = (len(synthetic.labels), problem.num_classes)
        labels = performance.array_of(synthetic, "regression_labels", shape, "f")
        support = Support(performance.flat_images(synthetic), jnp.asarray(labels))
        self._check_regular(support.images)

        @jax.jit
        def count(support, examples):
            weights = self._fit(support)
            return testing.count_correct(lambda images: self._kernel(images, support.images) @ weights, examples)

        return testing.tested(count(support, examples))

    def _fit(self, support: Support) -> jax.Array:
        """`(K_ss + ridge)^-1 y_s`, [C * M, C]."""
        factor = jax.scipy.linalg.cho_factor(self._regularised(support.images))
        return jax.scipy.linalg.cho_solve(factor, support.labels)

    def _regularised(self, images: jax.Array) -> jax.Array:
        kernel = self._kernel(images, images)
        diagonal = self.kernel.ridge * jnp.trace(kernel) / len(kernel)
        return (kernel + kernel.T) / 2 + diagonal * jnp.eye(len(kernel))

    def _kernel(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The kernel [n, m] of images [n, H, W, D] and [m, H, W, D]."""
        a, b = (images.reshape(len(images), -1) for images in (a, b))
        if self.kernel.name == "rbf":
            return gaussian(a, b, self.kernel.gamma)
        return tangent(a, b, self.kernel.hidden_layers)


def centred_labels(classes: int, per_class: int) -> jax.Array:
    """One-hot labels minus 1 / C, float32 [C * M, C]."""
    return jnp.repeat(jnp.eye(classes), per_class, axis=0) - 1 / classes


def gaussian(a: jax.Array, b: jax.Array, gamma: float) -> jax.Array:
    """`exp(-gamma |a - b|^2 / P)` for vectors [n, P] and [m, P]."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * _product(a, b)
    return jnp.exp(-gamma * jnp.maximum(squares, 0) / a.shape[1])


def tangent(a: jax.Array, b: jax.Array, hidden_layers: int) -> jax.Array:
    """The neural tangent kernel of a fully connected relu network (Jacot et al. 2018; Cho & Saul 2009 for relu).

    Weights are N(0, 2 / fan in) and biases N(0, 0.01), both in the parametrisation that has a limit of infinite width.

    Args:
      a: Vectors [n, P].
      b: Vectors [m, P].
      hidden_layers: How many.

    Returns:
      [n, m].
    """
    scaled = lambda product: _WEIGHT * product / a.shape[1] + _BIAS  # noqa: E731
    covariance = scaled(_product(a, b))
    of_a, of_b = scaled((a**2).sum(axis=1)), scaled((b**2).sum(axis=1))
    kernel = covariance
    for _ in range(hidden_layers):
        scale = jnp.sqrt(of_a[:, None] * of_b[None])
        # The arc cosine has an infinite derivative where both vectors are the same, the arc tangent has not.
        square = scale**2 - covariance**2
        apart = square > 1e-6 * scale**2
        sine = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)
        angle = jnp.arctan2(sine, covariance)
        active = (jnp.pi - angle) / (2 * jnp.pi)  # expected product of the derivatives of relu
        covariance = _WEIGHT * (sine / (2 * jnp.pi) + active * covariance) + _BIAS
        kernel = covariance + _WEIGHT * active * kernel
        of_a, of_b = (_WEIGHT * variance / 2 + _BIAS for variance in (of_a, of_b))
    return kernel


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def nearest_probabilities(values: np.ndarray) -> np.ndarray:
    """The points of the simplex nearest to the rows of [n, C] (Duchi et al. 2008, Figure 1), float32."""
    ordered = -np.sort(-values.astype(np.float64), axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, values.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    return np.maximum(values - excess[np.arange(len(values)), last, None], 0).astype(np.float32)
