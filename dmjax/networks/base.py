"""What every network is: `embed` gives features, a linear layer makes logits of them.

On the way to the features a network may note what `dmjax.networks.embed_all` gives: outputs of activation functions
and its last map. A note is Flax's `sow`, so that it costs nothing where nobody asks for it.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from dmjax.networks.layers import Linear

NOTES = "intermediates"  # the collection that Flax's own `init` leaves out of a network's variables
ACTIVATED, LAST_MAP = "activations", "last_map"


class Network(nn.Module):
    """A family implements `embed(x, train, weights)`: images [n, H, W, D] -> features [n, F].

    Attributes:
      num_classes: Outputs of the classifier.
      norm: A kind of `layers.Norm`.
      axis_name: Mapped axes that batch norm reduces over.
      precision: A key of `layers.PRECISIONS`.
    """

    num_classes: int
    norm: str = "none"
    axis_name: Sequence[str] = ()
    precision: str = "float32"

    def setup(self):
        self.classifier = Linear(self.num_classes, self.precision)

    def __call__(self, x: jax.Array, train: bool = False, weights: jax.Array | None = None) -> jax.Array:
        """Normalised images [n, H, W, D] -> logits [n, num_classes]; `weights` [n] are those of batch norm."""
        return self.classify(self.embed(x, train, weights))

    def classify(self, features: jax.Array) -> jax.Array:
        """Features [n, F], as `embed` gives them -> logits [n, num_classes]."""
        return self.classifier(features)


def activated(network: nn.Module, x: jax.Array) -> jax.Array:
    """Notes `x`, the output of an activation function of a network, and gives it back."""
    network.sow(NOTES, ACTIVATED, x)
    return x


def last_map(network: nn.Module, x: jax.Array) -> jax.Array:
    """Notes `x` [n, h, w, channels], the last feature map that has positions, and gives it back."""
    network.sow(NOTES, LAST_MAP, x)
    return x


def flattened(network: nn.Module, x: jax.Array) -> jax.Array:
    """Notes the last map [n, h, w, channels] and gives [n, h * w * channels]."""
    return last_map(network, x).reshape(x.shape[0], -1)
