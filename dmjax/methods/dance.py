"""DANCE: networks between the start and the end of their training, and an expert's cross entropy."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmjax.config import Config
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.multiformation import ALIKE, Multiformation


@dataclasses.dataclass(frozen=True)
class DANCE(Multiformation):
    """DANCE: Dual-View Distribution Alignment for Dataset Condensation (Zhang et al., IJCAI 2024; arXiv 2406.01063).

    The authors move the images twice in an iteration, by the distance and by the cross entropy; here they move once, by
    the sum. They train networks with CutMix, composite augmentation and a rate that falls to a fifth twice; here it is
    as for all pools.
    """

    name: ClassVar[str] = "dance"
    # Of the paper.
    published: ClassVar[Any] = {
        "fashion_mnist": (81.5, 86.3, 86.9),
        "cifar10": (47.1, 70.8, 76.1),
        "cifar100": (27.9, 49.8, 52.8),
        "tiny_imagenet": (11.6, 26.4, 28.9),
    }
    published_note: ClassVar[str | None] = (
        "by another evaluation (that of IDC), of the best epoch and set by the test images"
    )

    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(networks="interpolated", calibration=1.0, **ALIKE)
    )

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """5 networks for 60 epochs, as the authors train."""
        return {**super().pretraining(config), "epochs": 60}
