"""ResNet18 (He et al. 2016) for small images, and ResNet18_AP, which halves images by average pooling alone.

The second is what the papers *learn* images on: gradients through stride-2 convolutions leave a checkerboard.
"""

import flax.linen as nn
import jax

from dmjax.networks.base import Network, activated, last_map
from dmjax.networks.layers import Conv, Norm, pool

_STAGES = (64, 128, 256, 512)
_BLOCKS = 2  # of a stage


class ResNet(Network):
    """A 3x3 stem, then four stages of two basic blocks, of which all stages but the first halve the image.

    Attributes:
      average_pooling: Halve by pooling instead of stride 2, and do not pool at the end (ResNet18_AP).
    """

    average_pooling: bool = False

    @nn.compact
    def embed(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Images [n, H, W, D] -> features [n, F], 512 for 32 pixels (512 x 4 x 4 for ResNet18_AP)."""

        def conv(x, features, name, size=3, stride=1):
            stride = 1 if self.average_pooling else stride
            options = {"size": size, "padding": size // 2, "stride": stride, "bias": False}
            return Conv(features, **options, precision=self.precision, name=name)(x)

        def norm(x, name):
            return Norm(self.norm, self.axis_name, name=name)(x, train, weights)

        def relu(x):
            return activated(self, nn.relu(x))

        def halved(x, stride):
            return pool(x, "avg") if self.average_pooling and stride == 2 else x

        x = relu(norm(conv(x, _STAGES[0], "stem_conv"), "stem_norm"))
        for stage, features in enumerate(_STAGES):
            for block in range(_BLOCKS):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 0 and block == 0 else 1
                shortcut = x
                if stride == 2 or x.shape[-1] != features:
                    shortcut = halved(conv(x, features, f"{name}_shortcut_conv", 1, stride), stride)
                    shortcut = norm(shortcut, f"{name}_shortcut_norm")
                main = relu(norm(conv(x, features, f"{name}_conv0", stride=stride), f"{name}_norm0"))
                main = norm(conv(halved(main, stride), features, f"{name}_conv1"), f"{name}_norm1")
                x = relu(main + shortcut)
        x = last_map(self, x)
        if not self.average_pooling:
            x = pool(x, "avg", 4)
        return x.reshape(x.shape[0], -1)
