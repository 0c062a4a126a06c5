"""How a network is trained: the optimizer, the learning rate along the epochs, and what is done to a batch."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmjax.config import AugmentConfig, EvaluationConfig
from dmjax.evaluation import protocols

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # of AdamW


class Recipe(NamedTuple):
    """What is compiled into the training program.

    Attributes:
      learning_rate, weight_decay: Of the optimizer.
      momentum: Of SGD.
      batch_size: Images per step; the last batch of an epoch may be smaller.
      augment: Groups that are drawn.
      optimizer: sgd, whose weight decay is a part of the gradient, or adamw, where it is apart from it.
      schedule: Fractions of the epochs after which the learning rate falls.
      rate_factor: What it is multiplied by each time.
      restart: Whether the optimizer is made anew where the rate falls, and that an epoch later.
      cutmix, mixup: Probabilities that a batch is mixed in that way.
      resized_crop: Smallest share of an image's area that a random crop keeps; 0 for no crop.
      labels: Where they come from, as in `EvaluationConfig`.
      temperature: Of a teacher's labels.
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    batch_size: int
    augment: AugmentConfig
    optimizer: str = "sgd"
    schedule: tuple[float, ...] = (0.5,)
    rate_factor: float = 0.1
    restart: bool = True
    cutmix: float = 0.0
    mixup: float = 0.0
    resized_crop: float = 0.0
    labels: str = "stored"
    temperature: float = 1.0


def make_recipe(config: EvaluationConfig, augmentation: AugmentConfig) -> Recipe:
    """The recipe that a configuration names; what it leaves open is as its protocol has it."""
    config = protocols.complete(config)
    strategy = augmentation.strategy if config.strategy is None else config.strategy
    augmentation = dataclasses.replace(augmentation, strategy=strategy, composite=config.composite)
    own = {name: getattr(config, name) for name in Recipe._fields if name != "augment"}
    return Recipe(augment=augmentation, **own)


class Plan(NamedTuple):
    """How long a training takes.

    Attributes:
      batch: Images per step.
      per_epoch: Steps of an epoch.
      total: Steps of all epochs.
      drops: The first steps at lower learning rates, int for each of the schedule.
      moments: Running means that the optimizer keeps of every parameter.
    """

    batch: int
    per_epoch: int
    total: int
    drops: tuple[int, ...]
    moments: int = 1


def make_plan(recipe: Recipe, images: int, epochs: int) -> Plan:
    """The plan for so many epochs over so many images."""
    batch = min(recipe.batch_size, images)
    per_epoch = -(-images // batch)
    after = [int(fraction * epochs + 1e-6) + recipe.restart for fraction in recipe.schedule]  # 0.6 * 5 is below 3
    moments = 2 if recipe.optimizer == "adamw" else 1
    return Plan(batch, per_epoch, epochs * per_epoch, tuple(epoch * per_epoch for epoch in after), moments)


def start_moments(params: Any, moments: int) -> Any:
    """The optimizer's state before the first step: one tree of zeros, or a tuple of them where it keeps several."""
    zeros = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(moments))
    return zeros[0] if moments == 1 else zeros


def update(
    recipe: Recipe, step: jax.Array, drops: jax.Array, params: Any, moments: Any, gradients: Any
) -> tuple[Any, Any]:
    """Parameters and moments after one step of the optimizer, as those of PyTorch make it.

    Args:
      recipe: The optimizer.
      step: int32 scalar, steps done before.
      drops: int32 [K], the first steps at lower learning rates.
      params: The parameters.
      moments: Of `start_moments`, or of the last step.
      gradients: Of the loss.
    """
    rate = jnp.where(step >= drops, recipe.rate_factor, 1.0).prod() * recipe.learning_rate
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        kept = jnp.where((step == drops).any(), 0.0, recipe.momentum) if recipe.restart else recipe.momentum
        moments = jax.tree.map(lambda m, g, p: kept * m + g + decay * p, moments, gradients, params)
        return jax.tree.map(lambda p, m: p - rate * m, params, moments), moments
    # Made anew, it has made one step since the last drop.
    since = step - jnp.where(step >= drops, drops, 0).max(initial=0) if recipe.restart else step
    fresh, count = jnp.where(since == 0, 0.0, 1.0), (since + 1).astype(jnp.float32)
    first, second = moments
    first = jax.tree.map(lambda m, g: fresh * _BETA1 * m + (1 - _BETA1) * g, first, gradients)
    second = jax.tree.map(lambda v, g: fresh * _BETA2 * v + (1 - _BETA2) * g**2, second, gradients)
    bias1, bias2 = 1 - _BETA1**count, 1 - _BETA2**count

    def moved(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return p * (1 - rate * decay) - rate * (m / bias1) / (jnp.sqrt(v / bias2) + _EPSILON)

    return jax.tree.map(moved, params, first, second), (first, second)
