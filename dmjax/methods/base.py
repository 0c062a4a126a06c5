"""What a method is: settings, and how its state is started, moved by one iteration, and finished as a set of images.

A method is a frozen dataclass that inherits from `Method`. Its fields are its settings, which become flags of the
command line. It implements `start` and `finish` and, unless it is done at once, `step`:

    start(problem, seed)                         -> state: any tree of arrays
    step(problem, key, state, data, constants)   -> state, losses [C]; compiled, on the devices
    finish(problem, state)                       -> Condensed; on the host

The loop around it (`dmjax.run`) compiles many steps into one program, spreads the classes over the devices, and saves
and restores the state. It can do so for every method, since a method declares which leaves of its state have the class
axis in front (`state_axes`). The key of a step is derived from the seed and the number of the iteration, and neither
devices nor interruptions change it; what differs between classes is to be derived from `ClassData.index`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmjax.config import Config, NamedFields
from dmjax.data import Dataset, sampling
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.on_device import Examples
from dmjax.evaluation.pretrained import TrainedNetworks
from dmjax.evaluation.testing import Tested

CLASSES, DEVICES = "classes", "devices"
"""Names of the mapped axes: classes of one device under `vmap`, and devices."""


class ClassData(NamedTuple):
    """The real images of the classes that one device owns.

    An image is one row of numbers, so that an iteration reads those that it draws and nothing else: TPUs keep images
    of few channels in a layout from which rows cannot be taken, and would change that of all images before every draw.

    Attributes:
      images: uint8 [C, N, H * W * D] or a little more, where devices want longer rows: what fills them is not used.
      count: int32 [C], how many of the N are images; 0 for a class that only pads the class axis.
      index: int32 [C], number of the class in the whole data set.
    """

    images: Any
    count: Any
    index: Any

    @classmethod
    def of(cls, images: np.ndarray, count: np.ndarray) -> Self:
        """Those of a whole data set: images uint8 [C, N, H, W, D] and, of every class, how many there are."""
        rows, count = images.reshape(*images.shape[:2], -1), np.asarray(count, np.int32)
        return cls(rows, count, np.arange(len(count), dtype=np.int32))


class Chunks(NamedTuple):
    """How much is computed at once, which bounds memory and does not change the result; None for all.

    Attributes:
      classes: Classes whose real images are embedded together.
      real: Real images of a class that are embedded together.
      synthetic: Synthetic images of a class that are embedded together.
      synthetic_classes: Classes whose synthetic images are embedded together, by the methods that embed them after the
        real ones. Such a group of classes is done before the next one begins.
      recompute: Whether the activations of synthetic images are computed again for the gradient, so that only those
        that are embedded together have theirs in memory. Otherwise they are kept, which is faster.
    """

    classes: int | None = None
    real: int | None = None
    synthetic: int | None = None
    synthetic_classes: int | None = None
    recompute: bool = False

    def __str__(self) -> str:
        *numbers, _ = self._asdict().items()
        shown = ", ".join(f"{name} {n or 'all'}" for name, n in numbers)
        return f"{shown}, activations computed again" if self.recompute else shown


class Condensed(NamedTuple):
    """What a method has made.

    Attributes:
      images: [C, M, H, W, D], float32 in units of pixels / 255 or uint8 pixels.
      labels: Soft labels float32 [C, M, C]; None where the label of an image is its class.
      factor: Every image unpacks into factor^2 training images (`dmjax.data.factor`).
      extra: Further arrays that `Method.test` needs, by name.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    factor: int = 1
    extra: Mapping[str, np.ndarray] = {}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a method works on; it does not change in a run.

    Attributes:
      config: The resolved configuration.
      network: Embeds and classifies images; a method draws its parameters.
      num_classes: C, of all devices together.
      image_shape: (H, W, D).
      mean: float32 [D], of pixels / 255.
      std: float32 [D], of pixels / 255.
      chunks: How much to compute at once.
      dataset: The real images on the host; None where programs are only compiled or timed.
      trained: Networks trained on the whole training set, on demand; None without a data set.
    """

    config: Config
    network: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    chunks: Chunks = dataclasses.field(default_factory=Chunks)
    dataset: Dataset | None = None
    trained: TrainedNetworks | None = None


@dataclasses.dataclass(frozen=True)
class Method(NamedFields):
    """A method, with its settings as fields; see the head of this file.

    Attributes:
      name: Its name on the command line.
      published: Published test accuracies in per cent at 1, 10 and 50 images per class, by the name of the data set.
      iterations: How many; 0 for a method that is finished once it has started. Iterative methods make it a field.
      state_axes: As `in_axes` of `vmap`, a prefix of the state: 0 where a leaf has the class axis in front, None
        where a leaf is the same on all devices.
      statistics_axes: Mapped axes over which batch norm of `Problem.network` reduces its statistics: those of a method
        that embeds each class on its own, so that batch norm sees all of them. Then classes and images cannot be
        computed in chunks. Methods that gather whole batches themselves have none.
      inner_loop: Whether an iteration trains a network, so that it takes seconds: one is compiled into a dispatch.
      makes_set: False for a method that makes no set but is judged on the whole training set.
      bound: Which bound of accuracy the method is, if any: scores compare with "lower" and "upper".
      published_note: What the published figures were measured with, where that is not a network trained on the set.
      own_evaluation: What `test` does, in a few words; None for a method that has none.
      own_evaluation_is_random: Whether its result depends on the key, so that it is repeated.
    """

    name: ClassVar[str]
    published: ClassVar[Mapping[str, tuple[float | None, float | None, float | None]]] = {}
    published_note: ClassVar[str | None] = None
    own_evaluation: ClassVar[str | None] = None
    own_evaluation_is_random: ClassVar[bool] = True
    iterations: ClassVar[int] = 0
    state_axes: ClassVar[Any] = 0
    statistics_axes: ClassVar[tuple[str, ...]] = ()
    inner_loop: ClassVar[bool] = False
    makes_set: ClassVar[bool] = True
    bound: ClassVar[str | None] = None

    @classmethod
    def renewed(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Stored settings (JSON values by the names of fields) of an earlier version, in the terms of this one."""
        return {name: value for name, value in settings.items() if name != "embedding"}  # which all methods had

    def resolve(self, config: Config) -> Self:
        """Fills in the settings that were left open (None) and follow from network, data set or images per class.

        Args:
          config: The configuration, whose network is resolved.

        Raises:
          UserError: settings that cannot be right, whatever the data are.
        """
        return self

    def evaluation(self, config: Config) -> Mapping[str, Any]:
        """What the authors of the method evaluate with: values for fields of `EvaluationConfig` that were left open."""
        return {"strategy": config.augment.strategy, "epochs": 1000}

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """The networks trained on the whole set: values for fields of `PretrainedConfig` that were left open."""
        pool = {"networks": 5, "epochs": 20, "states": 20, "spacing": "early"}
        return {**pool, "batch_size": 64, "strategy": config.augment.strategy}

    def uses_trained_networks(self) -> bool:
        """Whether the method takes networks that were trained on the whole set (`Problem.trained`)."""
        return False

    def spreads_over_cores(self, config: Config) -> bool:
        """Whether the cores of a CPU take a share of the classes each, as devices of another kind always do.

        They should not where every device does the same work, such as training a network.

        Args:
          config: The resolved configuration.
        """
        return False

    def separates_classes(self, config: Config) -> bool:
        """Whether the images that are made of a class depend on the real images of that class alone.

        Then the set of some classes is a part of the set of all.

        Args:
          config: The resolved configuration.
        """
        return False

    def check(self, config: Config, dataset: Dataset, remedy: str = "lower it") -> None:
        """Raises a `UserError` that ends in `remedy` where the method cannot work on these data."""

    def start(self, problem: Problem, seed: int) -> Any:
        """Returns the state before the first iteration, from the seed of the run."""
        raise TypeError(f"{type(self).__name__} has no start(problem, seed)")

    def constants(self, problem: Problem) -> Any:
        """Returns arrays that all devices hold besides the state, such as the weights of trained networks."""
        return None

    def step(
        self, problem: Problem, key: jax.Array, state: Any, data: ClassData, constants: Any
    ) -> tuple[Any, jax.Array]:
        """Returns the state after one iteration and the losses [C]; pure, traced once and compiled."""
        raise TypeError(f"{type(self).__name__} has no step(problem, key, state, data, constants)")

    def finish(self, problem: Problem, state: Any) -> Condensed:
        """Returns the set that a state stands for. It is called on the host, for pictures along the way too."""
        raise TypeError(f"{type(self).__name__} has no finish(problem, state)")

    def test(self, problem: Problem, synthetic: SyntheticSet, examples: Examples, key: jax.Array) -> Tested:
        """Tests a set in the way that the method learned it for, such as by its own few training steps.

        It is measured beside the accuracy of networks that are trained on the set like on any other, as often as there
        are networks to evaluate.

        Args:
          problem: What the set was made for.
          synthetic: The set, with what `finish` returned in `extra`.
          examples: The test images (`dmjax.evaluation.on_device.place_test`).
          key: Of this network's initialisation.
        """
        raise TypeError(f"{type(self).__name__} has no test(problem, synthetic, examples, key)")

    def factor_of(self, config: Config, image_shape: tuple[int, ...]) -> int:
        """The factor of the sets of images (H, W, D): each stored image holds factor^2 training images."""
        return getattr(self, "factor", 1)

    def synthetic_images(self, config: Config, image_shape: tuple[int, ...]) -> int:
        """How many synthetic images of a class an iteration embeds, as they are when they are unpacked."""
        return config.ipc

    def forward_passes(self, config: Config, num_classes: int, image_shape: tuple[int, ...], real: int) -> float | None:
        """How many images an iteration passes forward through the network, where a gradient counts as two passes more.

        The benchmark makes the arithmetic floor of it.

        Args:
          config: The resolved configuration.
          num_classes: C.
          image_shape: (H, W, D).
          real: Real images per class and iteration.

        Returns:
          The number, or None where it is not known.
        """
        return None


def real_batch(
    problem: Problem, key: jax.Array, data: ClassData, place: jax.Array, batch: int
) -> tuple[jax.Array, jax.Array]:
    """Draws a class's real batch without replacement: uint8 [B, H, W, D], and weights [B] that are 0 for fillers.

    Args:
      problem: What the method works on.
      key: PRNG key.
      data: Of all classes of a device.
      place: int32 scalar, which of these classes, counted on the device.
      batch: How many; all where the class has fewer.
    """
    size = data.images.shape[1]
    indices, weights = sampling.without_replacement(key, data.count[place], size, min(batch, size))
    rows = data.images[place, indices][:, : math.prod(problem.image_shape)]
    return rows.reshape(-1, *problem.image_shape), weights


def in_chunks(function: Callable, arrays: Sequence[jax.Array], chunk: int | None, recompute: bool = True) -> Any:
    """Stacks [parts, ...] what a function gives for chunks of arrays [n, ...], such as images and their weights.

    The last chunk is padded with zeros: what pads has weight 0. Without a chunk there is one part. With `recompute`
    only one chunk has its activations in memory, since a gradient computes them again; otherwise it takes those of all.
    """
    n = len(arrays[0])
    if chunk is None or chunk >= n:
        return jax.tree.map(lambda leaf: leaf[None], function(*arrays))
    parts = -(-n // chunk)
    size = -(-n // parts)  # as even as possible, so that little is padded

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, parts * size - n)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(parts, size, *x.shape[1:])

    def of_part(part: Sequence[jax.Array]) -> Any:
        return function(*part)

    return jax.lax.map(jax.checkpoint(of_part) if recompute else of_part, [split(x) for x in arrays])


def map_classes(function: Callable, at_once: int | None, *args: Any) -> Any:
    """Maps `function` over the leading class axis: `at_once` classes under `vmap`, one chunk after another.

    Only the chunk at hand has its activations in memory. None takes all classes at once, with the axis named, as
    batch norm over all classes needs it.
    """
    if at_once is None:
        return jax.vmap(function, axis_name=CLASSES)(*args)
    if at_once == 1:  # nothing to vectorise: plain convolutions are faster than vmapped ones on a CPU
        return jax.lax.map(lambda a: function(*a), args)
    return jax.lax.map(lambda a: function(*a), args, batch_size=at_once)


def in_groups(function: Callable, size: int | None, *args: Any) -> Any:
    """Applies `function` to arrays [C, ...], so many classes after another: what it returns is [C, ...] as well.

    Where `map_classes` gives a function one class, this gives it a group of classes; None is one group of all.
    """
    classes = len(jax.tree.leaves(args)[0])
    if size is None or size >= classes:
        return function(*args)
    whole = classes // size * size
    head = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), args)
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(lambda a: function(*a), head))
    if whole == classes:
        return out
    rest = function(*jax.tree.map(lambda x: x[whole:], args))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), out, rest)


def gather(num_classes: int, share: jax.Array) -> jax.Array:
    """The classes of all devices, [C / devices, ...] -> [C, ...], without what pads the last share."""
    return jax.lax.all_gather(share, DEVICES, tiled=True)[:num_classes]
