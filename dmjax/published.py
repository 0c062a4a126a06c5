"""Published test accuracies (%), to set beside one's own where the settings were the same.

From Zhao & Bilen 2023 (Dataset Condensation with Distribution Matching), Table 1. MNIST's figures of dm, and of random
and herding at 1 and 50 images per class, are as the literature repeats them, not checked against the paper.
"""

from collections.abc import Mapping

ACCURACY: Mapping[str, Mapping[str, tuple[float | None, float | None, float | None]]] = {
    "mnist": {
        "random": (64.9, 95.1, 97.9),
        "herding": (89.2, 93.7, 94.8),
        "forgetting": (35.5, 68.1, 88.2),
        "dc": (91.7, 97.4, 98.8),
        "dsa": (88.7, 97.8, 99.2),
        "dm": (89.7, 97.5, 98.6),
        "whole": (99.6, 99.6, 99.6),
    },
    "cifar10": {
        "random": (14.4, 26.0, 43.4),
        "herding": (21.5, 31.6, 40.4),
        "forgetting": (13.5, 23.3, 23.3),
        "dc": (28.3, 44.9, 53.9),
        "dsa": (28.8, 52.1, 60.6),
        "dm": (26.0, 48.9, 63.0),
        "whole": (84.8, 84.8, 84.8),
    },
    "cifar100": {
        "random": (4.2, 14.6, 30.0),
        "herding": (8.4, 17.3, 33.7),
        "forgetting": (4.5, 15.1, 30.5),
        "dc": (12.8, 25.2, None),
        "dsa": (13.9, 32.3, 42.8),
        "dm": (11.4, 29.7, 43.6),
        "whole": (56.2, 56.2, 56.2),
    },
    "tiny_imagenet": {
        "random": (1.4, 5.0, 15.0),
        "herding": (2.8, 6.3, 16.7),
        "forgetting": (1.6, 5.1, 15.0),
        "dm": (3.9, 12.9, 24.1),
        "whole": (37.6, 37.6, 37.6),
    },
}
"""By data set and method, at 1, 10 and 50 images per class."""

WITHOUT_FLIP = ("digits", "mnist", "svhn", "svhn_cropped")
"""Data sets of digits, whose images the papers do not mirror."""

_SIZES = (1, 10, 50)


def accuracy(dataset: str, method: str, ipc: int | None) -> float | None:
    """The published accuracy in per cent; None where there is none. `ipc` is None for the whole set."""
    if ipc is not None and ipc not in _SIZES:
        return None
    figures = ACCURACY.get(dataset, {}).get(method)
    return figures[_SIZES.index(ipc or 1)] if figures else None
