"""The whole training set as a method: no set is made, and networks are judged on all images, as the upper bound."""

import dataclasses
from typing import Any, ClassVar

from dmjax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class Whole(Method):
    """All training images, by --evaluation.whole-epochs passes over them."""

    name: ClassVar[str] = "whole"
    # From Table 1 of Zhao & Bilen 2023; FashionMNIST and SVHN as the authors' repository and later papers have them.
    published: ClassVar[Any] = {
        "mnist": (99.6, 99.6, 99.6),
        "fashion_mnist": (93.5, 93.5, 93.5),
        "cifar10": (84.8, 84.8, 84.8),
        "cifar100": (56.2, 56.2, 56.2),
        "tiny_imagenet": (37.6, 37.6, 37.6),
    }
    makes_set: ClassVar[bool] = False
    bound: ClassVar[str | None] = "upper"
