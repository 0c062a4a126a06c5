"""Methods that are built on the frame of IDC (Kim et al. 2022): M3D, DSDM, DANCE, TGDD and NCFM.

Every stored image holds 2x2 training images; images live in [0, 1] and are moved in these units; real and synthetic
images are augmented together by colour, a shift and a cut-out box, all at once. The authors step one optimizer with
momentum 0.5 after every class, in which the other classes have no gradient: that is SGD without momentum at twice the
rate, which is the rate here. As many networks are trained, and as long, as by the authors: fewer --pretrained.networks
and .epochs cost less.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dmjax.config import Config, Count
from dmjax.evaluation import protocols
from dmjax.methods.matching import Matching
from dmjax.methods.optimizer import OptimizerConfig

ALIKE: dict[str, Any] = {"strategy": "color_crop_cutout", "composite": True}
"""The augmentation of matching, as settings of `MatchConfig`."""


@dataclasses.dataclass(frozen=True)
class Multiformation(Matching):
    """The settings that these methods have in common."""

    iterations: Count = 10_000  # type: ignore[misc]
    """How many iterations."""
    batch_real: Count = 128
    """Real images per class and iteration (all of a class that has fewer)."""
    batch_synthetic: Count | None = 200
    """Training images of a class that an iteration takes of the synthetic ones at most (by default all)."""
    factor: Count = 2
    """Every stored image holds so many times so many training images, in blocks that are enlarged."""
    pixels: bool = True
    """Keep the images within [0, 1] and move them in these units; otherwise they are normalised and unbounded."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(options=()))

    def default_learning_rate(self, config: Config) -> float:
        """0.02 for each image per class, twice the rate of DANCE."""
        return 0.02 * config.ipc

    def evaluation(self, config: Config) -> Mapping[str, Any]:
        """That of IDC for 1500 epochs."""
        return {**protocols.settings("idc", config), "epochs": 1500}
