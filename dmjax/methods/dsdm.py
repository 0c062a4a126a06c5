"""DSDM: covariances beside the means, and prototypes of the past."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmjax.config import Config, Count
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.multiformation import ALIKE, Multiformation


@dataclasses.dataclass(frozen=True)
class DSDM(Multiformation):
    """Diversified Semantic Distribution Matching (Li et al., ACM MM 2024; doi 10.1145/3664647.3680900).

    The authors' code multiplies its rate of 0.1 by a tenth of the images per class, which is that of DANCE.
    """

    name: ClassVar[str] = "dsdm"
    # Of the paper.
    published: ClassVar[Any] = {"cifar10": (45.0, 66.5, 75.8), "cifar100": (19.5, 46.2, 54.0)}
    published_note: ClassVar[str | None] = "by another evaluation (that of IDC), of the best set by the test images"

    batch_real: Count = 256
    """Real images per class and iteration (all of a class that has fewer)."""
    batch_synthetic: Count | None = 256
    """Training images of a class that an iteration takes of the synthetic ones at most (by default all)."""
    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(distance="covariance", networks="trained", history=0.2, **ALIKE)
    )

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """10 networks for 20 epochs, as the authors train."""
        return {**super().pretraining(config), "networks": 10}
