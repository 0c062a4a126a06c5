"""VGG (Simonyan & Zisserman 2015) with one linear layer, as in the papers' pools."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from dmjax.networks.base import Network, activated, flattened
from dmjax.networks.layers import Conv, Norm, pool

# convolutions of every stage, which ends in max pooling
STAGES = {
    "VGG11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "VGG13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "VGG16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "VGG19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(Network):
    """3x3 convolutions with norm and relu in five stages.

    Attributes:
      stages: Channels of the convolutions of each stage.
    """

    stages: Sequence[Sequence[int]] = STAGES["VGG11"]

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, F], 512 for 32 pixels."""
        i = 0
        for stage in self.stages:
            for features in stage:
                padding = 3 if i == 0 and x.shape[-1] == 1 else 1  # 28 becomes 32
                x = Conv(features, padding=padding, precision=self.precision, name=f"conv{i}")(x)
                x = activated(self, nn.relu(Norm(self.norm, self.axis_name, name=f"norm{i}")(x, train, weights)))
                i += 1
            x = pool(x, "max")
        return flattened(self, x)
