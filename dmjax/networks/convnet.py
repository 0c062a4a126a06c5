"""ConvNet: blocks of convolution, norm, activation and pooling (Gidaris & Komodakis 2018; the papers' default)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from dmjax.common.errors import UserError
from dmjax.networks.base import Network, activated, flattened
from dmjax.networks.layers import ACTIVATIONS, Conv, Norm, pool


class ConvNet(Network):
    """`depth` blocks of 3x3 convolution, norm, activation, 2x2 pooling, then one linear layer.

    Attributes:
      width: Channels of every block.
      depth: Number of blocks.
      activation: A key of `layers.ACTIVATIONS`.
      pooling: A kind of `layers.pool`.
    """

    width: int = 128
    depth: int = 3
    activation: str = "relu"
    pooling: str = "avg"

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, F] in the precision's type; `weights` [n] are those of batch norm."""
        for block in range(self.depth):
            # One-channel images gain a border, so that 28 becomes 32.
            padding = 3 if block == 0 and x.shape[-1] == 1 else 1
            x = Conv(self.width, padding=padding, precision=self.precision, name=f"conv{block}")(x)
            x = Norm(self.norm, self.axis_name, name=f"norm{block}")(x, train, weights)
            x = pool(activated(self, ACTIVATIONS[self.activation](x)), self.pooling)
        return flattened(self, x)


def fit(options: Mapping[str, Any], image_shape: Sequence[int]) -> Mapping[str, Any]:
    """The options with the depth filled in, by default one that leaves features of 4x4.

    Raises:
      UserError: a depth that is too large for the images, or a width that group norm cannot divide.
    """
    if options["norm"] == "group" and options["width"] % 4:
        raise UserError(f"network.norm group needs a width that 4 divides, not {options['width']}")
    side = min(image_shape[:2]) + (4 if image_shape[2] == 1 else 0)
    deepest = side.bit_length() - 1 if options["pooling"] != "none" else 64
    depth = options.get("depth") or min(deepest, max(3, (side // 4).bit_length() - 1))
    if depth > deepest:
        raise UserError(
            f"network.depth {depth} is too deep for {image_shape[0]}x{image_shape[1]} images: "
            f"every block halves them; at most {deepest}"
        )
    return {**options, "depth": depth}
