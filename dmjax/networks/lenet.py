"""LeNet (LeCun et al. 1998) with relu and max pooling, as in the papers' pools."""

import flax.linen as nn
import jax

from dmjax.networks.base import Network, activated, flattened
from dmjax.networks.layers import Conv, Linear, pool


class LeNet(Network):
    """5x5 convolutions of 6 and 16 channels, each pooled, then linear layers of 120 and 84."""

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, 84]."""
        paddings = (2 if x.shape[-1] == 1 else 0, 0)
        for i, (features, padding) in enumerate(zip((6, 16), paddings, strict=True)):
            x = Conv(features, size=5, padding=padding, precision=self.precision, name=f"conv{i}")(x)
            x = pool(activated(self, nn.relu(x)), "max")
        x = flattened(self, x)
        for i, features in enumerate((120, 84)):
            x = activated(self, nn.relu(Linear(features, self.precision, name=f"linear{i}")(x)))
        return x
