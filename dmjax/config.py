"""Configuration: frozen dataclasses, all in one place; every field is also a command-line flag.

An experiment file returns a `Config` from `get_config()`. The defaults are those of the paper (Zhao & Bilen,
*Dataset Condensation with Distribution Matching*, section 3.1, and the authors' code where the paper is silent).
"""

import dataclasses
import math
import runpy
import types
import typing
from pathlib import Path
from typing import Any, Literal

from dmjax.errors import UserError, near_misses

T = typing.TypeVar("T")
R = typing.TypeVar("R", "Config", "EvaluateConfig")

AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the real images come from."""

    source: Literal["digits", "npz", "folder", "tfds"] = "digits"
    """digits: scikit-learn's; npz: arrays in a file; folder: train/CLASS/* and test/CLASS/*, or a tar of them; tfds."""
    path: Path | None = None
    """The .npz, the folder or .tar[.gz|.xz], or the TFDS data_dir (default ~/tensorflow_datasets)."""
    test_path: Path | None = None
    """A second folder or tar that holds test/CLASS/*, where the test split is not under --data.path."""
    name: str | None = None
    """The name of the data set: which one to read from TFDS, and the row of the normalisation table that applies."""
    image_size: int | None = None
    """Resize (shorter side) and centre-crop every image to this many pixels."""
    skip_unreadable: bool = False
    """Count and leave out images that cannot be decoded instead of stopping at the first."""
    cache: Path | None = None
    """Where decoded folders, tars and TFDS sets are kept (default: $XDG_CACHE_HOME/dmjax, or ~/.cache/dmjax)."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network that embeds images when condensing, and that is trained when evaluating."""

    name: str = "ConvNet"
    """The family."""
    width: int = 128
    """Channels of every block."""
    depth: int | None = None
    """Number of blocks; by default 3 up to 32 pixels, 4 for 64, and one more for every doubling."""
    activation: Literal["relu", "leakyrelu", "sigmoid", "swish"] = "relu"
    """After every norm."""
    norm: Literal["instance", "batch", "layer", "group", "none"] = "instance"
    """After every convolution."""
    pooling: Literal["avg", "max", "none"] = "avg"
    """2x2 with stride 2, at the end of every block."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """What convolutions compute in; parameters, class means and logits are float32 in any case."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Differentiable Siamese augmentation (Zhao & Bilen 2021)."""

    strategy: str = "_".join(AUGMENTATIONS)
    """The groups to draw from, joined by '_'; 'none' for no augmentation. Leave flip out for digits."""
    align_corners: bool = True
    """How scale and rotate place the image in [-1, 1]; it only makes a difference to images that are not square."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optax optimizer of the synthetic images."""

    name: str = "sgd"
    """Any optimizer of optax that takes a learning_rate."""
    learning_rate: float = 1.0
    """CIFAR-10 with 100 or more images per class wants 10."""
    options: tuple[tuple[str, float], ...] = (("momentum", 0.5),)
    """Further arguments of that optimizer, as NAME VALUE pairs."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Networks trained from scratch on the small set and tested on the real test images."""

    networks: int = 20
    """How many networks, each with its own initialisation."""
    epochs: int = 1000
    """Passes over the small set; the learning rate drops to a tenth after the middle one."""
    every: int = 0
    """Also evaluate every so many iterations while condensing; 0: only at the end."""
    batch_size: int = 256
    """Images per training step; the last, partial batch is kept."""
    learning_rate: float = 0.01
    """Of SGD."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On all parameters."""
    random_real: bool = True
    """Evaluate as many random real images too, a new draw for every network."""
    whole_dataset: bool = False
    """Train on the whole real training set too (the upper bound)."""
    whole_epochs: int = 30
    """Passes over the whole training set."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept for a run that is interrupted."""

    every: int = 500
    """Iterations between two checkpoints."""
    keep: int = 2
    """How many of the last checkpoints stay on disk."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes that condense together; nothing to give on one host, or under Slurm, Kubernetes, Cloud TPU."""

    coordinator: str | None = None
    """HOST:PORT of the first process, the same for all."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which one this is, from 0."""
    timeout: int = 300
    """Seconds to wait for the others at the start."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One condensation run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    method: Literal["dm"] = "dm"
    """dm: distribution matching."""
    ipc: int = 10
    """Synthetic images per class."""
    iterations: int = 20_000
    """Updates of the synthetic images."""
    batch_real: int = 256
    """Real images per class and iteration (all of a class that has fewer)."""
    init: Literal["real", "noise"] = "real"
    """Start from random real images of each class, or from Gaussian noise."""
    seed: int = 0
    """All randomness of a run follows from this number."""
    chunk: int = 10
    """Iterations compiled into one dispatch; the metrics are read once per chunk."""
    class_chunk: int | Literal["auto"] = "auto"
    """Classes computed at once on a device; auto: 1 on a CPU, on an accelerator as many as fit in its memory."""
    image_chunk: int | Literal["auto"] = "auto"
    """Images of a class embedded at once; auto: 16 real ones on a CPU, else all, or as many as fit."""
    memory_gb: float | None = None
    """What `auto` may use on a device, in 10^9 bytes; by default what the device has."""
    images_every: int = 1000
    """Iterations between two pictures of the synthetic set; 0: only the first and the last."""
    workdir: Path | None = None
    """Where everything is written (default: runs/<name of the experiment file>)."""
    progress: bool = True
    """Show progress bars when standard error is a terminal or a notebook."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation of a synthetic set, or of random real images."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    synthetic: Path | None = None
    """The synthetic.npz to evaluate; data, network and recipe are those of its run unless given."""
    random_real: int | None = None
    """Evaluate this many random real images per class instead of a synthetic set."""
    seed: int = 0
    """Of the networks, and of the random real images."""
    json: Path | None = None
    """Write the accuracies to this file as well."""
    progress: bool = True
    """Show progress bars when standard error is a terminal or a notebook."""


# Fields that may change between two starts of the same run: they say where and how it is shown, not what is computed.
_NOT_PART_OF_THE_RUN = (
    *("workdir", "progress", "data.cache", "checkpoint.keep"),
    *("class_chunk", "image_chunk", "memory_gb"),
    *(f"distributed.{name}" for name in ("coordinator", "num_processes", "process_id", "timeout")),
)


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


def validate(config: Config | EvaluateConfig) -> None:
    """Raises a `UserError` for values that cannot be right whatever the data are."""
    at_least_one = ["evaluation.networks", "evaluation.epochs", "evaluation.batch_size", "evaluation.whole_epochs"]
    at_least_one += ["network.width", "network.depth", "data.image_size"]
    at_least_zero = ["evaluation.weight_decay"]
    above_zero = ["evaluation.learning_rate"]
    if isinstance(config, Config):
        at_least_one += ["ipc", "iterations", "batch_real", "chunk", "class_chunk", "image_chunk"]
        at_least_one += ["checkpoint.every", "checkpoint.keep"]
        at_least_one += ["distributed.num_processes", "distributed.timeout"]
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
    if isinstance(config, Config) and config.network.norm == "batch":
        for name in ("class_chunk", "image_chunk"):
            if values[name] != "auto":
                raise UserError(
                    f"{name} cannot be {values[name]} with batch norm, whose statistics are over all images"
                )
    if config.seed >= 2**32:
        raise UserError(f"seed must be below 2**32, not {config.seed}")
    strategy = config.augment.strategy
    for group in [] if strategy == "none" else strategy.split("_"):
        if group not in AUGMENTATIONS:
            hint = near_misses(group, [*AUGMENTATIONS, "none"])
            raise UserError(f"augment.strategy: unknown group {group!r}; {hint}")


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


def resolve(config: R) -> R:
    """Checks a configuration, and makes its data paths absolute so that it means the same from any folder."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else Path(path).expanduser().absolute()

    validate(config)
    data = config.data
    data = dataclasses.replace(
        data, path=absolute(data.path), test_path=absolute(data.test_path), cache=absolute(data.cache)
    )
    if isinstance(config, Config) and config.workdir is not None:
        config = dataclasses.replace(config, workdir=Path(config.workdir).expanduser())
    return dataclasses.replace(config, data=data)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """The inverse of `to_dict`; fields that are missing take their defaults, unknown ones raise a `UserError`."""
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"unknown field {unknown[0]!r} of {cls.__name__}; {near_misses(unknown[0], list(hints))}")

    def build(hint: Any, value: Any) -> Any:
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return from_dict(hint, value)
        if isinstance(value, list):
            return tuple(build(None, v) for v in value)
        accepts_path = hint is Path or (isinstance(hint, types.UnionType) and Path in typing.get_args(hint))
        return Path(value) if accepts_path and value is not None else value

    return cls(**{name: build(hints[name], value) for name, value in values.items()})


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """The fields by their dotted names, as on the command line."""
    out = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            out |= flatten(value, f"{prefix}{field.name}.")
        else:
            out[prefix + field.name] = value
    return out


def differences(old: Config, new: Config) -> list[str]:
    """Names the fields in which two configurations are not the same run, as ``"name: old -> new"``."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if name not in _NOT_PART_OF_THE_RUN and before[name] != after[name]
    ]
