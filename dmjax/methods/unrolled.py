"""Dataset Distillation: images and step sizes learned through the few training steps that use them (Wang et al. 2018).

An iteration draws a network, trains it by gradient descent on the synthetic images, a few of them a step, and measures
its loss on real images. The derivative of that loss goes back through all steps, and moves the images and the sizes of
the steps. So a set belongs to its steps: the images of the first step, its size, those of the second, and so on.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dmjax import networks
from dmjax.common.errors import UserError
from dmjax.config import Config, Count, Positive
from dmjax.data import Dataset
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import testing
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.testing import Tested
from dmjax.methods import optimizer, performance
from dmjax.methods.base import ClassData, Condensed, Problem
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.methods.performance import PerformanceMatching, first_key, over_devices

_HALVINGS = 10  # of the learning rate: every 40 of 400 epochs in the authors' code
_CROP = 4  # pixels by which real images are shifted at most


class Learned(NamedTuple):
    """What is learned.

    Attributes:
      images: float32 [C, M, H, W, D], normalised; step s takes the images s n to (s + 1) n of every class.
      raw_step_sizes: float32 [E, S], which softplus turns into step sizes.
    """

    images: Any
    raw_step_sizes: Any


class DDState(NamedTuple):
    """What an iteration goes on from.

    Attributes:
      learned: What is learned.
      optimizer: The state of its optimizer.
      known_key: uint32 [2], of the known initialisation.
    """

    learned: Learned
    optimizer: Any
    known_key: Any


@dataclasses.dataclass(frozen=True)
class DD(PerformanceMatching):
    """Dataset Distillation (Wang, Zhu, Torralba & Efros 2018; arXiv 1811.10959), Algorithm 1."""

    name: ClassVar[str] = "dd"
    # At 10 images per class, as in Table 1 of Zhao & Bilen 2023.
    published: ClassVar[Any] = {"mnist": (None, 79.5, None), "cifar10": (None, 36.8, None)}
    published_note: ClassVar[str | None] = "LeNet and AlexCifarNet, trained by the set's own 30 steps"
    own_evaluation: ClassVar[str | None] = "its own training steps"

    iterations: Count = 20_000  # type: ignore[misc]
    """How many iterations, each with a network of its own (the authors': 23,600 on MNIST, 19,600 on CIFAR-10)."""
    init: Literal["noise", "real"] = "noise"
    """Start from Gaussian noise, or from random real images of each class."""
    network_init: Literal["random", "fixed"] = "random"
    """Draw the network anew in every iteration, or take the same known initialisation in all."""
    distill_steps: Count | None = None
    """S, training steps that take different images (by default as many as images per class)."""
    distill_epochs: Count = 3
    """E, how often the steps are gone through, each time with step sizes of their own."""
    step_size: Positive | None = None
    """Size of all steps before the first iteration (by default 0.001 on CIFAR, else 0.02)."""
    crop_real: bool | None = None
    """Shift and mirror real images at random (by default on CIFAR)."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig("adam", None, (("b1", 0.5), ("b2", 0.999)))
    )

    def default_learning_rate(self, config: Config) -> float:
        """0.01, which is halved ten times in the course of a run."""
        return 0.01

    def resolve(self, config: Config) -> Self:
        """Fills in the steps and what the authors choose by data set."""
        steps, cifar = self.distill_steps or config.ipc, config.data.known_as in ("cifar10", "cifar100")
        if config.ipc % steps:
            raise UserError(
                f"distill_steps {steps} must divide the {config.ipc} images per class, as many for each step"
            )
        filled = dataclasses.replace(
            self,
            distill_steps=steps,
            step_size=self.step_size or (0.001 if cifar else 0.02),
            crop_real=cifar if self.crop_real is None else self.crop_real,
        )
        return super(DD, filled).resolve(config)

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` where a class has too few real images to start from."""
        if self.init == "real":
            super().check(config, dataset, f"{remedy}, or start from noise with --init noise")

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer, whose learning rate is halved after every tenth of the iterations."""
        halved = optax.exponential_decay(1.0, max(1, self.iterations // _HALVINGS), 0.5, staircase=True)
        return optax.chain(super().transformation(), optax.scale_by_schedule(halved))

    def start(self, problem: Problem, seed: int) -> DDState:
        """Starts from noise or random real images, and steps of one size."""
        if self.init == "real":
            images = self.random_real(problem, seed)
        else:
            images = jax.random.normal(first_key(seed), (problem.num_classes, problem.config.ipc, *problem.image_shape))
        assert self.distill_steps is not None, "the settings are not resolved"
        raw = jnp.full((self.distill_epochs, self.distill_steps), inverse_softplus(jnp.float32(self.step_size)))
        learned = Learned(jnp.asarray(images), raw)
        known = jax.random.key_data(jax.random.fold_in(first_key(seed), 1))
        return DDState(learned, self.transformation().init(learned), known)

    def step(
        self, problem: Problem, key: jax.Array, state: DDState, data: ClassData, constants: Any
    ) -> tuple[DDState, jax.Array]:
        """One iteration of Algorithm 1."""
        network_key, target_key, crop_key = jax.random.split(key, 3)
        variables = self._initial(problem, network_key, state.known_key)
        targets = performance.draw_targets(problem, target_key, data, self.batch_target)
        if self.crop_real:
            keys = jax.vmap(lambda index: jax.random.fold_in(crop_key, index))(data.index)
            targets = targets._replace(images=crop_and_mirror(keys, targets.images))

        def loss(learned):
            trained = self._train(problem, variables, learned)

            def of_images(images, labels):
                logits = problem.network.apply(trained, images)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

            losses = performance.weighted(targets, of_images, problem.chunks.real)
            return losses.sum(), performance.by_class(problem, data, losses)

        (_, losses), gradients = jax.value_and_grad(loss, has_aux=True)(state.learned)
        moved = optimizer.move(self.transformation(), state.learned, over_devices(gradients), state.optimizer)
        return DDState(*moved, state.known_key), losses

    def finish(self, problem: Problem, state: DDState) -> Condensed:
        """The images in units of pixels / 255, and with them the step sizes and the known initialisation."""
        images, raw = state.learned
        extra = {"step_sizes": np.asarray(jax.nn.softplus(raw)), "known_key": np.asarray(state.known_key)}
        return Condensed(np.asarray(images) * problem.std + problem.mean, extra=extra)

    def test(self, problem: Problem, synthetic: SyntheticSet, examples: Examples, key: jax.Array) -> Tested:
        """Trains a network by the set's own steps, from the initialisation that they are made for."""
        step_sizes = performance.array_of(synthetic, "step_sizes", (None, None), "f")
        known_key = performance.array_of(synthetic, "known_key", (2,), "u")
        expected = np.repeat(np.arange(problem.num_classes), synthetic.ipc)
        if not np.array_equal(synthetic.labels, expected) or synthetic.ipc % step_sizes.shape[1]:
            raise UserError(
                f"the set is damaged: its steps take images in the order of their classes, equally many of each class "
                f"in each of {step_sizes.shape[1]} steps"
            )
        if not (step_sizes > 0).all():
            raise UserError("step_sizes of the set are damaged: they must be above 0")
        images = performance.flat_images(synthetic)
        images = jnp.asarray(images).reshape(problem.num_classes, -1, *images.shape[1:])

        @jax.jit
        def count(key, learned, known_key, examples):
            trained = self._train(problem, self._initial(problem, key, known_key), learned)
            return testing.count_correct(lambda images: problem.network.apply(trained, images), examples)

        learned = Learned(images, inverse_softplus(jnp.asarray(step_sizes)))
        return testing.tested(count(key, learned, jnp.asarray(known_key), examples))

    def forward_passes(self, config: Config, num_classes: int, image_shape: tuple[int, ...], real: int) -> float:
        """A training step is a gradient, whose derivative costs three times as much; then a gradient of real images."""
        steps = self.distill_epochs * num_classes * config.ipc
        return 9 * steps + 3 * self.batch_target

    def _initial(self, problem: Problem, key: jax.Array, known_key: jax.Array) -> Any:
        """The network's variables before the first step."""
        key = key if self.network_init == "random" else jax.random.wrap_key_data(known_key)
        return xavier_normal(key, networks.init(problem.network, key, problem.image_shape))

    def _train(self, problem: Problem, variables: Any, learned: Learned) -> Any:
        """The network's variables after all steps; only one step has its activations in memory."""
        epochs, steps = learned.raw_step_sizes.shape
        classes, per_class = learned.images.shape[:2]
        # [S, C * n, H, W, D]: every step takes n images of all classes.
        images = learned.images.reshape(classes, steps, per_class // steps, *problem.image_shape).swapaxes(0, 1)
        images = images.reshape(steps, -1, *problem.image_shape)
        labels = jnp.repeat(jnp.arange(classes, dtype=jnp.int32), per_class // steps)

        def loss(params, rest, images):
            logits, rest = problem.network.apply(
                {"params": params, **rest}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest

        @jax.checkpoint
        def one_step(variables, step):
            rest = {name: value for name, value in variables.items() if name != "params"}
            gradient, rest = jax.grad(loss, has_aux=True)(variables["params"], rest, images[step.position])
            params = jax.tree.map(lambda p, g: p - step.size * g, variables["params"], gradient)
            return {"params": params, **rest}, None

        order = _Step(jnp.tile(jnp.arange(steps), epochs), jax.nn.softplus(learned.raw_step_sizes).reshape(-1))
        return jax.lax.scan(one_step, variables, order)[0]


class _Step(NamedTuple):
    """One training step: which images it takes, and its size."""

    position: jax.Array
    size: jax.Array


def inverse_softplus(x: jax.Array) -> jax.Array:
    """`log(e^x - 1)` for x > 0, which does not overflow."""
    return x + jnp.log(-jnp.expm1(-x))


def xavier_normal(key: jax.Array, variables: Any) -> Any:
    """Draws weights from N(0, 2 / (fan in + fan out)) and sets biases to 0; scales of norms stay as they are.

    Args:
      key: PRNG key.
      variables: Of a network.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables["params"])

    def draw(i: int, name: str, leaf: jax.Array) -> jax.Array:
        if name == "bias":
            return jnp.zeros_like(leaf)
        if name == "scale" or leaf.ndim < 2:
            return leaf
        area = leaf[..., 0, 0].size
        deviation = (2 / (area * (leaf.shape[-2] + leaf.shape[-1]))) ** 0.5
        return deviation * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)

    drawn = [draw(i, path[-1].key, leaf) for i, (path, leaf) in enumerate(leaves)]
    return {**variables, "params": jax.tree_util.tree_unflatten(tree, drawn)}


def crop_and_mirror(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Shifts every image by up to 4 pixels, what comes in being mirrored at the border, and mirrors half of them.

    Args:
      keys: A key a class [C].
      images: float32 [C * b, H, W, D], class by class.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (_CROP, _CROP), (_CROP, _CROP), (0, 0)), mode="reflect")
    each = len(images) // len(keys)
    ranges = jnp.array([2 * _CROP + 1, 2 * _CROP + 1, 2])  # of rows, columns, and whether it is mirrored
    draw = lambda key: jax.random.randint(key, (each, 3), 0, ranges[None])  # noqa: E731
    offsets = jax.vmap(draw)(keys).reshape(-1, 3)

    def one(image, offset):
        image = jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, image.shape[-1]))
        return jnp.where(offset[2] == 0, image[:, ::-1], image)

    return jax.vmap(one)(padded, offsets)
