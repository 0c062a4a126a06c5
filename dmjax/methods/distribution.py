"""Distribution matching: the empirical maximum mean discrepancy of Zhao & Bilen 2023, equations 5 and 6."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import chex
import jax
import jax.numpy as jnp

from dmjax import networks
from dmjax.common.errors import UserError
from dmjax.config import Config, Fraction
from dmjax.data import augment, normalize
from dmjax.evaluation import pretrained
from dmjax.methods.base import CLASSES, DEVICES, Chunks, ClassData, Problem, in_chunks, map_classes, real_batch
from dmjax.methods.images import ImageState, LearnedImages

Embed = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Where the parameters of the networks that embed images come from (Zhao & Bilen, Table 4)."""

    distribution: Literal["random", "pool"] = "random"
    """random: drawn afresh in every iteration; pool: those of networks trained on the whole set (--pretrained)."""
    accuracy: tuple[Fraction, Fraction] | None = None
    """Of the pool only the states whose validation accuracy is at least the first number and below the second."""


@dataclasses.dataclass(frozen=True)
class DM(LearnedImages):
    """Dataset Condensation with Distribution Matching (Zhao & Bilen, WACV 2023; arXiv 2110.04181), Algorithm 1.

    An iteration embeds augmented real and synthetic images with one network, and moves the synthetic images so that
    the mean embeddings of every class match. A method with another distance inherits from it and replaces `class_loss`.
    """

    name: ClassVar[str] = "dm"
    # From Table 1 of the paper; MNIST's and FashionMNIST's as later papers repeat them, not checked against it.
    published: ClassVar[Any] = {
        "mnist": (89.7, 97.5, 98.6),
        "fashion_mnist": (70.7, 83.5, 88.1),
        "cifar10": (26.0, 48.9, 63.0),
        "cifar100": (11.4, 29.7, 43.6),
        "tiny_imagenet": (3.9, 12.9, 24.1),
    }
    statistics_axes: ClassVar[tuple[str, ...]] = (CLASSES, DEVICES)

    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)

    def default_learning_rate(self, config: Config) -> float:
        """1, the paper's, for a ConvNet; other families have their own, by images per class."""
        return networks.condensing_rate(config.network, config.ipc)

    def resolve(self, config: Config) -> Self:
        """Fills in the learning rate, and checks the bounds of the pool."""
        wanted = self.embedding.accuracy
        if wanted is not None and self.embedding.distribution != "pool":
            raise UserError("embedding.accuracy chooses from a pool of networks; give --embedding.distribution pool")
        if wanted is not None and not wanted[0] < wanted[1]:
            raise UserError(f"embedding.accuracy needs a lower and a higher fraction, not {wanted[0]:g} {wanted[1]:g}")
        return super().resolve(config)

    def uses_trained_networks(self) -> bool:
        """Whether embeddings are those of trained networks."""
        return self.embedding.distribution == "pool"

    def separates_classes(self, config: Config) -> bool:
        """Whether no class matters to another one, as it does by the statistics of batch norm and by trained networks.

        A network of someone's own may have batch norm, so that it counts as one that does.
        """
        batch_norm = config.network.norm == "batch" or ":" in config.network.name
        return not batch_norm and not self.uses_trained_networks()

    def constants(self, problem: Problem) -> Any:
        """The variables of K trained networks, [K, ...] each; None where every iteration draws fresh ones."""
        if not self.uses_trained_networks() or problem.trained is None:
            return None
        return pretrained.stack(pretrained.select(problem.trained.all(), self.embedding.accuracy))

    def step(
        self, problem: Problem, key: jax.Array, state: ImageState, data: ClassData, constants: Any
    ) -> tuple[ImageState, jax.Array]:
        """One iteration of Algorithm 1, whose network has fresh parameters or those of one of `constants`."""
        network_key, key = jax.random.split(key)
        if constants is None:
            variables = networks.init(problem.network, network_key, problem.image_shape)
        else:
            chosen = jax.random.randint(network_key, (), 0, len(jax.tree.leaves(constants)[0]))
            variables = jax.tree.map(lambda leaf: leaf[chosen], constants)

        def loss_and_gradient(images, real, count, index):
            class_key = jax.random.fold_in(key, index)
            return self._class_loss_and_gradient(problem, class_key, variables, images, real, count)

        losses, gradients = map_classes(loss_and_gradient, problem.chunks.classes, state.images, *data)
        return self.update(state, gradients), losses

    def _class_loss_and_gradient(self, problem, key, variables, synthetic, real, count):
        sample_key, augment_key = jax.random.split(key)
        real, real_weights = real_batch(sample_key, real, count, self.batch_real)
        synthetic_weights = jnp.broadcast_to(jnp.float32(count > 0), synthetic.shape[:1])
        siamese = augment.sample(augment_key, problem.config.augment, synthetic.shape[1:])
        real = augment.apply(siamese, normalize(real, problem.mean, problem.std))

        def embed(images, weights):
            return networks.embed(problem.network, variables, images, weights)

        def loss(synthetic):
            images = augment.apply(siamese, synthetic)
            return self.class_loss(embed, real, real_weights, images, synthetic_weights, problem.chunks)

        return jax.value_and_grad(loss)(synthetic)

    def class_loss(
        self,
        embed: Embed,
        real: jax.Array,
        real_weights: jax.Array,
        synthetic: jax.Array,
        synthetic_weights: jax.Array,
        chunks: Chunks = Chunks(),  # noqa: B008 (a NamedTuple)
    ) -> jax.Array:
        """Squared distance between the mean embeddings of the real and the synthetic images of one class.

        No gradient flows through the real images.

        Args:
          embed: Maps augmented images [n, H, W, D] and weights [n] to features [n, F].
          real: Augmented real images [B, H, W, D].
          real_weights: [B], 1 for an image and 0 for padding.
          synthetic: Augmented synthetic images [M, H, W, D].
          synthetic_weights: [M], likewise.
          chunks: How many real and synthetic images to embed at once.

        Returns:
          Scalar: `sum_F (mean_B embed(real) - mean_M embed(synthetic))^2`, 0 for a class that is all padding.
        """
        chex.assert_rank([real, synthetic], 4)
        chex.assert_equal_shape_suffix([real, synthetic], 3)
        real = jax.lax.stop_gradient(real)
        target = jax.lax.stop_gradient(mean_embedding(embed, real, real_weights, chunks.real))
        return jnp.sum((target - mean_embedding(embed, synthetic, synthetic_weights, chunks.synthetic)) ** 2)

    def forward_passes(self, config: Config, num_classes: int, real: int) -> float:
        """Real images only go forward; a gradient costs as much as two more passes."""
        return num_classes * (real + 3 * config.ipc)


def mean_embedding(embed: Embed, images: jax.Array, weights: jax.Array, chunk: int | None) -> jax.Array:
    """Weighted mean [F] of the features of images [n, H, W, D]; zero where all weights are.

    With a chunk, only that many images have their activations in memory, in the gradient as well. The result is the
    same where `embed` treats every image on its own, which batch norm does not.
    """
    total = jnp.maximum(weights.sum(), 1)
    return in_chunks(lambda *part: _weighted_sum(embed, *part), (images, weights), chunk).sum(axis=0) / total


def features(embed: Embed, images: jax.Array, weights: jax.Array, chunk: int | None) -> jax.Array:
    """Features float32 [n, F] of images [n, H, W, D], computed in chunks as for `mean_embedding`."""
    parts = in_chunks(lambda *part: embed(*part).astype(jnp.float32), (images, weights), chunk)
    return parts.reshape(-1, parts.shape[-1])[: len(images)]


def _weighted_sum(embed: Embed, images: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum [F] over images of weight times feature, in float32 whatever the network computes in."""
    return (embed(images, weights).astype(jnp.float32) * weights[:, None]).sum(axis=0)
