"""TGDD: networks along their training, each with an expert that is a little further."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmjax.config import Config
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.multiformation import ALIKE, Multiformation


@dataclasses.dataclass(frozen=True)
class TGDD(Multiformation):
    """Trajectory Guided Dataset Distillation with Balanced Distribution (Ran et al., AAAI 2026; arXiv 2512.02469).

    The expert of a state is a state of the same network at most six epochs later. The authors' figures on CIFAR were
    not at hand.
    """

    name: ClassVar[str] = "tgdd"

    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(networks="pool", calibration=1.0, expert="later", **ALIKE)
    )

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """The state after each of 60 epochs of 5 networks, as the authors keep it."""
        return {**super().pretraining(config), "epochs": 60, "states": 60, "spacing": "even"}
