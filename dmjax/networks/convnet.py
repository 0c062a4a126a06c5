"""ConvNet: blocks of convolution, norm, activation and pooling (Gidaris & Komodakis 2018; the papers' default)."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from dmjax.config import NetworkConfig
from dmjax.errors import UserError
from dmjax.networks.layers import ACTIVATIONS, Conv, Linear, Norm, pool


class ConvNet(nn.Module):
    """`depth` blocks of 3x3 convolution, norm, activation, 2x2 pooling, then one linear layer.

    Attributes:
      num_classes: Outputs of the classifier.
      width: Channels of every block.
      depth: Number of blocks.
      activation: A key of `layers.ACTIVATIONS`.
      norm: A kind of `layers.Norm`.
      pooling: A kind of `layers.pool`.
      axis_name: Mapped axes that batch norm reduces over.
      precision: A key of `layers.PRECISIONS`.
    """

    num_classes: int
    width: int = 128
    depth: int = 3
    activation: str = "relu"
    norm: str = "instance"
    pooling: str = "avg"
    axis_name: Sequence[str] = ()
    precision: str = "float32"

    def setup(self):
        self.classifier = Linear(self.num_classes, self.precision)

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, F] in the precision's type; `weights` [n] are those of batch norm."""
        for block in range(self.depth):
            # One-channel images gain a border, so that 28 becomes 32.
            padding = 3 if block == 0 and x.shape[-1] == 1 else 1
            x = Conv(self.width, padding=padding, precision=self.precision, name=f"conv{block}")(x)
            x = Norm(self.norm, self.axis_name, name=f"norm{block}")(x, train, weights)
            x = pool(ACTIVATIONS[self.activation](x), self.pooling)
        return x.reshape(x.shape[0], -1)

    def __call__(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Normalised images [n, H, W, D] -> logits [n, num_classes]."""
        return self.classifier(self.embed(x, train, weights))


def create(config: NetworkConfig, num_classes: int, image_shape: Sequence[int], axis_name: Sequence[str]) -> ConvNet:
    """Checks that the depth fits the image, and chooses it where it is not given."""
    side = min(image_shape[:2]) + (4 if image_shape[2] == 1 else 0)
    deepest = side.bit_length() - 1 if config.pooling != "none" else 64
    depth = config.depth
    if depth is None:
        depth = min(deepest, max(3, (side // 4).bit_length() - 1))
    if depth > deepest:
        raise UserError(
            f"network.depth {depth} is too deep for {image_shape[0]}x{image_shape[1]} images: "
            f"every block halves them; at most {deepest}"
        )
    if config.norm == "group" and config.width % 4:
        raise UserError(f"network.norm group needs a width that 4 divides, not {config.width}")
    options = (config.activation, config.norm, config.pooling, tuple(axis_name), config.precision)
    return ConvNet(num_classes, config.width, depth, *options)
