"""Blend: ideas of several methods put together; a method of this package's own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmjax.config import Config, Count, Fraction
from dmjax.data.factor import largest
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.matching import Matching

_SMALLEST_BLOCK = 8  # pixels of a side; fewer hold too little of an image


@dataclasses.dataclass(frozen=True)
class Blend(Matching):
    """Distribution matching with four ideas of its successors, which gave more together than alone on CIFAR-10.

    Every stored image holds several training images, the more the fewer images there are (multi-formation; Kim et al.
    2022). Half of the networks that features are compared in are states along the training of a few networks, as in
    Trajectory Guided Dataset Distillation; the others are drawn afresh, as in distribution matching. The cross entropy
    of the synthetic images in such a state is added, however good or bad the state is (IDM; Zhao et al. 2023). The set
    is the mean of the images over the last fifth of the iterations, which takes the noise of single networks out.

    It was chosen on images held out of CIFAR-10's training set, at one image per class; 10 and 50 are less sure.
    """

    name: ClassVar[str] = "blend"

    factor: Count | None = None  # type: ignore[assignment]
    """Every stored image holds so many times so many training images, in blocks that are enlarged (by default 4 below
    10 images per class and 2 from then on, less where blocks would be small or not whole, and 1 for grey images from 50
    per class on, where DREAM and IDC lose by it on FashionMNIST)."""
    average: Fraction = 0.2
    """Return the mean of the images over about the last so many iterations, as a share of all of them; 0: the images as
    they are after the last one."""
    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(networks="pool", fresh=0.5, calibration=10.0, expert="same")
    )

    def factor_of(self, config: Config, image_shape: tuple[int, ...]) -> int:
        """The factor that is given, or the largest one that suits the images."""
        most = 4 if config.ipc < 10 else 1 if image_shape[2] == 1 and config.ipc >= 50 else 2
        return self.factor or largest(image_shape, most, _SMALLEST_BLOCK)

    def pretraining(self, config: Config) -> Mapping[str, Any]:
        """5 networks for 8 epochs, in 8 states."""
        return {**super().pretraining(config), "epochs": 8, "states": 8}
