"""What is matched: one file an objective. Nothing else knows which one runs."""

import flax.linen as nn
import numpy as np
import optax

from dmjax import networks
from dmjax.config import GRADIENT, Config
from dmjax.objectives import distribution, gradient
from dmjax.step import CLASSES, DEVICES, Chunks, Step


def make_network(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """The network of `config.method`, and whether it must see all classes and images at once.

    Distribution matching treats each class on its own and reduces batch norm's statistics over them; gradient matching
    gathers whole batches, and then batch norm stands still.
    """
    axes = () if config.method in GRADIENT else (CLASSES, DEVICES)
    network = networks.create(config.network, num_classes, image_shape, axes)
    return network, bool(axes) and networks.has_batch_norm(network, image_shape)


def make_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    config: Config,
    mean: np.ndarray,
    std: np.ndarray,
    chunks: Chunks,
    num_classes: int,
) -> Step:
    """One iteration of `config.method`.

    Args:
      network: From `make_network`.
      optimizer: Of the synthetic images.
      config: For the method and its settings.
      mean: [D], of pixels / 255.
      std: [D], of pixels / 255.
      chunks: How much is computed at once.
      num_classes: C, of all devices together.
    """
    if config.method in GRADIENT:
        return gradient.make_step(network, optimizer, config, mean, std, chunks, num_classes)
    return distribution.make_step(network, optimizer, config, mean, std, chunks)
