"""Gradient matching: Dataset Condensation (DC; Zhao, Mopuri & Bilen 2021) and, with Siamese augmentation, DSA (2021).

An iteration draws a network and follows its training on the synthetic images for some outer steps. In each of them the
images of every class move so that the loss gradient on them matches that on real images of the class; then the network
is trained on the synthetic images of all classes for some epochs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dmjax import networks
from dmjax.config import AugmentConfig, Config, Count, NamedFields, Positive
from dmjax.data import augment, normalize
from dmjax.evaluation import on_device, protocols, training
from dmjax.methods.base import ClassData, Problem, gather, map_classes, real_batch
from dmjax.methods.images import ImageState, LearnedImages

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Outer steps and inner epochs by images per class, as in the authors' code."""

_STATISTICS = 16  # real images per class from which batch norm takes its statistics


def loops(ipc: int) -> tuple[int, int]:
    """Outer steps and inner epochs; between the sizes of the table linearly, beyond it 500 epochs in all."""
    if ipc in LOOPS:
        return LOOPS[ipc]
    sizes = sorted(LOOPS)
    if ipc > sizes[-1]:
        return ipc, max(1, round(500 / ipc))
    outer, inner = (np.interp(ipc, sizes, [LOOPS[size][i] for size in sizes]) for i in (0, 1))
    return max(1, round(float(outer))), max(1, round(float(inner)))


@dataclasses.dataclass(frozen=True)
class GradientConfig(NamedFields):
    """The network that is trained along the way, and what is compared."""

    distance: Literal["ours", "mse", "cos"] = "ours"
    """ours: cosines per output of every layer; mse: squared distance, cos: cosine of the whole gradients."""
    outer: Count | None = None
    """Times that the images move while one network is trained (by default by images per class, 10 for ten)."""
    inner: Count | None = None
    """Epochs that the network is trained on the synthetic images in between (by default 50 for ten per class)."""
    learning_rate: Positive = 0.01
    """Learning rate of the network."""
    batch_size: Count = 256
    """Synthetic images per training step of the network."""


@dataclasses.dataclass(frozen=True)
class DC(LearnedImages):
    """Dataset Condensation with Gradient Matching (Zhao, Mopuri & Bilen, ICLR 2021; arXiv 2006.05929), Algorithm 1."""

    name: ClassVar[str] = "dc"
    # From Table 1 of Zhao & Bilen 2023; FashionMNIST and SVHN as the authors' repository and later papers have them.
    published: ClassVar[Any] = {
        "mnist": (91.7, 97.4, 98.8),
        "fashion_mnist": (70.5, 82.3, 83.6),
        "svhn_cropped": (31.2, 76.1, 82.3),
        "cifar10": (28.3, 44.9, 53.9),
        "cifar100": (12.8, 25.2, None),
    }
    inner_loop: ClassVar[bool] = True

    iterations: Count = 1000
    """How many networks are trained from their initialisation, one an iteration."""
    init: Literal["real", "noise"] = "noise"
    """Start from random real images of each class, or from Gaussian noise."""
    gradient: GradientConfig = dataclasses.field(default_factory=GradientConfig)

    def default_learning_rate(self, config: Config) -> float:
        """0.1, that of the authors, and theirs for an MLP, 0.01."""
        return 0.01 if config.network.name == "MLP" else 0.1

    def resolve(self, config: Config) -> Self:
        """Fills in the learning rate and the loops, which follow from the images per class."""
        outer, inner = loops(config.ipc)
        given = self.gradient
        filled = dataclasses.replace(given, outer=given.outer or outer, inner=given.inner or inner)
        return dataclasses.replace(super().resolve(config), gradient=filled)

    def spreads_over_cores(self, config: Config) -> bool:
        """Where no network is trained between outer steps, as at one image per class, and there is no batch norm."""
        return self.gradient.outer == 1 and not networks.may_have_batch_norm(config.network)

    def evaluation(self, config: Config) -> Mapping[str, Any]:
        """Crop and noise for a ConvNet with batch norm, crop, scale and rotation on MNIST, else nothing and 300 epochs.

        The groups are those of Siamese augmentation, one for each batch. The authors' own differ in detail: they draw
        one for every image, shift by up to 4 pixels, scale each side by 0.8 to 1.2 with the nearest pixels, rotate by
        up to 45 degrees, and fill with the mean.
        """
        return protocols.plain_augmentation(config)

    def augmentation(self, config: Config) -> AugmentConfig:
        """What is drawn once for a class and applied to its real and synthetic images: nothing."""
        return AugmentConfig("none")

    def step(
        self, problem: Problem, key: jax.Array, state: ImageState, data: ClassData, constants: Any
    ) -> tuple[ImageState, jax.Array]:
        """One iteration: a network from its initialisation through all outer steps. The losses are means over these."""
        settings, num_classes = self.gradient, problem.num_classes
        assert settings.outer is not None, "the settings are not resolved"
        assert settings.inner is not None, "the settings are not resolved"
        outer, inner = settings.outer, settings.inner
        recipe = training.Recipe(
            settings.learning_rate, 0.0, 0.0, settings.batch_size, self.augmentation(problem.config)
        )
        plan = training.make_plan(recipe, num_classes * problem.config.ipc, max(1, (outer - 1) * inner))
        network_key, key = jax.random.split(key)
        learner = training.start(problem.network, plan, network_key, _examples(gather(num_classes, state.images)))
        chex.assert_tree_shape_prefix(data.images, state.images.shape[:1])

        def advance(carry, i):
            state, learner = carry
            match_key, train_key, statistics_key = jax.random.split(jax.random.fold_in(key, i), 3)
            if "batch_stats" in learner.variables:
                learner = learner._replace(variables=_observe(problem, statistics_key, learner.variables, data))

            def loss_and_gradient(images, place):
                class_key = jax.random.fold_in(match_key, data.index[place])
                return self._match(problem, class_key, learner.variables, images, data, place)

            places = jnp.arange(len(data.index))
            losses, gradients = map_classes(loss_and_gradient, problem.chunks.classes, state.images, places)
            state = self.update(state, gradients)
            learner = jax.lax.cond(i < outer - 1, lambda: train(train_key, learner, state.images), lambda: learner)
            return (state, learner), losses

        def train(key, learner, images):
            """The network after `inner` more epochs on the synthetic images of all classes."""
            examples = _examples(gather(num_classes, images))
            one_step = functools.partial(training.step, problem.network, recipe, plan.batch)
            body = lambda learner, _: (one_step(learner, key, examples, np.int32(plan.total + 1)), None)  # noqa: E731
            return jax.lax.scan(body, learner, None, length=inner * plan.per_epoch)[0]

        (state, _), losses = jax.lax.scan(advance, (state, learner), jnp.arange(outer))
        return state, losses.mean(axis=0)

    def _match(self, problem, key, variables, synthetic, data, place):
        """The distance of the gradients of one class, and its derivative by the synthetic images."""
        sample_key, augment_key = jax.random.split(key)
        real, weights = real_batch(problem, sample_key, data, place, self.batch_real)
        siamese = augment.sample(augment_key, self.augmentation(problem.config), synthetic.shape[1:])
        gradient_of = functools.partial(class_gradient, problem.network, variables, label=data.index[place])
        real = augment.apply(siamese, normalize(real, problem.mean, problem.std))
        target = jax.lax.stop_gradient(gradient_of(images=real, weights=weights, at_once=problem.chunks.real))
        ones = jnp.broadcast_to(jnp.float32(data.count[place] > 0), synthetic.shape[:1])  # 0 for a class that only pads

        def loss(synthetic):
            gradient = gradient_of(images=augment.apply(siamese, synthetic), weights=ones)
            return distance(gradient, target, self.gradient.distance)

        value, derivative = jax.value_and_grad(loss)(synthetic)
        return value * ones[0], derivative * ones[0]

    def forward_passes(self, config: Config, num_classes: int, image_shape: tuple[int, ...], real: int) -> float:
        """In every outer step a gradient of the real images, one of the synthetic images' gradient, and training."""
        outer, inner = self.gradient.outer or 1, self.gradient.inner or 1
        matched = outer * (3 * real + 9 * config.ipc)
        return num_classes * (matched + (outer - 1) * inner * 3 * config.ipc)


@dataclasses.dataclass(frozen=True)
class DSA(DC):
    """Dataset Condensation with Differentiable Siamese Augmentation (Zhao & Bilen, ICML 2021; arXiv 2102.08259)."""

    name: ClassVar[str] = "dsa"
    # From Table 1 of Zhao & Bilen 2023; FashionMNIST and SVHN as the authors' repository and later papers have them.
    published: ClassVar[Any] = {
        "mnist": (88.7, 97.8, 99.2),
        "fashion_mnist": (70.6, 84.6, 88.7),
        "svhn_cropped": (27.5, 79.2, 84.4),
        "cifar10": (28.8, 52.1, 60.6),
        "cifar100": (13.9, 32.3, 42.8),
        "tiny_imagenet": (5.7, 16.3, 5.1),
    }

    init: Literal["real", "noise"] = "real"
    """Start from random real images of each class, or from Gaussian noise."""

    def evaluation(self, config: Config) -> Mapping[str, Any]:
        """That of distribution matching."""
        return super(DC, self).evaluation(config)

    def augmentation(self, config: Config) -> AugmentConfig:
        """That of the configuration."""
        return config.augment


def _observe(problem: Problem, key: jax.Array, variables: Any, data: ClassData) -> Any:
    """Batch norm's running statistics after one more batch, of real images of all classes."""

    def batch(place):
        return real_batch(problem, jax.random.fold_in(key, data.index[place]), data, place, _STATISTICS)

    images, weights = jax.vmap(batch)(jnp.arange(len(data.index)))
    images, weights = gather(problem.num_classes, images), gather(problem.num_classes, weights)
    images = normalize(images.reshape(-1, *images.shape[2:]), problem.mean, problem.std)
    _, new = problem.network.apply(variables, images, train=True, weights=weights.reshape(-1), mutable=["batch_stats"])
    return {**variables, **new}


def class_gradient(
    network: nn.Module,
    variables: Any,
    images: jax.Array,
    weights: jax.Array,
    label: jax.Array,
    at_once: int | None = None,
) -> Any:
    """Gradient by the parameters of the mean cross entropy of images of one class; running statistics stand still.

    Args:
      network: The network.
      variables: Its variables.
      images: float32 [n, H, W, D], normalised.
      weights: [n], 1 for an image and 0 for a filler.
      label: int32 scalar, of all images.
      at_once: How many images to treat at once; all where it is None.
    """

    def loss(params, images, weights):
        logits = network.apply({**variables, "params": params}, images, train=False)
        labels = jnp.full(len(images), label)
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights).sum()

    weights = weights / jnp.maximum(weights.sum(), 1)
    n = len(images)
    if at_once is None or at_once >= n:
        return jax.grad(loss)(variables["params"], images, weights)
    parts = -(-n // at_once)
    size = -(-n // parts)
    images = jnp.pad(images, [(0, parts * size - n)] + [(0, 0)] * 3).reshape(parts, size, *images.shape[1:])
    weights = jnp.pad(weights, (0, parts * size - n)).reshape(parts, size)

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.grad(loss)(variables["params"], *part)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, variables["params"]), (images, weights))[0]


def distance(synthetic: Any, real: Any, kind: str) -> jax.Array:
    """How far two gradients of the same parameters are apart.

    `ours`: the sum over layers and over their outputs of one minus the cosine (DC, section 3.3); biases and other
    vectors do not count. `mse`: the squared distance of the whole gradients. `cos`: one minus their cosine.
    """
    pairs = list(zip(jax.tree.leaves(synthetic), jax.tree.leaves(real), strict=True))
    if kind == "ours":
        return sum((_rows(a, b) for a, b in pairs if a.ndim > 1), jnp.float32(0))
    a, b = (jnp.concatenate([leaf.ravel() for leaf in leaves]) for leaves in zip(*pairs, strict=True))
    return jnp.sum((a - b) ** 2) if kind == "mse" else _one_minus_cosine(a[None], b[None])


def _rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """Rows are the outputs: the last axis of kernels, and of the scale and bias [H, W, D] of a layer norm."""
    return _one_minus_cosine(*(x.reshape(-1, x.shape[-1]).T for x in (a, b)))


def _one_minus_cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over rows [rows, n]. A row of zeros counts 1, and its gradient is zero instead of undefined."""
    squares = [(x**2).sum(axis=1) for x in (a, b)]
    lengths = [jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1)), 0) for s in squares]
    return (1 - (a * b).sum(axis=1) / (lengths[0] * lengths[1] + 1e-6)).sum()


def _examples(images: jax.Array) -> on_device.Examples:
    """Normalised images [C, M, H, W, D] as a training set."""
    classes, each = images.shape[:2]
    labels = jnp.repeat(jnp.arange(classes, dtype=jnp.int32), each)
    flat = images.reshape(-1, *images.shape[2:])
    return on_device.Examples(
        flat, labels, np.zeros(images.shape[-1], np.float32), np.ones(images.shape[-1], np.float32)
    )
