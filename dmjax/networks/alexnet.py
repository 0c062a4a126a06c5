"""AlexNet (Krizhevsky et al. 2012) for small images, as in the papers' pools."""

import flax.linen as nn
import jax

from dmjax.networks.base import Network, activated, flattened
from dmjax.networks.layers import Conv, Norm, pool

# (channels, kernel size, pooled) of each convolution
_LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))


class AlexNet(Network):
    """Five convolutions with relu, three of them max-pooled; a norm after each where one is chosen."""

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, F], 192 x 4 x 4 for 32 pixels."""
        for i, (features, size, pooled) in enumerate(_LAYERS):
            # One-channel images gain a border, so that 28 becomes 32.
            padding = 4 if i == 0 and x.shape[-1] == 1 else size // 2
            x = Conv(features, size=size, padding=padding, precision=self.precision, name=f"conv{i}")(x)
            x = activated(self, nn.relu(Norm(self.norm, self.axis_name, name=f"norm{i}")(x, train, weights)))
            x = pool(x, "max") if pooled else x
        return flattened(self, x)
