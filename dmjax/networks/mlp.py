"""MLP: two hidden layers of 128 over the pixels (the smallest network of the papers' pools)."""

import flax.linen as nn
import jax

from dmjax.networks.base import Network, activated
from dmjax.networks.layers import Linear


class MLP(Network):
    """Linear layers of 128 and 128 with relu."""

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, 128]."""
        x = x.reshape(x.shape[0], -1)
        for layer in range(2):
            x = activated(self, nn.relu(Linear(128, self.precision, name=f"linear{layer}")(x)))
        return x
