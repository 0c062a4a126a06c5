"""TGDD: networks along their training, each with an expert that is a little further."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmjax.config import Config
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.multiformation import ALIKE, Multiformation


@dataclasses.dataclass(frozen=True)
class TGDD(Multiformation):
    """Trajectory Guided Dataset Distillation (AAAI 2026).

    Figures on CIFAR were not at hand.

    The networks are trained for a long time by default, as the authors do; fewer `--pretrained.epochs` make it
    cheaper. The authors train them with CutMix, composite augmentation and a rate that falls to a fifth twice; here it
    is as in DM's evaluation, in batches of 64.
    """

    name: ClassVar[str] = "tgdd"

    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(networks="pool", expert="later", **ALIKE)
    )

    def default_calibration(self, config: Config) -> float:
        """1, that of the authors."""
        return 1.0

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """The state after each of 60 epochs of 5 networks, as the authors keep it."""
        return {**super().pretraining(config), "epochs": 60, "states": 60, "spacing": "even"}
