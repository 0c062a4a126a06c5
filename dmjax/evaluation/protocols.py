"""Evaluation protocols by name: what the authors of methods train networks with that judge their sets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dmjax.config import Config, EvaluateConfig, EvaluationConfig

Values = Mapping[str, Any]


class Protocol(NamedTuple):
    """Values of fields of `EvaluationConfig`.

    Attributes:
      source: Where they come from.
      values: What differs from `PLAIN`.
      depending: What follows from the experiment: its data set, its network, the augmentation of its images.
    """

    source: str
    values: Values
    depending: Callable[[Config | EvaluateConfig], Values]


PLAIN: Values = {
    "networks": 20,
    "epochs": 1000,
    "composite": False,
    "optimizer": "sgd",
    "batch_size": 256,
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": (0.5,),
    "rate_factor": 0.1,
    "restart": True,
    "cutmix": 0.0,
    "mixup": 0.0,
    "resized_crop": 0.0,
    "labels": "stored",
    "temperature": 1.0,
}
FIELDS = ("strategy", *PLAIN)
"""The fields that a protocol decides where they are not given."""


def siamese(config: Config | EvaluateConfig) -> Values:
    """Differentiable Siamese augmentation, with the groups of the experiment."""
    return {"strategy": config.augment.strategy}


def plain_augmentation(config: Config | EvaluateConfig) -> Values:
    """Crop and noise for a ConvNet with batch norm, crop, scale and rotation on MNIST, else nothing and 300 epochs."""
    strategy = config.evaluation.strategy
    if strategy is None:
        plain = "crop_scale_rotate" if config.data.known_as == "mnist" else "none"
        with_noise = config.network.name == "ConvNet" and config.network.norm == "batch"
        strategy = "crop_noise" if with_noise else plain
    return {"strategy": strategy, "epochs": 300 if strategy == "none" else 1000}


def composite(config: Config | EvaluateConfig) -> Values:
    """Colour, crop, flip, scale and rotate, without flip where the experiment has none; CutMix, but not on MNIST."""
    flip = "flip" in config.augment.strategy.split("_")
    strategy = "color_crop_flip_scale_rotate" if flip else "color_crop_scale_rotate"
    return {"strategy": strategy, "composite": True, "cutmix": 0.0 if config.data.known_as == "mnist" else 0.5}


_STEPS = {"restart": False}  # of PyTorch's schedulers, which leave the optimizer's momentum as it is
DEFAULT = "dm"
PROTOCOLS: Mapping[str, Protocol] = {
    DEFAULT: Protocol("Zhao & Bilen, WACV 2023, section 3.1, and their code", {}, siamese),
    "dc": Protocol("Zhao, Mopuri & Bilen, ICLR 2021, and their code", {}, plain_augmentation),
    "idc": Protocol(
        "Kim et al., ICML 2022, and their code",
        {"batch_size": 64, "schedule": (2 / 3, 5 / 6), "rate_factor": 0.2, **_STEPS},
        composite,
    ),
    "datadam": Protocol(
        "Sajedi et al., ICCV 2023: theirs counts the best epoch, here the last",
        {"epochs": 1800, "batch_size": 64},
        siamese,
    ),
    "ncfm": Protocol(
        "Wang et al., CVPR 2025, and their code: theirs counts the best epoch, here the last",
        {
            "epochs": 2000,
            "batch_size": 128,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            # PyTorch's default: their configurations have 5e-4, which their code does not hand to AdamW.
            "weight_decay": 0.01,
            "schedule": (0.2, 0.4, 0.6, 0.8),
            "rate_factor": 0.5,
            **_STEPS,
        },
        composite,
    ),
    "ddranking": Protocol(
        "DD-Ranking (Li et al. 2025), hard labels",
        {"networks": 5, "batch_size": 128, "labels": "hard", **_STEPS},
        siamese,
    ),
}


def settings(name: str, config: Config | EvaluateConfig) -> dict[str, Any]:
    """All values of a protocol in an experiment, by the names of fields of `EvaluationConfig`."""
    protocol = PROTOCOLS[name]
    return {**PLAIN, **protocol.values, **protocol.depending(config)}


def complete(evaluation: EvaluationConfig) -> EvaluationConfig:
    """The evaluation with what is left open as its protocol has it in any experiment; the strategy stays open."""
    values = {**PLAIN, **PROTOCOLS[evaluation.protocol or DEFAULT].values}
    left_open = {name: value for name, value in values.items() if getattr(evaluation, name) is None}
    return dataclasses.replace(evaluation, **left_open)


def opened(evaluation: EvaluationConfig, decided: Values) -> EvaluationConfig:
    """The evaluation, where fields that are as they were decided are left open again."""
    same = [name for name in FIELDS if name in decided and getattr(evaluation, name) == decided[name]]
    return dataclasses.replace(evaluation, **dict.fromkeys(same))
