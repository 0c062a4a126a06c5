"""AlexCifarNet, the network of Dataset Distillation and Label Distillation on CIFAR-10; it is not `AlexNet`.

After the example of cuda-convnet and TensorFlow's CIFAR-10 tutorial: local response normalisation in place of a norm.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmjax.networks.base import Network, activated, flattened
from dmjax.networks.layers import Conv, Linear

_SIZE, _ALPHA, _BETA = 4, 0.001 / 9, 0.75  # of the local response normalisation


class AlexCifarNet(Network):
    """Two 5x5 convolutions of 64 channels with relu, pooling and normalisation, then linear layers of 384 and 192."""

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, 192]."""
        x = activated(self, nn.relu(Conv(64, size=5, padding=2, precision=self.precision, name="conv0")(x)))
        x = local_response_norm(_pool(x))
        x = activated(self, nn.relu(Conv(64, size=5, padding=2, precision=self.precision, name="conv1")(x)))
        x = _pool(local_response_norm(x))
        x = flattened(self, x)
        for i, features in enumerate((384, 192)):
            x = activated(self, nn.relu(Linear(features, self.precision, name=f"linear{i}")(x)))
        return x


def _pool(x: jax.Array) -> jax.Array:
    """Maxima of 3x3 pixels with stride 2; one pixel is added on each side."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def local_response_norm(x: jax.Array) -> jax.Array:
    """Divides [n, H, W, D] by `(1 + alpha / 4 * sum of the squares of 4 neighbouring channels) ^ 0.75`.

    The window of channel d goes from d - 2 to d + 1, as in PyTorch.
    """
    before, channels = _SIZE // 2, x.shape[-1]
    dtype, x = x.dtype, x.astype(jnp.float32)
    squares = jnp.pad(x**2, [(0, 0)] * 3 + [(before, _SIZE - 1 - before)])
    total = sum(squares[..., i : i + channels] for i in range(_SIZE))
    return (x * (1 + _ALPHA / _SIZE * total) ** -_BETA).astype(dtype)
