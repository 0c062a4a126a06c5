"""What the papers report, and how the settings of a row of a comparison differ from theirs."""

import dataclasses
from typing import Any, NamedTuple, Protocol

from dmjax import networks
from dmjax.config import ALL_GROUPS, AugmentConfig, Config, EvaluationConfig
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


class Data(Protocol):
    """What has to be known of the real images: a `Dataset` has all of it, and so has `Described`."""

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...


class Described(NamedTuple):
    """The same where only a description of the images is at hand, as config.json has it."""

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]


class Difference(NamedTuple):
    """A setting that is not as the papers have it.

    Attributes:
      field: Its dotted name.
      value: What it is.
      paper: What it is in the papers; None where they do not say, or leave it out.
    """

    field: str
    value: Any
    paper: Any


def differing(own: Config, dataset: Data, whole: bool, runs: int) -> list[str]:
    """How settings differ from the papers', as `name value`; arguments as for `differences`."""
    return [f"{found.field} {shown(found.value)}" for found in differences(own, dataset, whole, runs)]


def differences(own: Config, dataset: Data, whole: bool, runs: int) -> list[Difference]:
    """How settings differ from the papers', or where no paper has the method from the defaults of the method.

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
        Difference(field, value, reference[field])
        for field, value in fields.flatten(own).items()
        if (field.partition(".")[0] in matters or field in own_fields)
        and field not in ignored
        and value != reference[field]
    ]
    size = own.data.image_size
    resized = [] if size is None else [Difference("data.image_size", size, None)]
    return [*resized, *others, *([Difference("runs", runs, RUNS)] if runs != RUNS else [])]


def _theirs(own: Config, dataset: Data) -> Config:
    """The papers' configuration of the same method, data and images per class."""
    strategy = ALL_GROUPS.replace("flip_", "") if dataset.name in _DIGITS else ALL_GROUPS
    theirs = Config(method=type(own.method)(), ipc=own.ipc, data=own.data, augment=AugmentConfig(strategy=strategy))
    named = EvaluationConfig(protocol=own.evaluation.protocol)
    named = experiment.resolve(dataclasses.replace(theirs, evaluation=named)).evaluation
    theirs = experiment.resolve(theirs)
    # Beyond the name of a protocol that is not the papers', what differs from it; nothing where the two are one.
    plain = dataclasses.replace(named, protocol=None)
    theirs = dataclasses.replace(theirs, evaluation=named if plain == theirs.evaluation else plain)
    builtin = ":" not in own.network.name  # another one is not theirs, and need not be imported
    same = builtin and _network(own, dataset) == _network(theirs, dataset)  # however it is written
    return dataclasses.replace(theirs, network=own.network) if same else theirs


def _network(config: Config, dataset: Data) -> Any:
    return networks.create(config.network, dataset.num_classes, dataset.image_shape)


def shown(value: Any) -> str:
    """A value of a setting, as it is shown."""
    return f"{value:g}" if isinstance(value, float) else str(value)
