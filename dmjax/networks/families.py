"""The families, the options that each has, and the literature's short names: ConvNetD4, AlexNetBN, ResNet18BN_AP."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dmjax.common import backend
from dmjax.common.errors import UserError, near_misses
from dmjax.config import NetworkConfig
from dmjax.networks import convnet
from dmjax.networks.alexcifarnet import AlexCifarNet
from dmjax.networks.alexnet import AlexNet
from dmjax.networks.base import Network
from dmjax.networks.lenet import LeNet
from dmjax.networks.mlp import MLP
from dmjax.networks.resnet import ResNet
from dmjax.networks.vgg import STAGES, VGG


class Family(NamedTuple):
    """How a family is made.

    Attributes:
      make: The module; takes `num_classes`, `axis_name`, `precision` and the options.
      options: Its options and their defaults.
      smallest: Side of the smallest image that it can take; (three channels, one channel).
      fit: Options and the shape (H, W, D) of the images -> options that fit it; raises a `UserError` where none do.
      rates: Learning rates for condensing to one image per class, with a norm (of any kind) and without.
    """

    make: Callable[..., Network]
    options: Mapping[str, Any]
    smallest: tuple[int, int] = (1, 1)
    fit: Callable[[Mapping[str, Any], Sequence[int]], Mapping[str, Any]] = lambda options, image_shape: options
    rates: tuple[float, float] = (1.0, 1.0)


OPTIONS = ("width", "depth", "activation", "norm", "pooling")
"""Fields of the configuration that a family may have."""

_PAPERS_SIZE = 50  # images per class at which the authors condense with other networks than the ConvNet

_CONVNET = {"width": 128, "depth": None, "activation": "relu", "norm": "instance", "pooling": "avg"}
_INSTANCE = {"norm": "instance"}

FAMILIES: dict[str, Family] = {
    "ConvNet": Family(convnet.ConvNet, _CONVNET, fit=convnet.fit, rates=(1.0, 50.0)),
    "MLP": Family(MLP, {}),
    "LeNet": Family(LeNet, {}, (16, 12), rates=(1.0, 20.0)),
    "AlexNet": Family(AlexNet, {"norm": "none"}, (8, 4), rates=(0.02, 200.0)),
    "AlexCifarNet": Family(AlexCifarNet, {}, (4, 4)),
    **{
        name: Family(functools.partial(VGG, stages=STAGES[name]), _INSTANCE, (32, 28), rates=(0.002, 5e5))
        for name in STAGES
    },
    "ResNet18": Family(ResNet, _INSTANCE, (25, 25), rates=(0.01, 600.0)),
    "ResNet18_AP": Family(functools.partial(ResNet, average_pooling=True), _INSTANCE, (8, 8), rates=(0.002, 40.0)),
}

_PRECISIONS: dict[str, Literal["float32", "tf32", "bfloat16"]] = {"cpu": "float32", "gpu": "tf32", "tpu": "bfloat16"}

_TOKENS: dict[str, tuple[str, str]] = {
    "BN": ("norm", "batch"),
    "IN": ("norm", "instance"),
    "LN": ("norm", "layer"),
    "GN": ("norm", "group"),
    "NN": ("norm", "none"),
    "NP": ("pooling", "none"),
    "MP": ("pooling", "max"),
    "AP": ("pooling", "avg"),
    "ASwish": ("activation", "swish"),
    "AS": ("activation", "sigmoid"),
    "AL": ("activation", "leakyrelu"),
    "AR": ("activation", "relu"),
}
_OPTION = re.compile("|".join([*_TOKENS, r"D[1-9]\d*", r"W[1-9]\d*"]))


def resolve(config: NetworkConfig) -> NetworkConfig:
    """Takes a short name apart and fills in the family's defaults; an import path stays as it is.

    Raises:
      UserError: an unknown name, an option that the family does not have, or one that contradicts the name.
    """
    if ":" in config.name:
        return config
    name, named = _parse(config.name)
    family = FAMILIES[name]
    fields = {field: getattr(config, field) for field in OPTIONS}
    for option, value in named.items():
        if fields[option] not in (None, value):
            raise UserError(f"network.name {config.name} and network.{option} {fields[option]} contradict each other")
        fields[option] = value
    for option, value in fields.items():
        if value is not None and option not in family.options:
            raise UserError(f"network.{option} is not an option of {name}; {_options_of(name)}")
        fields[option] = family.options.get(option) if value is None else value
    if fields["norm"] == "layer" and name != "ConvNet":
        raise UserError(f"network.norm layer is not defined for {name}; choose instance, batch, group or none")
    return dataclasses.replace(config, name=name, **fields)


def settled(config: NetworkConfig) -> NetworkConfig:
    """The precision that `auto` stands for on these devices filled in: what their matrix units are made for."""
    if config.precision != "auto":
        return config
    return dataclasses.replace(config, precision=_PRECISIONS[backend.current()])


def on_top_of(given: NetworkConfig, default: NetworkConfig) -> NetworkConfig:
    """What was given where `default` was the starting point: a new name drops the options of the old one."""
    if given.name == default.name:
        return given
    same = [option for option in OPTIONS if getattr(given, option) == getattr(default, option)]
    return dataclasses.replace(given, **dict.fromkeys(same))


def condensing_rate(config: NetworkConfig, ipc: int) -> float:
    """The learning rate of SGD that suits a network which embeds images; 1, the paper's, for one of one's own.

    The gradient has the scale of the features, which differs between families by orders of magnitude, and where random
    networks hardly agree on its direction only small steps average them. At one image per class some families therefore
    have rates below 1. From 50 images per class on they have 1, with which the authors condense with batch norm, and in
    between `rate ** (1 - (log ipc / log 50) ** 2)`, since gradients fall faster than 1 / ipc.
    experiments/results/learning_rates.md says how each rate was found.

    Args:
      config: The resolved network.
      ipc: Images per class.
    """
    if ":" in config.name:
        return 1.0
    with_norm, without = FAMILIES[config.name].rates
    rate = without if config.norm in (None, "none") else with_norm
    return rate ** max(0.0, 1 - (math.log(ipc) / math.log(_PAPERS_SIZE)) ** 2) if rate < 1 else rate


def short_name(config: NetworkConfig) -> str:
    """The literature's name of a network: its family and the options that are not the family's defaults."""
    config = resolve(config)
    if ":" in config.name:
        return config.name
    defaults = FAMILIES[config.name].options
    changed = {o: getattr(config, o) for o in OPTIONS if getattr(config, o) != defaults.get(o)}
    tokens = {value: token for token, value in _TOKENS.items()}
    letters = {"width": "W", "depth": "D"}
    suffix = "".join(f"{letters[o]}{v}" if o in letters else tokens[o, v] for o, v in changed.items())
    family, _, pooled = config.name.partition("_")
    return f"{family}{suffix}_{pooled}" if pooled else f"{family}{suffix}"


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """A short name -> family and options."""
    base, _, pooled = name.partition("_")
    for family in sorted(FAMILIES, key=len, reverse=True):
        stem, _, wanted = family.partition("_")
        tokens = base.removeprefix(stem)
        parts = _OPTION.findall(tokens)
        if base.startswith(stem) and pooled == wanted and "".join(parts) == tokens:
            named = [_TOKENS.get(p) or ({"D": "depth", "W": "width"}[p[0]], int(p[1:])) for p in parts]
            for option, _ in named:
                if [o for o, _ in named].count(option) > 1:
                    raise UserError(f"network.name {name} gives {option} twice")
            return family, dict(named)
    with_norm = (f.partition("_") for f, family in FAMILIES.items() if family.options)
    known = [*FAMILIES, *("BN".join((stem, bar + end)) for stem, bar, end in with_norm), "ConvNetD4", "ConvNetW256"]
    raise UserError(f"unknown network {name!r}, which is no module:Class either; {near_misses(name, known)}")


def _options_of(name: str) -> str:
    options = FAMILIES[name].options
    return f"its options are {', '.join(options)}" if options else "it has none"
