"""Improved Distribution Matching: more images in each, and networks that train along."""

import dataclasses
from typing import Any, ClassVar, Self

from dmjax.config import Config, Count
from dmjax.data.factor import Reduction
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.matching import Matching
from dmjax.methods.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class IDM(Matching):
    """Improved Distribution Matching for Dataset Condensation (Zhao et al., CVPR 2023; arXiv 2307.09742).

    The authors step one optimizer with momentum 0.5 after every class, in which the other classes have no gradient.
    That is SGD without momentum at twice their rate of 0.2. The accuracy that weighs the cross entropy is a running
    mean over the last hundred training steps, theirs a mean since the last evaluation. Defaults are those for CIFAR-10.
    For CIFAR-100 the authors have a weight of 0.1 and 50 training steps at 10 images per class; for TinyImageNet 256
    real images and a new network every 30 iterations throughout, and 0.8 and 50 training steps at 50 images per class.
    """

    name: ClassVar[str] = "idm"
    # Of the paper, by the authors' readme.
    published: ClassVar[Any] = {
        "cifar10": (45.6, 58.6, 67.5),
        "cifar100": (20.1, 45.1, 50.0),
        "tiny_imagenet": (10.1, 21.9, 27.7),
    }
    published_note: ClassVar[str | None] = "with networks trained on four images for each stored one"
    reduction: ClassVar[Reduction] = "mean"

    batch_real: Count | None = None  # type: ignore[assignment]
    """Real images per class and iteration (by default 256, and 5000 at one image per class)."""
    factor: Count = 2
    """Every stored image holds so many times so many training images, in blocks that are enlarged."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(options=()))
    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(networks="queue", calibration=None, expert="same")
    )

    def default_learning_rate(self, config: Config) -> float:
        """0.4, twice that of the authors."""
        return 0.4

    def resolve(self, config: Config) -> Self:
        """Fills in what follows from the images per class: real images, and 0.1 or 0.5 for the cross entropy."""
        calibration = self.match.calibration
        if calibration is None:
            calibration = 0.1 if config.ipc >= 50 else 0.5
        batch = self.batch_real or (5000 if config.ipc == 1 else 256)
        match = dataclasses.replace(self.match, calibration=calibration)
        filled = dataclasses.replace(self, batch_real=batch, match=match)
        return super(IDM, filled).resolve(config)


@dataclasses.dataclass(frozen=True)
class IID(IDM):
    """Inter-sample and inter-feature relations on top of IDM (Deng et al., CVPR 2024; arXiv 2404.00563).

    The authors centralise features of a trained ResNet-18; here they are those of the network that is matched in.
    """

    name: ClassVar[str] = "iid"
    # Of the paper, on top of IDM, by the authors' readme.
    published: ClassVar[Any] = {"cifar10": (47.1, 59.9, 69.0), "cifar100": (24.6, 45.7, 51.3)}

    match: MatchConfig = dataclasses.field(
        default_factory=lambda: MatchConfig(
            networks="queue", calibration=None, expert="same", local_covariance=0.03, centralization=0.01
        )
    )
