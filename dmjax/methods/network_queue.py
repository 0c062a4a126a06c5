"""A queue of networks that train along on real images while a set is condensed (IDM; Zhao et al. 2023)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dmjax import networks
from dmjax.config import Count, NamedFields, Positive
from dmjax.methods import embedding, optimizer, performance
from dmjax.methods.base import ClassData, Problem, gather

_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4
_FORGETTING = 0.99  # of the running accuracy, per training step


@dataclasses.dataclass(frozen=True)
class QueueConfig(NamedFields):
    """The networks that train along, for `--match.networks queue`."""

    start: Count = 3
    """Networks at the beginning."""
    size: Count = 100
    """Networks at most; then a new one takes the place of the oldest."""
    every: Count | None = None
    """Iterations between two new networks (by default 30, and 5 at one image per class)."""
    trained: Count = 2
    """Networks that are trained in every iteration, drawn at random."""
    steps: Count = 10
    """Training steps of each of them."""
    batch_size: Count = 256
    """Real images per training step, of all classes together."""
    learning_rate: Positive = 0.01
    """Learning rate of SGD."""


class Queue(NamedTuple):
    """The networks of a run; the same on all devices.

    Attributes:
      variables: [Q, ...], of which the first `count` are there.
      momentum: [Q, ...], of their training.
      count: int32 scalar, networks that were made so far.
      accuracy: float32 scalar in [0, 1], the running accuracy of training.
    """

    variables: Any
    momentum: Any
    count: Any
    accuracy: Any


def start(problem: Problem, config: QueueConfig, key: jax.Array) -> Queue:
    """The queue before the first iteration: `config.start` random networks, and room for the others."""
    keys = jax.random.split(key, config.size)
    variables = jax.jit(jax.vmap(lambda k: embedding.random(problem, k)))(keys)
    momentum = jax.tree.map(jnp.zeros_like, variables["params"])
    count = jnp.int32(config.start)
    return Queue(variables, momentum, count, jnp.float32(0))


def grow(problem: Problem, config: QueueConfig, key: jax.Array, queue: Queue, iteration: jax.Array) -> Queue:
    """The queue with a new random network where it is time for one; `iteration` is how many are done."""
    due = (iteration > 0) & (iteration % (config.every or 1) == 0)
    place, fresh = queue.count % config.size, embedding.random(problem, key)
    # One place is written in any case, with what it had where no network is due.
    put = lambda leaf, new: leaf.at[place].set(jnp.where(due, new, leaf[place]))  # noqa: E731
    variables = jax.tree.map(put, queue.variables, fresh)
    momentum = jax.tree.map(put, queue.momentum, jax.tree.map(jnp.zeros_like, fresh["params"]))
    return queue._replace(variables=variables, momentum=momentum, count=queue.count + jnp.int32(due))


def draw(config: QueueConfig, key: jax.Array, queue: Queue) -> Any:
    """The variables of one network of the queue."""
    return embedding.at(queue.variables, _index(config, key, queue))


def _index(config: QueueConfig, key: jax.Array, queue: Queue) -> jax.Array:
    return jax.random.randint(key, (), 0, jnp.minimum(queue.count, config.size))


def train(problem: Problem, config: QueueConfig, key: jax.Array, queue: Queue, data: ClassData) -> Queue:
    """The queue after some of its networks were trained on real images without augmentation.

    All devices train on the images of all classes, so that they have the same queue to the last bit, and batch norm
    needs no statistics of other devices.
    """
    network = networks.create(problem.config.network, problem.num_classes, problem.image_shape)
    sgd = optax.chain(optax.add_decayed_weights(_WEIGHT_DECAY), optax.sgd(config.learning_rate, momentum=_MOMENTUM))

    def train_one(queue, key):
        index_key, batch_key = jax.random.split(key)
        index = _index(config, index_key, queue)
        variables = embedding.at(queue.variables, index)
        state = sgd.init(variables["params"])
        state = optax.tree.set(state, trace=embedding.at(queue.momentum, index))

        def one_step(carry, i):
            variables, state, accuracy = carry
            targets = performance.draw_targets(problem, jax.random.fold_in(batch_key, i), data, config.batch_size)
            images, labels, weights = (_of_all(problem, leaf, data) for leaf in targets)
            there = jnp.float32(weights > 0)

            def loss(params):
                logits, new = network.apply(
                    {**variables, "params": params}, images, train=True, weights=there, mutable=["batch_stats"]
                )
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                right = (logits.argmax(axis=-1) == labels).astype(jnp.float32)
                return (losses * weights).sum(), (new, (right * weights).sum())

            gradient, (new, right) = jax.grad(loss, has_aux=True)(variables["params"])
            params, state = optimizer.move(sgd, variables["params"], gradient, state)
            accuracy = _FORGETTING * accuracy + (1 - _FORGETTING) * right
            return ({**variables, **new, "params": params}, state, accuracy), None

        carry = variables, state, queue.accuracy
        (variables, state, accuracy), _ = jax.lax.scan(one_step, carry, jnp.arange(config.steps))
        put = lambda leaf, new: leaf.at[index].set(new)  # noqa: E731
        momentum = jax.tree.map(put, queue.momentum, optax.tree.get(state, "trace"))
        return queue._replace(
            variables=jax.tree.map(put, queue.variables, variables), momentum=momentum, accuracy=accuracy
        ), None

    return jax.lax.scan(train_one, queue, jax.random.split(key, config.trained))[0]


def _of_all(problem: Problem, share: jax.Array, data: ClassData) -> jax.Array:
    """What the devices have drawn of their classes, put together class by class."""
    of_classes = share.reshape(len(data.index), -1, *share.shape[1:])
    every = gather(problem.num_classes, of_classes)
    return every.reshape(-1, *share.shape[1:])
