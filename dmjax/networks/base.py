"""What every network is: `embed` gives features, a linear layer makes logits of them."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from dmjax.networks.layers import Linear


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
        return self.classifier(self.embed(x, train, weights))
