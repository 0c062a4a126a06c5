"""Label Distillation: fixed real images whose soft labels are learned (Bohdal, Yang & Hospedales 2020).

A network is trained on a few images with the labels so far, and after each of its steps the labels move against its
loss on real images. With ridge regression the derivative is in closed form, since the classifier is linear in the
labels; with second-order derivatives it goes back through one step of gradient descent. When its error on real images
has stopped falling, the network starts anew.
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
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation import testing
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.testing import Tested
from dmjax.methods import optimizer, performance
from dmjax.methods.base import ClassData, Condensed, Problem, in_chunks
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.methods.patience import Patience, new_patience, note_error
from dmjax.methods.performance import PerformanceMatching, Targets, over_devices

_RIDGE = 1.0  # of the regression
_BLEND = 0.01  # weight of a new solution in the classifier, a moving average
_SCALE_RATE = 0.01  # learning rate of the factor between the classifier's outputs and logits


class Learner(NamedTuple):
    """A network on its way, which starts anew from time to time.

    Attributes:
      variables: Of the network.
      optimizer: State of the optimizer of its parameters and of `scale`.
      classifier: float32 [F + 1, C], from features and a one; of ridge regression.
      scale: float32 scalar, by which it is multiplied.
    """

    variables: Any
    optimizer: Any
    classifier: Any
    scale: Any


class LDState(NamedTuple):
    """What an iteration goes on from.

    Attributes:
      images: float32 [C * M, H, W, D], normalised, class by class; they stay as they are.
      labels: float32 [C * M, C], whose rows are probabilities.
      optimizer: State of the optimizer of the labels.
      learner: The network.
      patience: When it starts anew.
    """

    images: Any
    labels: Any
    optimizer: Any
    learner: Learner
    patience: Patience


@dataclasses.dataclass(frozen=True)
class LD(PerformanceMatching):
    """Flexible Dataset Distillation: Learn Labels Instead of Images (Bohdal et al. 2020; arXiv 2006.08572).

    The labels are those of the last iteration. The authors take, of the labels after every fifth epoch, those with
    which a network did best on held-out images.
    """

    name: ClassVar[str] = "ld"
    # From Table 1 of Zhao & Bilen 2023, where LD's other figures are not.
    published: ClassVar[Any] = {
        "mnist": (None, 87.3, None),
        "cifar10": (None, 38.3, None),
        "cifar100": (11.5, None, None),
    }
    published_note: ClassVar[str | None] = "LeNet and AlexCifarNet, trained in its own way"
    own_evaluation: ClassVar[str | None] = "its own way of training"

    iterations: Count = 20_000  # type: ignore[misc]
    """How many iterations; 400 epochs of the authors are 19,600 on MNIST."""
    variant: Literal["ridge", "second_order"] = "ridge"
    """How the loss depends on the labels: by ridge regression, or by a step of gradient descent."""
    batch_inner: Count | Literal["auto"] = "auto"
    """Images of the set per step of the network; auto: half of them, but at least 10 and at most 50, or 100 where there
    are 49 classes or more."""
    network_learning_rate: Positive = 1e-3
    """Learning rate of Adam for the network."""
    inner_learning_rate: Positive = 0.01
    """Size of the step of gradient descent in the variant second_order."""
    window: Count | Literal["auto"] = "auto"
    """Real batches over which the error is averaged, and how long the network goes on without a lower one; auto: 50, or
    200 for sets of more than 100 images, or 100 where there are 49 classes or more."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig("adam", None, ()))

    def resolve(self, config: Config) -> Self:
        """Fills in the learning rate of the labels, 0.001; raises a `UserError` for networks with batch norm."""
        if config.network.norm == "batch":
            raise UserError("ld does not train networks with batch norm; choose another --network.norm")
        return super().resolve(config)

    def start(self, problem: Problem, seed: int) -> LDState:
        """Starts from random real images, those of the method `random` with the same seed, and uniform labels."""
        _check_network(problem)
        images = jnp.asarray(self.random_real(problem, seed)).reshape(-1, *problem.image_shape)
        labels = jnp.full((len(images), problem.num_classes), 1 / problem.num_classes)
        learner = self._new_learner(problem, jax.random.fold_in(performance.first_key(seed), 1))
        patience = new_patience(self._window(problem, len(images)), jnp.zeros(3, jnp.int32))
        return LDState(images, labels, self.transformation().init(labels), learner, patience)

    def step(
        self, problem: Problem, key: jax.Array, state: LDState, data: ClassData, constants: Any
    ) -> tuple[LDState, jax.Array]:
        """Moves the labels, then the network, which starts anew where its error has stopped falling."""
        target_key, choice_key, network_key = jax.random.split(key, 3)
        targets = performance.draw_targets(problem, target_key, data, self.batch_target)
        chosen = self._choose(problem, choice_key, len(state.images))
        loss_of = self._by_ridge if self.variant == "ridge" else self._by_second_order

        def loss(labels):
            return loss_of(problem, state.learner, state.images[chosen], labels[chosen], data, targets)

        (_, (losses, wrong)), gradient = jax.value_and_grad(loss, has_aux=True)(state.labels)
        gradient, error = over_devices((gradient, wrong))
        moved, labels_optimizer = optimizer.move(self.transformation(), state.labels, gradient, state.optimizer)
        labels = as_probabilities(moved)
        # The regression saw the labels as they were, the network is trained on what they are now, as the authors do.
        new = labels if self.variant == "ridge" else state.labels
        learner = self._advance(problem, state.learner, state.images[chosen], state.labels[chosen], new[chosen])
        patience, restart = note_error(state.patience, error)
        learner = jax.lax.cond(restart, lambda: self._new_learner(problem, network_key), lambda: learner)
        return LDState(state.images, labels, labels_optimizer, learner, patience), losses

    def finish(self, problem: Problem, state: LDState) -> Condensed:
        """The images in units of pixels / 255 with soft labels, and for how many steps a network is trained on them."""
        images = np.asarray(state.images).reshape(problem.num_classes, -1, *problem.image_shape)
        labels = np.asarray(state.labels).reshape(problem.num_classes, -1, problem.num_classes)
        known = np.asarray(state.patience.lengths)
        known = known[known > 0]
        steps = known.mean() if len(known) else state.patience.steps
        return Condensed(images * problem.std + problem.mean, labels, extra={"steps": np.int32(steps)})

    def test(self, problem: Problem, synthetic: SyntheticSet, examples: Examples, key: jax.Array) -> Tested:
        """Trains a network on the set as the authors do, for as many steps as networks took on the way."""
        _check_network(problem)
        images, labels = performance.flat_images(synthetic), jnp.asarray(synthetic.labels)
        steps = int(performance.array_of(synthetic, "steps", (), "i"))
        if labels.ndim != 2:
            raise UserError("the set has no soft labels, which ld leaves in it")
        if not 0 < steps < 2**31:
            raise UserError(f"steps of the set are damaged: they must be above 0, not {steps}")

        @jax.jit
        def count(key, steps, images, labels, examples):
            start_key, choice_key = jax.random.split(key)

            def body(i, learner):
                chosen = self._choose(problem, jax.random.fold_in(choice_key, i), len(images))
                return self._advance(problem, learner, images[chosen], labels[chosen], labels[chosen])

            learner = jax.lax.fori_loop(0, steps, body, self._new_learner(problem, start_key))
            return testing.count_correct(lambda images: self._logits(problem, learner, images), examples)

        return testing.tested(count(key, jnp.int32(steps), images, labels, examples))

    def _window(self, problem: Problem, images: int) -> int:
        usual = 100 if problem.num_classes >= 49 else 200 if images > 100 else 50
        return usual if self.window == "auto" else self.window

    def _choose(self, problem: Problem, key: jax.Array, images: int) -> jax.Array:
        """Numbers of the images of the set that a step takes."""
        usual = 100 if problem.num_classes >= 49 else min(50, max(10, images // 2))
        return jax.random.permutation(key, images)[: usual if self.batch_inner == "auto" else self.batch_inner]

    def _new_learner(self, problem: Problem, key: jax.Array) -> Learner:
        variables = networks.init(problem.network, key, problem.image_shape)
        features = jax.eval_shape(lambda: _features(problem, variables, jnp.zeros((1, *problem.image_shape))))
        classifier, scale = jnp.zeros((features.shape[1], problem.num_classes)), jnp.float32(1)
        return Learner(variables, self._network_optimizer().init((variables["params"], scale)), classifier, scale)

    def _network_optimizer(self) -> optax.GradientTransformation:
        rates = {"network": optax.adam(self.network_learning_rate), "scale": optax.adam(_SCALE_RATE)}
        return optax.multi_transform(rates, ("network", "scale"))

    def _by_ridge(self, problem, learner, images, labels, data, targets):
        """The loss on real images, as a function of the labels of some images of the set, and their error."""
        features = _features(problem, learner.variables, images)
        embed = lambda images: _features(problem, learner.variables, images)  # noqa: E731
        known = in_chunks(embed, (targets.images,), problem.chunks.real)
        known = jax.lax.stop_gradient(known.reshape(-1, known.shape[-1])[: len(targets.labels)])
        classifier = learner.scale * blended(learner.classifier, jax.lax.stop_gradient(features), labels)
        return _loss_and_error(problem, data, Targets(known, *targets[1:]), lambda x: _product(x, classifier), None)

    def _by_second_order(self, problem, learner, images, labels, data, targets):
        """The same through one step of gradient descent."""
        params = learner.variables["params"]
        gradient = jax.grad(_soft_loss)(params, problem, images, labels)
        params = jax.tree.map(lambda p, g: p - self.inner_learning_rate * g, params, gradient)
        logits = lambda x: problem.network.apply({"params": params}, x)  # noqa: E731
        return _loss_and_error(problem, data, targets, logits, problem.chunks.real)

    def _advance(self, problem, learner, images, fitted, labels) -> Learner:
        """The network after a step of Adam on images [n, H, W, D] and labels [n, C]; the regression is on `fitted`."""

        def ridge_loss(learned):
            params, scale = learned
            features = _features(problem, {"params": params}, images)
            classifier = blended(learner.classifier, features, fitted)
            return _cross_entropy(scale * _product(features, classifier), labels), classifier

        def plain_loss(learned):
            return _soft_loss(learned[0], problem, images, labels), learner.classifier

        loss = ridge_loss if self.variant == "ridge" else plain_loss
        learned = learner.variables["params"], learner.scale
        gradients, classifier = jax.grad(loss, has_aux=True)(learned)
        (params, scale), state = optimizer.move(self._network_optimizer(), learned, gradients, learner.optimizer)
        return Learner({"params": params}, state, classifier, scale)

    def _logits(self, problem, learner, images):
        if self.variant == "ridge":
            return _product(_features(problem, learner.variables, images), learner.scale * learner.classifier)
        return problem.network.apply(learner.variables, images)


def ridge(features: jax.Array, labels: jax.Array) -> jax.Array:
    """Ridge regression in its dual form: `Phi^T (Phi Phi^T + I)^-1 y`, [F, C] of features [n, F] and labels [n, C]."""
    gram = _product(features, features.T) + _RIDGE * jnp.eye(len(features))
    return _product(features.T, jnp.linalg.solve(gram, labels))


def blended(classifier: jax.Array, features: jax.Array, labels: jax.Array) -> jax.Array:
    """The moving average of the classifier after a new solution, through which alone derivatives flow."""
    return (1 - _BLEND) * jax.lax.stop_gradient(classifier) + _BLEND * ridge(features, labels)


def as_probabilities(labels: jax.Array) -> jax.Array:
    """Rows [n, C] clipped to [0, 1] and divided by their sums; uniform where nothing is left."""
    clipped = jnp.clip(labels, 0, 1)
    total = clipped.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, clipped / jnp.where(total > 0, total, 1), 1 / labels.shape[1])


def _check_network(problem: Problem) -> None:
    """Raises a `UserError` for networks with batch norm, whose statistics a step would have to carry on."""
    if networks.has_batch_norm(problem.network, problem.image_shape):
        raise UserError("ld does not train networks with batch norm; choose another network")


def _features(problem: Problem, variables: Any, images: jax.Array) -> jax.Array:
    """Features and a one, float32 [n, F + 1]."""
    features = networks.embed(problem.network, variables, images, jnp.ones(len(images))).astype(jnp.float32)
    return jnp.pad(features, ((0, 0), (0, 1)), constant_values=1)


def _soft_loss(params, problem, images, labels):
    return _cross_entropy(problem.network.apply({"params": params}, images, train=True), labels)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy(logits, labels).mean()


def _loss_and_error(problem, data, targets, logits_of, at_once):
    """The loss on the targets, and besides it the losses [C'] and the weighted number of wrong ones."""

    def measure(images, labels):
        logits = logits_of(images)
        wrong = jnp.float32(logits.argmax(axis=-1) != labels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), wrong

    losses, wrong = performance.weighted(targets, measure, at_once)
    return losses.sum(), (performance.by_class(problem, data, losses), wrong.sum())


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
