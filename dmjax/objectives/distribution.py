"""Distribution matching (DM): the empirical maximum mean discrepancy of Zhao & Bilen 2023, equations 5 and 6."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from dmjax import augment, networks
from dmjax.data import normalize
from dmjax.step import Chunks, Problem, State, Step, map_classes, real_batch

Embed = Callable[[jax.Array, jax.Array], jax.Array]


def make_step(problem: Problem, chunks: Chunks) -> Step:
    """One iteration of Algorithm 1: embed with one network, match the class means, move the synthetic images.

    Args:
      problem: Whose network has fresh parameters, or those of one of `trained` (Table 4).
      chunks: How much is computed at once.
    """
    network, optimizer, config, mean, std, _ = problem

    def step(key, state, data, trained=None):
        network_key, key = jax.random.split(jax.random.fold_in(key, state.iteration))
        if trained is None:
            variables = networks.init(network, network_key, state.images.shape[2:])
        else:
            chosen = jax.random.randint(network_key, (), 0, len(jax.tree.leaves(trained)[0]))
            variables = jax.tree.map(lambda leaf: leaf[chosen], trained)

        def loss_and_gradient(images, real, count, index):
            class_key = jax.random.fold_in(key, index)
            return class_loss_and_gradient(class_key, variables, images, real, count)

        losses, gradients = map_classes(loss_and_gradient, chunks.classes, state.images, *data)
        updates, optimizer_state = jax.vmap(optimizer.update)(gradients, state.optimizer, state.images)
        return State(optax.apply_updates(state.images, updates), optimizer_state, state.iteration + 1), losses

    def class_loss_and_gradient(key, variables, synthetic, real, count):
        sample_key, augment_key = jax.random.split(key)
        real, real_weights = real_batch(sample_key, real, count, config.batch_real)
        synthetic_weights = jnp.broadcast_to(jnp.float32(count > 0), synthetic.shape[:1])
        siamese = augment.sample(augment_key, config.augment, synthetic.shape[1:])
        real = augment.apply(siamese, normalize(real, mean, std))

        def loss(synthetic):
            return class_loss(
                lambda images, weights: networks.embed(network, variables, images, weights),
                real,
                real_weights,
                augment.apply(siamese, synthetic),
                synthetic_weights,
                chunks.real,
                chunks.synthetic,
            )

        return jax.value_and_grad(loss)(synthetic)

    return step


def class_loss(
    embed: Embed,
    real: jax.Array,
    real_weights: jax.Array,
    synthetic: jax.Array,
    synthetic_weights: jax.Array,
    real_chunk: int | None = None,
    synthetic_chunk: int | None = None,
) -> jax.Array:
    """Squared distance between the mean embeddings of the real and the synthetic images of one class.

    No gradient flows through the real images.

    Args:
      embed: Maps augmented images [n, H, W, D] and weights [n] to features [n, F].
      real: Augmented real images [B, H, W, D].
      real_weights: [B], 1 for an image and 0 for padding.
      synthetic: Augmented synthetic images [M, H, W, D].
      synthetic_weights: [M], likewise.
      real_chunk: Real images to embed at once; all where it is None.
      synthetic_chunk: The same for synthetic images, whose embeddings are then computed again for the gradient.

    Returns:
      Scalar: `sum_F (mean_B embed(real) - mean_M embed(synthetic))^2`, 0 for a class that is all padding.
    """
    chex.assert_rank([real, synthetic], 4)
    chex.assert_equal_shape_suffix([real, synthetic], 3)
    target = jax.lax.stop_gradient(mean_embedding(embed, jax.lax.stop_gradient(real), real_weights, real_chunk))
    return jnp.sum((target - mean_embedding(embed, synthetic, synthetic_weights, synthetic_chunk)) ** 2)


def mean_embedding(embed: Embed, images: jax.Array, weights: jax.Array, chunk: int | None) -> jax.Array:
    """Weighted mean [F] of the features of images [n, H, W, D]; zero where all weights are.

    With a chunk, only that many images have their activations in memory, in the gradient as well. The result is the
    same where `embed` treats every image on its own, which batch norm does not.
    """
    n = len(images)
    total = jnp.maximum(weights.sum(), 1)
    if chunk is None or chunk >= n:
        return _weighted_sum(embed, images, weights) / total
    chunks = -(-n // chunk)
    size = -(-n // chunks)  # as even as possible, so that little is padded
    images = jnp.pad(images, [(0, chunks * size - n)] + [(0, 0)] * 3)
    weights = jnp.pad(weights, (0, chunks * size - n))
    part = jax.checkpoint(lambda args: _weighted_sum(embed, *args))
    parts = jax.lax.map(part, jax.tree.map(lambda x: x.reshape(chunks, size, *x.shape[1:]), (images, weights)))
    return parts.sum(axis=0) / total


def _weighted_sum(embed: Embed, images: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum [F] over images of weight times feature, in float32 whatever the network computes in."""
    return (embed(images, weights).astype(jnp.float32) * weights[:, None]).sum(axis=0)
