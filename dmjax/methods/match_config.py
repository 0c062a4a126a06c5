"""The choices of which methods of the family of distribution matching are compositions."""

import dataclasses
from typing import Annotated, Literal

from dmjax.common.errors import UserError
from dmjax.config import Count, Fraction, NamedFields, NonNegative, Positive, Range, Strategy

TRAINED = ("pool", "trained", "interpolated")
"""The values of `MatchConfig.networks` that take networks which were trained on the whole set."""

Weight = Annotated[float, Range(0)]


@dataclasses.dataclass(frozen=True)
class MatchConfig(NamedFields):
    """What is compared, in which networks, and which terms are added."""

    distance: Literal["mean", "covariance", "kernel", "attention", "ncf"] = "mean"
    """mean: of the mean features of a class; covariance: of their covariances too; kernel: MMD with Gaussian kernels;
    attention: of the mean features and of attention maps at --match.layers; ncf: of characteristic functions."""
    weight: Positive = 1.0
    """Of the distance, against the terms that are added to it."""
    covariance: Weight = 50.0
    """Weight of the covariances for --match.distance covariance, divided by the number of features."""
    attention: Weight = 100.0
    """Weight of the attention maps for --match.distance attention."""
    exponent: Annotated[float, Range(1)] = 1.0
    """To which the activations are raised in an attention map."""
    layers: tuple[Count, ...] | None = None
    """Activations (1 is the first) whose attention maps are compared (by default all but the last)."""
    bandwidths: tuple[Positive, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Of the Gaussian kernels, in units of the median distance of two real images."""
    frequencies: Count = 4096
    """At which characteristic functions are compared, drawn anew for every class and iteration."""
    networks: Literal["random", "pool", "trained", "interpolated", "queue"] = "random"
    """random: drawn afresh in every iteration; pool: states along the training of --pretrained networks; trained: their
    last states; interpolated: between their first and last states; queue: networks that train along (--queue)."""
    accuracy: tuple[Fraction, Fraction] | None = None
    """Of the pool only the states whose validation accuracy is at least the first number and below the second."""
    fresh: Fraction = 0.0
    """Share of the iterations in which a freshly drawn network takes the place of a trained one."""
    updates: Count = 1
    """Times that the images move by the features of one network before the next is drawn."""
    calibration: Weight | None = 0.0
    """Weight of the cross entropy of the synthetic images in a trained network, the expert; of a queue's networks for
    each per cent of their accuracy."""
    expert: Literal["last", "later", "same"] = "last"
    """Which state of the drawn network that is: its last one; one at most a tenth of the training later; the network
    that features are compared in (of a queue always), which --match.fresh does not replace."""
    local_covariance: Weight = 0.0
    """Weight of the distance of the covariances between the channels of the last feature map."""
    centralization: Weight = 0.0
    """Weight of the squared distance of the features of a class to their own mean."""
    history: Weight = 0.0
    """Weight of the squared distance of a class's mean feature to its running mean, divided by the features."""
    history_after: NonNegative = 2000
    """Iterations before the history counts."""
    strategy: Strategy | None = None
    """Augmentation of real and synthetic images alike (by default --augment.strategy)."""
    composite: bool | None = None
    """As --augment.composite, for matching (by default the same)."""

    def check(self) -> None:
        """Raises a `UserError` for choices that contradict each other."""
        if self.accuracy is not None and self.networks != "pool":
            raise UserError("match.accuracy chooses among trained networks; give --match.networks pool")
        if self.accuracy is not None and not self.accuracy[0] < self.accuracy[1]:
            low, high = self.accuracy
            raise UserError(f"match.accuracy needs a lower and a higher fraction, not {low:g} {high:g}")
        if self.fresh and self.networks not in TRAINED:
            raise UserError(f"match.fresh replaces trained networks; give --match.networks {' or '.join(TRAINED)}")
        if self.calibration and self.networks == "random":
            raise UserError("match.calibration needs trained networks; give --match.networks pool, for instance")
        if self.expert == "later" and self.calibration and self.networks != "pool":
            raise UserError("match.expert later chooses among the states of a pool; give --match.networks pool")
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            raise UserError("match.layers names an activation twice")
