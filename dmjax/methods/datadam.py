"""DataDAM: attention maps beside the mean features."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmjax.config import Config, Count
from dmjax.evaluation import protocols
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.matching import Matching


@dataclasses.dataclass(frozen=True)
class DataDAM(Matching):
    """Efficient Dataset Distillation with Attention Matching (Sajedi et al., ICCV 2023; arXiv 2310.00093).

    The mean attention maps after all activations but the last match with weight 100, and the mean features with 1. The
    paper raises activations to the power of 4 in a map, the authors' code to that of 1, which is the default here. They
    whiten CIFAR (`--data.zca`), and start from selected images; here these are random. 64 real images are the default
    of the authors' code.
    """

    name: ClassVar[str] = "datadam"
    # Of the paper.
    published: ClassVar[Any] = {
        "cifar10": (32.0, 54.2, 67.0),
        "cifar100": (14.5, 34.8, 49.4),
        "tiny_imagenet": (8.3, 18.7, 28.7),
    }
    published_note: ClassVar[str | None] = "on whitened images, and of the best checkpoint by the test images"

    iterations: Count = 8000  # type: ignore[misc]
    """How many iterations."""
    batch_real: Count = 64
    """Real images per class and iteration (all of a class that has fewer)."""
    match: MatchConfig = dataclasses.field(default_factory=lambda: MatchConfig(distance="attention"))

    def default_learning_rate(self, config: Config) -> float:
        """1, and 10 above 50 images per class."""
        return 10.0 if config.ipc > 50 else 1.0

    def evaluation(self, config: Config) -> Mapping[str, Any]:
        """1800 epochs in batches of 64."""
        return protocols.settings("datadam", config)
