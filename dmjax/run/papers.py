"""What the papers report, and how the settings of a row of a comparison differ from theirs."""

import dataclasses
from typing import Any

from dmjax import networks
from dmjax.config import ALL_GROUPS, AugmentConfig, Config, EvaluationConfig
from dmjax.data import Dataset
from dmjax.methods import Method
from dmjax.settings import experiment, fields

RUNS = 5
"""Sets that the papers make of each method and size."""
SIZES = (1, 10, 50)
"""Images per class that they report."""

_DIGITS = ("digits", "mnist", "svhn", "svhn_cropped")  # whose images the papers do not mirror
_NO_MATTER = (
    *(f"evaluation.{name}" for name in ("every", "best", "random_real", "whole_dataset")),
    "pretrained.path",
)
"""Fields that do not change an accuracy."""


def published(method: Method, dataset: str, ipc: int | None) -> float | None:
    """The published accuracy in per cent, by images per class; None where there is none."""
    figures = vars(type(method)).get("published", {}).get(dataset)  # those that it has from another one are not its own
    if figures is None or (ipc is not None and ipc not in SIZES):
        return None
    return figures[SIZES.index(ipc or 1)]


def differing(own: Config, dataset: Dataset, whole: bool, runs: int) -> list[str]:
    """How settings differ from the papers', as `name value`.

    Args:
      own: The resolved configuration of a set, with the evaluation that it is judged by.
      dataset: The real images.
      whole: It is about networks that are trained on the whole training set.
      runs: Sets of the row.
    """
    theirs = _theirs(own, dataset)
    uses_pool = own.method.uses_trained_networks() or own.evaluation.is_taught
    matters = {"network", "augment", "evaluation", *(["pretrained"] if uses_pool else [])}
    own_fields = {} if whole else fields.flatten(own.method)
    ignored = {*_NO_MATTER, "evaluation.epochs" if whole else "evaluation.whole_epochs"}
    reference = {**fields.flatten(theirs), "evaluation.whole_epochs": None}  # the papers do not say
    others = [
        f"{field} {_shown(value)}"
        for field, value in fields.flatten(own).items()
        if (field.partition(".")[0] in matters or field in own_fields)
        and field not in ignored
        and value != reference[field]
    ]
    size = [] if own.data.image_size is None else [f"data.image_size {own.data.image_size}"]
    return [*size, *others, *([f"runs {runs}"] if runs != RUNS else [])]


def _theirs(own: Config, dataset: Dataset) -> Config:
    """The papers' configuration of the same method, data and images per class."""
    strategy = ALL_GROUPS.replace("flip_", "") if dataset.name in _DIGITS else ALL_GROUPS
    theirs = Config(method=type(own.method)(), ipc=own.ipc, data=own.data, augment=AugmentConfig(strategy=strategy))
    named = EvaluationConfig(protocol=own.evaluation.protocol)
    named = experiment.resolve(dataclasses.replace(theirs, evaluation=named)).evaluation
    theirs = experiment.resolve(theirs)
    # Beyond the name of a protocol that is not the papers', what differs from it; nothing where the two are one.
    plain = dataclasses.replace(named, protocol=None)
    theirs = dataclasses.replace(theirs, evaluation=named if plain == theirs.evaluation else plain)
    same = _network(own, dataset) == _network(theirs, dataset)  # however it is written
    return dataclasses.replace(theirs, network=own.network) if same else theirs


def _network(config: Config, dataset: Dataset) -> Any:
    return networks.create(config.network, dataset.num_classes, dataset.image_shape)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
