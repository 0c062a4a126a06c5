"""Matching the features of real and synthetic images: what all methods of the family of distribution matching share.

An iteration draws a network, embeds augmented real and synthetic images of every class in it, and moves the synthetic
images against the gradient of a distance between the two clouds of features. The methods of the literature are
compositions of a few choices, each of which is a setting of `MatchConfig`: which distance, where networks come from,
which terms are added, and how many training images a stored image stands for.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from dmjax import networks
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, Config, Count, Fraction
from dmjax.data import Dataset, augment, normalize, sampling
from dmjax.data.factor import Reduction, pack, unpack
from dmjax.methods import distances, embedding, network_queue
from dmjax.methods.base import CLASSES, DEVICES, ClassData, Condensed, Problem, in_groups, map_classes, real_batch
from dmjax.methods.cloud import Cloud, cross_entropy, observe
from dmjax.methods.embedding import Bank, Drawn
from dmjax.methods.images import LearnedImages
from dmjax.methods.match_config import TRAINED, MatchConfig
from dmjax.methods.network_queue import Queue, QueueConfig

_HISTORY = 0.99  # of the running mean of a class's own embedding


class MatchState(NamedTuple):
    """What an iteration changes.

    Attributes:
      images: float32 [C, M, H, W, D], the synthetic images; normalised, or in units of pixels / 255 (`pixels`).
      optimizer: State of the optimizer, one per class: every leaf is [C, ...].
      moves: int32 scalar, how often the images have moved.
      average: float32 [C, M, H, W, D], running mean of the images; None without one.
      history: float32 [C, F], running mean of the mean features of the synthetic images; None without one.
      queue: None without one.
    """

    images: Any
    optimizer: Any
    moves: Any
    average: Any = None
    history: Any = None
    queue: Queue | None = None


@dataclasses.dataclass(frozen=True)
class Matching(LearnedImages):
    """Any combination of the choices that methods of this family make; by default distribution matching.

    A method with a distance of its own inherits from it, or from `DM`, and replaces `distance`.
    """

    name: ClassVar[str] = "match"
    state_axes: ClassVar[Any] = MatchState(0, 0, None, 0, 0, None)
    statistics_axes: ClassVar[tuple[str, ...]] = (CLASSES, DEVICES)
    reduction: ClassVar[Reduction] = "nearest"
    """How real images are made smaller to start from, where there is a factor."""

    factor: Count = 1
    """Every stored image holds so many times so many training images, in blocks that are enlarged."""
    pixels: bool = False
    """Keep the images within [0, 1] and move them in these units; otherwise they are normalised and unbounded."""
    batch_synthetic: Count | None = None
    """Training images of a class that an iteration takes of the synthetic ones at most (by default all)."""
    average: Fraction = 0.0
    """Return the mean of the images over about the last so many iterations, as a share of all of them; 0: the images as
    they are after the last one."""
    match: MatchConfig = dataclasses.field(default_factory=MatchConfig)
    queue: QueueConfig = dataclasses.field(default_factory=QueueConfig)

    @classmethod
    def renewed(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Before there was `match`, `embedding` named the distribution and the accuracy of the networks."""
        before = settings.pop("embedding", None) or {}
        names = {"distribution": "networks", "accuracy": "accuracy"}
        match = {new: before[old] for old, new in names.items() if before.get(old) is not None}
        return {**settings, **({"match": match} if match else {})}

    def default_learning_rate(self, config: Config) -> float:
        """1, the rate of Zhao & Bilen, for a ConvNet; other families have their own, by images per class."""
        return networks.condensing_rate(config.network, config.ipc)

    def resolve(self, config: Config) -> Self:
        """Fills in what is left open, and checks what contradicts itself."""
        self.match.check()
        if self.pixels and config.data.zca:
            raise UserError("whitened images have no bounds; give --pixels false, or leave out --data.zca")
        queue = self.queue
        if queue.start > queue.size:
            raise UserError(f"queue.start {queue.start} is more than fit in a queue of --queue.size {queue.size}")
        if self.match.networks == "queue" and queue.every is None:
            queue = dataclasses.replace(queue, every=5 if config.ipc == 1 else 30)
        return dataclasses.replace(super().resolve(config), queue=queue)

    def uses_trained_networks(self) -> bool:
        """Whether networks are those that were trained on the whole set."""
        return self.match.networks in TRAINED

    def spreads_over_cores(self, config: Config) -> bool:
        """All do, but with networks of a queue, which each would train, and batch norm, whose sums would round anew."""
        return self.match.networks != "queue" and not networks.may_have_batch_norm(config.network)

    def separates_classes(self, config: Config) -> bool:
        """Whether no class matters to another one, as by the statistics of batch norm and by trained networks."""
        return self.match.networks == "random" and not networks.may_have_batch_norm(config.network)

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` where images or networks do not allow what is asked for."""
        height, width = dataset.image_shape[:2]
        factor = self.factor_of(config, dataset.image_shape)
        if height % factor or width % factor:
            raise UserError(f"factor {factor} does not divide images of {height}x{width}; choose another one")
        if self.init == "real":
            sampling.check_enough(dataset, config.ipc, f"{remedy}, or start from noise with --init noise", factor)
        network = networks.create(config.network, dataset.num_classes, dataset.image_shape)
        self._layers(network, dataset.image_shape)
        if self.match.local_covariance and not networks.has_last_map(network, dataset.image_shape):
            raise UserError(f"match.local_covariance needs feature maps, which {config.network.name} does not give")

    def _layers(self, network: Any, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The activations, counted from 0, whose attention maps are compared."""
        if self.match.distance != "attention":
            return ()
        there = networks.num_activations(network, image_shape)
        layers = tuple(range(1, there)) if self.match.layers is None else self.match.layers
        if not layers:
            raise UserError(f"attention maps are compared at all activations but the last, and the network has {there}")
        if max(layers) > there:
            names = f"activations 1 to {there}" if there else "no activations"
            raise UserError(f"match.layers {' '.join(map(str, layers))}: the network has {names}")
        return tuple(layer - 1 for layer in layers)

    def synthetic_images(self, config: Config, image_shape: tuple[int, ...]) -> int:
        """Training images of a class that an iteration embeds."""
        there = config.ipc * self.factor_of(config, image_shape) ** 2
        return min(there, self.batch_synthetic or there)

    def constants(self, problem: Problem) -> Bank | None:
        """The trained networks; None where none are used."""
        return embedding.bank(problem, self.match.networks, self.match.expert, self.match.accuracy)

    def start(self, problem: Problem, seed: int) -> MatchState:
        """Starts from random real images, packed where there is a factor, or from noise."""
        key, config = jax.random.fold_in(jax.random.key(seed), 0), problem.config
        if self.init == "noise" or problem.dataset is None:
            noise = jax.random.normal(key, (problem.num_classes, config.ipc, *problem.image_shape))
            images = jnp.clip(noise * problem.std + problem.mean, 0, 1) if self.pixels else noise
        else:
            self.check(config, problem.dataset)
            factor = self.factor_of(config, problem.image_shape)
            real = sampling.random_images(problem.dataset, config.ipc * factor**2, key)
            real = np.stack([pack(of_class, factor, self.reduction) for of_class in real])
            images = real.astype(np.float32) / 255 if self.pixels else normalize(real, problem.mean, problem.std)
        state = self.state_of(images)
        if self.match.history:
            state = state._replace(history=_no_history(problem))
        if self.match.networks == "queue":
            state = state._replace(queue=network_queue.start(problem, self.queue, jax.random.fold_in(key, 1)))
        return state

    def state_of(self, images: Any) -> MatchState:
        """The state before the first update of images [C, M, H, W, D], without history and queue."""
        state = super().state_of(images)
        return MatchState(state.images, state.optimizer, np.int32(0), state.images if self.average else None)

    def step(
        self, problem: Problem, key: jax.Array, state: MatchState, data: ClassData, constants: Bank | None
    ) -> tuple[MatchState, jax.Array]:
        """One iteration in one network."""
        network_key, key = jax.random.split(key)
        along = state.queue
        if along is not None:
            iteration = state.moves // self.match.updates
            along = network_queue.grow(problem, self.queue, jax.random.fold_in(network_key, 1), along, iteration)
        drawn, weight = self._draw(problem, network_key, along, constants)

        def update(state, key):
            history_counts = jnp.float32(state.moves // self.match.updates > self.match.history_after)

            def observe_real(place):
                return self._observe_real(problem, jax.random.fold_in(key, data.index[place]), drawn, data, place)

            def loss_and_gradient(rows, history, place, seen):
                class_key = jax.random.fold_in(key, data.index[place])
                past = None if history is None else (history, history_counts)
                images, there = rows.reshape(-1, *problem.image_shape), jnp.float32(data.count[place] > 0)
                found, gradient = self._loss_and_gradient(
                    problem, class_key, drawn, weight, images, past, seen, data.index[place], there
                )
                return found, gradient.reshape(rows.shape)

            def of_group(rows, history, places):
                seen = map_classes(observe_real, problem.chunks.classes, places)
                at_once = 1 if problem.chunks.synthetic_classes == 1 else None  # one alone is faster without `vmap`
                return map_classes(loss_and_gradient, at_once, rows, history, places, seen)

            # As rows, a class is one piece of memory in whatever layout a compiler prefers for images.
            rows = state.images.reshape(*state.images.shape[:2], -1)
            of_classes = rows, state.history, jnp.arange(len(data.index))
            (losses, means), gradients = in_groups(of_group, problem.chunks.synthetic_classes, *of_classes)
            return self._move(state, gradients.reshape(state.images.shape), means), losses

        if self.match.updates == 1:
            state, losses = update(state, key)
        else:
            state, losses = jax.lax.scan(update, state, jax.random.split(key, self.match.updates))
            losses = losses.mean(axis=0)
        if along is not None:
            along = network_queue.train(problem, self.queue, jax.random.fold_in(network_key, 2), along, data)
        return state._replace(queue=along), losses

    def _draw(self, problem: Problem, key: jax.Array, along: Queue | None, bank: Bank | None) -> tuple[Drawn, Any]:
        """The networks of an iteration, and the weight of the cross entropy in the expert."""
        if along is not None:
            variables = network_queue.draw(self.queue, key, along)
            # The better the networks are, the more it counts, in per cent (the authors' code).
            return Drawn(variables, variables), self.match.calibration * 100 * along.accuracy
        if bank is None:
            variables = embedding.random(problem, key)
            return Drawn(variables, variables), 0.0
        drawn = embedding.draw(bank, key, self.match.networks == "interpolated", self.match.expert == "same")
        return embedding.with_fresh(
            problem, drawn, jax.random.fold_in(key, 3), self.match.fresh
        ), self.match.calibration

    def _observe_real(self, problem, key, drawn, data, place):
        """The real batch of one class, as the network sees it, and how it was augmented."""
        sample_key, augment_key = jax.random.split(key)
        real, weights = real_batch(problem, sample_key, data, place, self.batch_real)
        siamese = augment.sample(augment_key, self.augmentation(problem.config), problem.image_shape)
        real = augment.apply(siamese, normalize(real, problem.mean, problem.std))
        return self._observe(problem, drawn.variables, real, weights, problem.chunks.real), siamese

    def _loss_and_gradient(self, problem, key, drawn, weight, images, past, seen, label, there):
        """The loss of one class with its mean feature, and the gradient by its images [M, H, W, D]."""
        real, siamese = jax.lax.stop_gradient(seen)

        def loss(images):
            shown = augment.apply(siamese, self._shown(problem, jax.random.fold_in(key, 1), images))
            weights = jnp.broadcast_to(there, shown.shape[:1])
            chunk = problem.chunks.synthetic
            in_one_pass = self._is_its_own_expert() and hasattr(problem.network, "classify")
            at_once = label if self.match.calibration and in_one_pass else None
            synthetic = self._observe(problem, drawn.variables, shown, weights, chunk, at_once)
            apart = self.distance(jax.random.fold_in(key, 2), real, synthetic)
            if jnp.shape(apart):
                raise UserError(f"distance must return a scalar for each class, not an array {list(jnp.shape(apart))}")
            total = self.match.weight * apart
            mean = distances.average(synthetic.features, weights)
            total += self._terms(real, synthetic, mean, past)
            if at_once is not None:  # one pass through the network gives both
                total += weight * distances.average(synthetic.losses, weights)
            elif self.match.calibration:
                total += weight * cross_entropy(problem, drawn.expert, shown, weights, label, chunk)
            return total, jax.lax.stop_gradient(mean)

        (value, mean), gradient = jax.value_and_grad(loss, has_aux=True)(images)
        return (value, mean if past is not None else None), gradient

    def augmentation(self, config: Config) -> AugmentConfig:
        """What is drawn once for a class and applied to its real and synthetic images."""
        given = config.augment
        strategy = given.strategy if self.match.strategy is None else self.match.strategy
        composite = given.composite if self.match.composite is None else self.match.composite
        return dataclasses.replace(given, strategy=strategy, composite=composite)

    def _shown(self, problem: Problem, key: jax.Array, images: jax.Array) -> jax.Array:
        """The normalised training images [n, H, W, D] that stored images of a class stand for, or a part of them."""
        factor = self.factor_of(problem.config, problem.image_shape)
        if factor > 1 or self.pixels:
            mean, std = problem.mean.reshape(1, 1, 1, -1), problem.std.reshape(1, 1, 1, -1)
            units = images if self.pixels else images * std + mean
            images = (unpack(units, factor) - mean) / std
        most = self.batch_synthetic
        if most is not None and most < len(images):
            images = images[jax.random.permutation(key, len(images))[:most]]
        return images

    def _is_its_own_expert(self) -> bool:
        """Whether the network that is matched in classifies the images too."""
        return (self.match.networks in ("queue", "trained") or self.match.expert == "same") and not self.match.fresh

    def _observe(
        self, problem: Problem, variables: Any, images: Any, weights: Any, chunk: int | None, label: Any = None
    ) -> Cloud:
        """The features of images with weights, and what else the distance and the terms take."""
        layers, match = self._layers(problem.network, problem.image_shape), self.match
        with_map = bool(match.local_covariance)
        return observe(problem, variables, images, weights, chunk, layers, match.exponent, with_map, label)

    def distance(self, key: jax.Array, real: Cloud, synthetic: Cloud) -> jax.Array:
        """The distance between the real and the synthetic images of one class, as `MatchConfig.distance` names it.

        Args:
          key: PRNG key of this class and iteration, for distances that draw something.
          real: Of B augmented real images; no gradient flows through it.
          synthetic: Of the augmented synthetic images.

        Returns:
          Scalar; it should be 0 for a class that is all padding, whose weights are all 0.
        """
        match, clouds = self.match, (real.features, real.weights, synthetic.features, synthetic.weights)
        if match.distance == "kernel":
            return distances.kernel(*clouds, match.bandwidths)
        if match.distance == "ncf":
            frequencies = jax.random.normal(key, (match.frequencies, real.features.shape[-1]))
            return distances.characteristic(*clouds, frequencies)
        total = distances.mean(*clouds)
        if match.distance == "covariance":
            total += match.covariance / real.features.shape[-1] * distances.covariance(*clouds)
        if match.distance == "attention":
            for r, s in zip(real.attention, synthetic.attention, strict=True):
                total += match.attention * distances.mean(r, real.weights, s, synthetic.weights)
        return total

    def _terms(self, real: Cloud, synthetic: Cloud, mean: jax.Array, past: tuple[Any, Any] | None) -> jax.Array:
        """What is added to the distance, but for the cross entropy; `past` is the history, and 1 where it counts."""
        match, total = self.match, jnp.float32(0)
        if match.local_covariance:
            maps = real.last_map, real.weights, synthetic.last_map, synthetic.weights
            total += match.local_covariance * distances.local_covariance(*maps)
        if match.centralization:
            total += match.centralization * distances.centralization(synthetic.features, synthetic.weights)
        if past is not None:
            history, counts = past
            total += counts * match.history * jnp.mean((mean - history) ** 2)
        return total

    def _move(self, state: MatchState, gradients: jax.Array, means: jax.Array) -> MatchState:
        """The state after the images of every class have moved against gradients [C, M, H, W, D]."""
        moved = self.update(state, gradients)  # type: ignore[arg-type]
        images = jnp.clip(moved.images, 0, 1) if self.pixels else moved.images
        average, history = state.average, state.history
        if average is not None:
            span = self.average * jnp.float32(state.moves + 1)
            average = average + (images - average) / jnp.maximum(1.0, span)
        if history is not None:
            history = history + jnp.where(state.moves == 0, 1.0, 1 - _HISTORY) * (means - history)
        return MatchState(images, moved.optimizer, state.moves + 1, average, history, state.queue)

    def finish(self, problem: Problem, state: MatchState) -> Condensed:
        """The images in units of pixels / 255, as they are: neither clipped nor rounded, unless `pixels` is set."""
        images = state.images if state.average is None else state.average
        images = images if self.pixels else images * problem.std + problem.mean
        return Condensed(images, factor=self.factor_of(problem.config, problem.image_shape))

    def forward_passes(self, config: Config, num_classes: int, image_shape: tuple[int, ...], real: int) -> float:
        """Real images only go forward; a gradient costs as much as two more passes, and training along likewise."""
        embedded = self.synthetic_images(config, image_shape)
        again = embedded if self.match.calibration and not self._is_its_own_expert() else 0
        trained = self.queue.trained * self.queue.steps * self.queue.batch_size if self.match.networks == "queue" else 0
        return self.match.updates * num_classes * (real + 3 * (embedded + again)) + 3 * trained


def _no_history(problem: Problem) -> jax.Array:
    """The history before the first iteration."""

    def features():  # as `init` runs a network: batch norm does not yet reduce over mapped axes
        images = jnp.zeros((1, *problem.image_shape))
        return problem.network.init_with_output(jax.random.key(0), images, train=True, method="embed")[0]

    return jnp.zeros((problem.num_classes, jax.eval_shape(features).shape[-1]))
