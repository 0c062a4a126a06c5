"""A configuration as fields: by their dotted names, as JSON, and compared with another one.

The settings of the method stand beside the other fields, as they do on the command line: `iterations`,
`optimizer.learning_rate`.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmjax import methods
from dmjax.common.errors import UserError, near_misses
from dmjax.config import Config
from dmjax.methods import Method

T = typing.TypeVar("T")
D = typing.TypeVar("D")

_EMBEDDING = "embedding"  # a group of settings that methods had before (`Method.renewed`)

# Fields that may change between two starts of the same run: they say where and how it is shown, not what is computed.
_NOT_PART_OF_THE_RUN = (
    *("workdir", "runs", "progress", "data.cache", "checkpoint.keep", "pretrained.path"),
    *("pretrained.together", "class_chunk", "image_chunk", "memory_gb"),
    *(f"distributed.{name}" for name in ("coordinator", "num_processes", "process_id", "timeout")),
)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            values = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            name = {"name": methods.identifier(value)} if isinstance(value, Method) else {}
            return name | values
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(config)


def from_dict(cls: type[T], values: Any) -> T:
    """The inverse of `to_dict`; fields that are missing take their defaults.

    A method is made only where it is one of this package: the code of another one is never imported because a file
    names it, and stands for itself as its import path.

    Raises:
      UserError: unknown fields, or values that are no configuration.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"a {cls.__name__} must be a JSON object, not {values!r:.40}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"unknown field {unknown[0]!r} of {cls.__name__}; {near_misses(unknown[0], list(hints))}")

    def build(hint: Any, value: Any) -> Any:
        if isinstance(value, Mapping) and "name" in value and hint is Any:
            return _method(value)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return from_dict(hint, value)
        if isinstance(value, list):
            return tuple(build(None, v) for v in value)
        accepts_path = hint is Path or (isinstance(hint, types.UnionType) and Path in typing.get_args(hint))
        return Path(value) if accepts_path and isinstance(value, str) else value

    return cls(**{name: build(hints[name], value) for name, value in values.items()})


def _method(values: Mapping[str, Any]) -> Method | str:
    name, settings = values["name"], {key: value for key, value in values.items() if key != "name"}
    if not isinstance(name, str) or ":" in name:
        return str(name)
    cls = methods.find(name)
    return from_dict(cls, cls.renewed(settings))


def config_from_dict(values: Any) -> Config:
    """A `Config` from what `to_dict` made of it, in this version or before methods had settings of their own."""
    if isinstance(values, Mapping) and isinstance(name := values.get("method", Config.method), str) and ":" not in name:
        groups = {key.partition(".")[0] for cls in methods.built_in().values() for key in methods.field_names(cls)}
        groups |= {_EMBEDDING}
        own = {key.partition(".")[0] for key in methods.field_names(methods.find(name))} | {_EMBEDDING}
        settings = {key: value for key, value in values.items() if key in own and value is not None}
        rest = {key: value for key, value in values.items() if key not in groups}
        values = {**rest, "method": {"name": name, **settings}}
    return from_dict(Config, values)


def flatten(config: Any) -> dict[str, Any]:
    """The fields by their dotted names, as on the command line; a method is its name, followed by its settings."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Method):
            out |= {field.name: methods.identifier(value), **flatten(value)}
        elif dataclasses.is_dataclass(value):
            out |= {f"{field.name}.{name}": inner for name, inner in flatten(value).items()}
        else:
            out[field.name] = value
    return out


def replace(owner: D, values: Mapping[str, Any]) -> D:
    """Replaces fields by their dotted names, those of a `Config`'s method included. All of them must be there."""
    for name, value in values.items():
        part, _, field = name.partition(".")
        if not hasattr(owner, part) and isinstance(getattr(owner, "method", None), Method):
            owner = dataclasses.replace(owner, method=replace(owner.method, {name: value}))  # type: ignore
        elif field:
            inner = replace(getattr(owner, part), {field: value})
            owner = dataclasses.replace(owner, **{part: inner})  # type: ignore[type-var]
        else:
            owner = dataclasses.replace(owner, **{part: value})  # type: ignore[type-var]
    return owner


def fill(owner: D, values: Mapping[str, Any]) -> D:
    """Replaces those of the fields, by their dotted names, that are there and None."""
    there = flatten(owner)
    return replace(owner, {name: v for name, v in values.items() if name in there and there[name] is None})


def carry_over(old: Method, new: Method) -> Method:
    """What was set in one method is set in another one too, where that has the same setting."""
    given, default, into = flatten(old), flatten(type(old)()), flatten(new)
    return replace(new, {name: v for name, v in given.items() if name in into and v != default[name]})


def differences(stored: Mapping[str, Any], config: Config) -> list[str]:
    """Names the fields in which a stored configuration (`to_dict`) is not the same run, as ``"name: old -> new"``."""
    before, after = flatten_dict(stored), flatten_dict(to_dict(config))
    uses_pool = isinstance(config.method, Method) and config.method.uses_trained_networks()
    pool_matters = uses_pool or config.evaluation.is_taught
    unused = [] if pool_matters else ["pretrained."]
    unused += [] if after.get("match.networks") == "queue" else ["queue."]
    ignored = (*_NOT_PART_OF_THE_RUN, *(n for n in after if n.startswith(tuple(unused))))
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys((*before, *after))
        if name not in ignored and before.get(name) != after.get(name)
    ]


def flatten_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a configuration that is plain JSON values (`to_dict`)."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = flatten_dict(value)
            is_method = name == "method"
            out |= {(name if key == "name" else key) if is_method else f"{name}.{key}": v for key, v in inner.items()}
        else:
            out[name] = value
    return out
