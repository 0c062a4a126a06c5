"""What is matched: one file an objective. The loop and all around it do not know which one runs."""

import flax.linen as nn

from dmjax import networks
from dmjax.config import GRADIENT, Config
from dmjax.objectives import distribution, gradient
from dmjax.step import CLASSES, DEVICES, Chunks, Problem, Step


def make_network(config: Config, num_classes: int, image_shape: tuple[int, int, int]) -> tuple[nn.Module, bool]:
    """The network of `config.method`, and whether it must see all classes and images at once.

    Distribution matching treats each class on its own and reduces batch norm's statistics over them; gradient matching
    gathers whole batches, and then batch norm stands still.
    """
    axes = () if config.method in GRADIENT else (CLASSES, DEVICES)
    network = networks.create(config.network, num_classes, image_shape, axes)
    return network, bool(axes) and networks.has_batch_norm(network, image_shape)


def make_step(problem: Problem, chunks: Chunks) -> Step:
    """One iteration of the configured method.

    Args:
      problem: With the network from `make_network`.
      chunks: How much is computed at once.
    """
    objective = gradient if problem.config.method in GRADIENT else distribution
    return objective.make_step(problem, chunks)
