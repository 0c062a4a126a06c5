"""TGDD: networks along their training, each with an expert that is a little further."""

import dataclasses
from typing import ClassVar

from dmjax.config import Config
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.multiformation import ALIKE, Multiformation


@dataclasses.dataclass(frozen=True)
class TGDD(Multiformation):
    """Trajectory Guided Dataset Distillation (AAAI 2026).

    The authors keep the state after each of 60 epochs of 5 networks, which is `--pretrained.epochs 60
    --pretrained.states 60 --pretrained.spacing even`. Figures on CIFAR were not at hand.
    """

    name: ClassVar[str] = "tgdd"

    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(networks="pool", expert="later", **ALIKE)
    )

    def default_calibration(self, config: Config) -> float:
        """1, that of the authors."""
        return 1.0
