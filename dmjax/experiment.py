"""Experiments: reading their files, and checking that a configuration can be right whatever the data are."""

import dataclasses
import math
import runpy
import typing
from pathlib import Path
from typing import Any

from dmjax import cli, networks
from dmjax.config import (
    ALL_AUGMENTATIONS,
    DISTRIBUTION,
    METHOD_DEFAULTS,
    METHODS,
    Config,
    EvaluateConfig,
    EvaluationConfig,
    NetworkConfig,
    OptimizerConfig,
)
from dmjax.errors import UserError, near_misses
from dmjax.fields import fill, flatten

R = typing.TypeVar("R", bound=Config | EvaluateConfig)
C = typing.TypeVar("C", bound=Config)


def load_config(path: str | Path) -> Config:
    """Reads an experiment file and returns what its `get_config()` returns, with `workdir` filled in.

    Raises:
      UserError: the file is missing, cannot be executed, or has no `get_config` that returns a `Config`.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = near_misses(str(path), beside) if beside else f"there is no folder of experiments {str(path.parent)!r}"
        raise UserError(f"no experiment file {str(path)!r}; {hint}")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"experiment file {str(path)!r} does not run: {type(error).__name__}: {reason}") from error
    if not isinstance(config, Config):
        raise UserError(f"experiment file {str(path)!r} needs a function get_config() that returns a dmjax.Config")
    validate(config)
    if config.workdir is None:
        config = dataclasses.replace(config, workdir=Path("runs") / path.stem)
    return config


def parse(kind: type[C], arguments: list[str], prog: str, description: str) -> tuple[C, C]:
    """Flags on top of the experiment file that `--config` names, both as they are given; see `resolve`.

    Args:
      kind: `Config`, or one with further fields.
      arguments: Of the command line.
      prog: The command, for --help.
      description: Its docstring.

    Returns:
      What was given, and what it was given on top of.
    """
    path, arguments = cli.take(arguments, "--config")
    if path is None and not {"-h", "--help"} & set(arguments):
        raise UserError("name an experiment file, for example --config experiments/tiny.py")
    loaded = load_config(path) if path else Config()
    # What a kind declares anew is its own, not the experiment's.
    taken = [name for name in Config.__annotations__ if kind is Config or name not in kind.__annotations__]
    default = without_options(kind(**{name: getattr(loaded, name) for name in taken}), arguments)
    return cli.parse(kind, default, arguments, prog, description), default


def without_options(default: R, arguments: list[str]) -> R:
    """What flags are given on top of: where they name another network, the options of the old one do not apply."""
    name, _ = cli.take(arguments, "--network.name")
    if name in (None, default.network.name):
        return default
    plain = NetworkConfig(name=default.network.name, precision=default.network.precision)
    return dataclasses.replace(default, network=plain)


def runs(config: Config) -> list[Config]:
    """The runs that a configuration asks for: consecutive seeds, each in a folder of its own below the workdir."""
    if config.runs == 1:
        return [config]
    seeds = range(config.seed, config.seed + config.runs)
    folder = config.workdir or Path()
    return [dataclasses.replace(config, runs=1, seed=seed, workdir=folder / f"seed_{seed}") for seed in seeds]


def validate(config: Config | EvaluateConfig) -> None:
    """Raises a `UserError` for values that cannot be right whatever the data are."""
    at_least_one = ["evaluation.networks", "evaluation.epochs", "evaluation.batch_size", "evaluation.whole_epochs"]
    at_least_one += ["network.width", "network.depth", "data.image_size"]
    at_least_zero = ["evaluation.weight_decay"]
    above_zero = ["evaluation.learning_rate"]
    if isinstance(config, Config):
        at_least_one += ["ipc", "runs", "iterations", "batch_real", "chunk", "class_chunk", "image_chunk"]
        at_least_one += ["checkpoint.every", "checkpoint.keep"]
        at_least_one += ["distributed.num_processes", "distributed.timeout"]
        at_least_one += ["gradient.outer", "gradient.inner", "gradient.batch_size"]
        above_zero += ["gradient.learning_rate"]
        at_least_one += ["pretrained.networks", "pretrained.epochs", "pretrained.states"]
        at_least_zero += ["pretrained.seed"]
        at_least_zero += ["evaluation.every", "images_every", "seed", "distributed.process_id"]
        above_zero += ["optimizer.learning_rate", "memory_gb"]
    else:
        at_least_one += ["random_real"]
        at_least_zero += ["seed"]
    _check_types(config)
    values = flatten(config)
    numbers = values | dict(getattr(config, "optimizer", OptimizerConfig()).options)
    for name, value in numbers.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be finite, not {value}")
    if not 0 <= values["evaluation.momentum"] < 1:
        raise UserError(f"evaluation.momentum must be at least 0 and below 1, not {values['evaluation.momentum']}")
    for names, holds, rule in (
        (at_least_one, lambda v: v >= 1, "at least 1"),
        (at_least_zero, lambda v: v >= 0, "at least 0"),
        (above_zero, lambda v: v > 0, "above 0"),
    ):
        for name in names:
            if values[name] not in (None, "auto") and not holds(values[name]):
                raise UserError(f"{name} must be {rule}, not {values[name]}")
    if config.method not in METHODS:
        raise UserError(f"unknown method {config.method!r}; {near_misses(config.method, list(METHODS))}")
    if isinstance(config, Config):
        _validate_embedding(config)
    for name in ("seed", "pretrained.seed"):
        if values.get(name, 0) + values.get("runs", 1) - 1 >= 2**32:
            raise UserError(f"{name} must be below 2**32, not {values[name]}")
    for name in ("augment.strategy", "evaluation.strategy"):
        for group in [] if values[name] in (None, "none") else values[name].split("_"):
            if group not in ALL_AUGMENTATIONS:
                hint = near_misses(group, [*ALL_AUGMENTATIONS, "none"])
                raise UserError(f"{name}: unknown group {group!r}; {hint}")


def _validate_embedding(config: Config) -> None:
    wanted = config.embedding.accuracy
    if wanted is not None and (len(wanted) != 2 or not all(isinstance(v, int | float) for v in wanted)):
        raise UserError(f"embedding.accuracy must be two fractions, not {wanted}")
    if config.embedding.distribution == "pool" and config.method not in DISTRIBUTION:
        raise UserError(f"embedding.distribution pool is for method dm; {config.method} draws its own networks")
    if wanted is not None and config.embedding.distribution != "pool":
        raise UserError("embedding.accuracy chooses from a pool of networks; give --embedding.distribution pool")
    if wanted is not None and not 0 <= wanted[0] < wanted[1]:
        raise UserError(f"embedding.accuracy needs a lower and a higher fraction, not {wanted[0]:g} {wanted[1]:g}")
    if not 0 < config.pretrained.holdout < 1:
        raise UserError(f"pretrained.holdout must be between 0 and 1, not {config.pretrained.holdout}")


def _check_types(config: Any, prefix: str = "") -> None:
    """Flags have their types from the command line; experiment files may hold anything."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(hint, type):
            expected = (int, float) if hint is float else hint
            if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
                raise UserError(f"{prefix}{name} must be of type {hint.__name__}, not {value!r}")
            if dataclasses.is_dataclass(hint):
                _check_types(value, f"{prefix}{name}.")


def _strategy(config: Config | EvaluateConfig) -> str:
    """What augments the images on which networks are trained; that of dc is from its authors' code."""
    if config.evaluation.strategy is not None:
        return config.evaluation.strategy
    if config.method != "dc":
        return config.augment.strategy
    if config.network.norm == "batch":
        return "crop_noise"
    return "crop_scale_rotate" if config.data.name == "mnist" else "none"


def as_given(config: Config) -> EvaluationConfig:
    """The evaluation of a resolved configuration, where what its method and network decided is open again."""
    undecided = dataclasses.replace(config.evaluation, strategy=None, epochs=None)
    decided = resolve(dataclasses.replace(config, evaluation=undecided)).evaluation
    same = [name for name in ("strategy", "epochs") if getattr(decided, name) == getattr(config.evaluation, name)]
    return dataclasses.replace(config.evaluation, **dict.fromkeys(same))


def resolve(config: R, default: R | None = None) -> R:
    """Checks a configuration and writes it out: the network's options, and data paths that mean the same anywhere.

    Args:
      config: What was given.
      default: What it was given on top of: options of that network do not apply to another one.
    """

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else Path(path).expanduser().absolute()

    _check_types(config)
    network = config.network
    if default is not None:
        network = networks.on_top_of(network, default.network)
    config = dataclasses.replace(config, network=networks.resolve(network))
    if isinstance(config, Config):
        # A coreset has no iterations; whatever the fields say, it is the same.
        defaults = METHOD_DEFAULTS.get(config.method, METHOD_DEFAULTS["dm"])
        config = fill(config, {"optimizer.learning_rate": networks.condensing_rate(config.network)} | defaults)
    evaluation = dataclasses.replace(config.evaluation, strategy=_strategy(config))
    if evaluation.epochs is None:
        plain = config.method == "dc" and evaluation.strategy == "none"
        evaluation = dataclasses.replace(evaluation, epochs=300 if plain else 1000)
    config = dataclasses.replace(config, evaluation=evaluation)
    validate(config)
    data = config.data
    data = dataclasses.replace(
        data, path=absolute(data.path), test_path=absolute(data.test_path), cache=absolute(data.cache)
    )
    if isinstance(config, Config):
        pretrained = dataclasses.replace(config.pretrained, path=absolute(config.pretrained.path))
        config = dataclasses.replace(config, pretrained=pretrained)
    if isinstance(config, Config) and config.workdir is not None:
        config = dataclasses.replace(config, workdir=Path(config.workdir).expanduser())
    return dataclasses.replace(config, data=data)
