"""A configuration as fields: by their dotted names, as JSON, and compared with another one."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from dmjax.config import Config
from dmjax.errors import UserError, near_misses

T = typing.TypeVar("T")

# Fields that may change between two starts of the same run: they say where and how it is shown, not what is computed.
_NOT_PART_OF_THE_RUN = (
    *("workdir", "runs", "progress", "data.cache", "checkpoint.keep", "pretrained.path"),
    *("class_chunk", "image_chunk", "memory_gb"),
    *(f"distributed.{name}" for name in ("coordinator", "num_processes", "process_id", "timeout")),
)


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


def fill(config: Config, values: dict[str, Any]) -> Config:
    """Replaces those of the fields, by their dotted names, that are None."""
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        owner = getattr(config, part) if part else config
        if getattr(owner, field) is None:
            owner = dataclasses.replace(owner, **{field: value})
            config = dataclasses.replace(config, **{part: owner}) if part else owner
    return config


def differences(old: Config, new: Config) -> list[str]:
    """Names the fields in which two configurations are not the same run, as ``"name: old -> new"``."""
    before, after = flatten(old), flatten(new)
    unused = [name for name in before if name.startswith("pretrained.")] if _needs_no_pool(old, new) else []
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if name not in (*_NOT_PART_OF_THE_RUN, *unused) and before[name] != after[name]
    ]


def _needs_no_pool(*configs: Config) -> bool:
    return all(
        c.embedding.distribution == "random" and c.method not in ("herding", "kcenter", "forgetting") for c in configs
    )
