"""What is timed: shapes of known data sets, and the arithmetic and the bytes that an iteration cannot do without."""

import math
import re
from typing import NamedTuple

from dmjax.config import GRADIENT, NetworkConfig
from dmjax.errors import UserError, near_misses
from dmjax.objectives import gradient

# name: (height, width, channels), classes, training images of a class
SHAPES = {
    "tiny": ((8, 8, 1), 10, 146),
    "mnist": ((28, 28, 1), 10, 6000),
    "fashion_mnist": ((28, 28, 1), 10, 6000),
    "svhn": ((32, 32, 3), 10, 7325),
    "cifar10": ((32, 32, 3), 10, 5000),
    "cifar100": ((32, 32, 3), 100, 500),
    "tiny_imagenet": ((64, 64, 3), 200, 500),
    "imagenet64": ((64, 64, 3), 1000, 1281),
}
_FORWARD_PASSES = 3  # over the output of a convolution: written, read for the statistics, read to be normalised
_GRADIENT = 3  # a forward and a backward pass cost about three forward ones


class Case(NamedTuple):
    """One thing to time.

    Attributes:
      name: As given.
      kind: "condense" or "evaluate".
      image_shape: (H, W, D).
      num_classes: C.
      images_per_class: Real training images of a class.
      ipc: M.
      method: "dm", "dc" or "dsa", of condensing.
    """

    name: str
    kind: str
    image_shape: tuple[int, int, int]
    num_classes: int
    images_per_class: int
    ipc: int
    method: str = "dm"


def parse(name: str) -> Case:
    """Reads DATASET-ipcM, dc-, dsa- or evaluate-DATASET-ipcM; raises a `UserError` for anything else."""
    match = re.fullmatch(r"(?:(evaluate|dc|dsa)-)?([a-z0-9_]+)-ipc([1-9]\d*)", name)
    if match is None:
        raise UserError(f"case {name!r} is not of the form cifar10-ipc10, dsa-cifar10-ipc10 or evaluate-cifar10-ipc10")
    prefix, dataset, ipc = match.groups()
    if dataset not in SHAPES:
        raise UserError(f"case {name!r}: unknown shape {dataset!r}; {near_misses(dataset, list(SHAPES))}")
    kind = "evaluate" if prefix == "evaluate" else "condense"
    return Case(name, kind, *SHAPES[dataset], int(ipc), prefix if prefix in GRADIENT else "dm")


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


def work(case: Case, network: NetworkConfig, depth: int, batch_real: int, batch: int) -> tuple[float, float]:
    """Operations and bytes of one iteration (of one training step of `batch` images for an evaluation).

    Real images only go forward; the gradient of the synthetic ones, and training, cost three times as much. Matching
    gradients takes a gradient of the real images, and one of the synthetic images' gradient, in every outer step.
    """
    if case.kind == "evaluate":
        forward = _GRADIENT * batch
    elif case.method in GRADIENT:
        outer, inner = gradient.loops(case.ipc)
        matched = outer * (_GRADIENT * min(batch_real, case.images_per_class) + _GRADIENT**2 * case.ipc)
        forward = case.num_classes * (matched + (outer - 1) * inner * _GRADIENT * case.ipc)
    else:
        real = min(batch_real, case.images_per_class)
        forward = case.num_classes * (real + _GRADIENT * case.ipc)
    size = 2 if network.precision == "bfloat16" else 4
    bytes_moved = forward * _FORWARD_PASSES * activations(network, depth, case.image_shape) * size
    return forward * forward_flops(network, depth, case.image_shape), bytes_moved


def steps_per_network(case: Case, epochs: int, batch: int) -> int:
    """Training steps of the full evaluation recipe."""
    return epochs * math.ceil(case.num_classes * case.ipc / batch)
