"""What is timed: shapes of known data sets, and the arithmetic and the bytes that an iteration cannot do without."""

import math
import re
from typing import NamedTuple

from dmjax import methods
from dmjax.common.errors import UserError, near_misses
from dmjax.config import BenchmarkConfig, Config, NetworkConfig
from dmjax.settings import experiment, fields

# name: (height, width, channels), classes, training images of a class
SHAPES = {
    "tiny": ((8, 8, 1), 10, 146),
    "mnist": ((28, 28, 1), 10, 6000),
    "fashion_mnist": ((28, 28, 1), 10, 6000),
    "svhn": ((32, 32, 3), 10, 7325),
    "cifar10": ((32, 32, 3), 10, 5000),
    "cifar100": ((32, 32, 3), 100, 500),
    "tiny_imagenet": ((64, 64, 3), 200, 500),
    "imagenet64": ((64, 64, 3), 1000, 1300),  # of the largest class, to which the others are padded
}
_FORWARD_PASSES = 3  # over the output of a convolution: written, read for the statistics, read to be normalised
_TRAINING = 3  # a forward and a backward pass cost about three forward ones


class Case(NamedTuple):
    """One thing to time.

    Attributes:
      name: As given.
      kind: "condense" or "evaluate".
      image_shape: (H, W, D).
      num_classes: C.
      images_per_class: Real training images of a class.
      ipc: M.
      method: The name of the method that condenses.
    """

    name: str
    kind: str
    image_shape: tuple[int, int, int]
    num_classes: int
    images_per_class: int
    ipc: int
    method: str = Config.method


def parse(name: str) -> Case:
    """Reads DATASET-ipcM, METHOD-DATASET-ipcM or evaluate-DATASET-ipcM; raises a `UserError` for anything else."""
    iterative = [method for method, cls in methods.built_in().items() if cls().iterations]
    match = re.fullmatch(rf"(?:(evaluate|{'|'.join(iterative)})-)?([a-z0-9_]+)-ipc([1-9]\d{{0,5}})", name)
    if match is None:
        raise UserError(f"case {name!r} is not of the form cifar10-ipc10, dsa-cifar10-ipc10 or evaluate-cifar10-ipc10")
    prefix, dataset, ipc = match.groups()
    if dataset not in SHAPES:
        raise UserError(f"case {name!r}: unknown shape {dataset!r}; {near_misses(dataset, list(SHAPES))}")
    kind = "evaluate" if prefix == "evaluate" else "condense"
    return Case(name, kind, *SHAPES[dataset], int(ipc), prefix if prefix in iterative else Config.method)


def settings(case: Case, config: BenchmarkConfig) -> Config:
    """The configuration of a run of a case."""
    method = methods.create(case.method)
    if config.batch_real is not None and hasattr(method, "batch_real"):
        method = fields.replace(method, {"batch_real": config.batch_real})
    shared = {name: getattr(config, name) for name in ("network", "augment", "class_chunk", "image_chunk", "memory_gb")}
    return experiment.resolve(Config(method=method, ipc=case.ipc, **shared))


def forward_flops(network: NetworkConfig, depth: int, image_shape: tuple[int, int, int]) -> float:
    """Operations of the convolutions for one image: 101.5e6 for 32x32x3, width 128 and depth 3."""
    return sum(2 * 9 * channels * network.width * area for channels, area in _blocks(network, depth, image_shape))


def activations(network: NetworkConfig, depth: int, image_shape: tuple[int, int, int]) -> int:
    """Numbers that the convolutions of one image put out."""
    return sum(network.width * area for _, area in _blocks(network, depth, image_shape))


def _blocks(network, depth, image_shape):
    height, width, channels = image_shape
    if channels == 1:  # the border of one-channel images
        height, width = height + 4, width + 4
    for _ in range(depth):
        yield channels, height * width
        channels = network.width
        if network.pooling != "none":
            height, width = height // 2, width // 2


def work(case: Case, config: Config, depth: int, batch: int) -> tuple[float, float] | None:
    """Operations and bytes of one iteration (of one training step of `batch` images for an evaluation).

    Returns:
      Both, or None where the method does not say what an iteration takes.
    """
    network, method = config.network, config.method
    real = min(getattr(method, "batch_real", case.images_per_class), case.images_per_class)
    training = case.kind == "evaluate"
    forward = _TRAINING * batch if training else method.forward_passes(config, case.num_classes, case.image_shape, real)
    if forward is None:
        return None
    size = 2 if network.precision == "bfloat16" else 4
    bytes_moved = forward * _FORWARD_PASSES * activations(network, depth, case.image_shape) * size
    return forward * forward_flops(network, depth, case.image_shape), bytes_moved


def real_images(case: Case, config: Config) -> int:
    """Real images that an iteration takes, of all classes together."""
    if hasattr(config.method, "batch_target"):
        each = config.method.batch_target // case.num_classes
    else:
        each = getattr(config.method, "batch_real", case.images_per_class)
    return case.num_classes * min(max(1, each), case.images_per_class)


def steps_per_network(case: Case, epochs: int, batch: int) -> int:
    """Training steps of the full evaluation recipe."""
    return epochs * math.ceil(case.num_classes * case.ipc / batch)
