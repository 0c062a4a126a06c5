"""Checks every field of a configuration against its annotation: type, choices, bounds.

Flags have their types from the command line; experiment files and Python may put anything into a field.
"""

import dataclasses
import math
import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from dmjax.common.errors import UserError, near_misses
from dmjax.config import Groups, Range


def check(config: Any, prefix: str = "") -> None:
    """Raises a `UserError` for the first field whose value its annotation does not allow.

    Args:
      config: A dataclass; fields that are dataclasses are checked likewise.
      prefix: What the dotted names of its fields begin with, in messages.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        _check(f"{prefix}{field.name}", getattr(config, field.name), hints[field.name])


def _check(name: str, value: Any, hint: Any) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _check(name, value, arguments[0])
        for rule in arguments[1:]:
            if isinstance(rule, Range | Groups) and not rule.contains(value):
                raise UserError(f"{name} must be {rule}, not {value!r}")
    elif origin in (typing.Union, types.UnionType):
        _check_union(name, value, arguments)
    elif origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            choices = [str(choice) for choice in arguments]
            raise UserError(f"{name} must be one of {', '.join(choices)}, not {value!r}{_hint(value, choices)}")
    elif origin is tuple:
        _check_tuple(name, value, arguments)
    elif dataclasses.is_dataclass(hint):
        if not isinstance(value, typing.cast(type, hint)):
            raise UserError(f"{name} must be of type {hint.__name__}, not {value!r}")  # type: ignore[union-attr]
        check(value, f"{name}.")
    elif hint is Path:
        if not isinstance(value, str | os.PathLike) or value == "":
            raise UserError(f"{name} must be a path, not {value!r}")
        if "\0" in os.fspath(value):
            raise UserError(f"{name} must be a path, not {value!r}")
    elif hint in (int, float, bool, str):
        _check_plain(name, value, hint)


def _check_plain(name: str, value: Any, hint: type) -> None:
    expected = (int, float) if hint is float else hint
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{name} must be of type {hint.__name__}, not {value!r}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{name} must be finite, not {value}")
    bits = 32 if name.endswith("seed") else 31
    if hint is int and abs(value) >= 2**bits:
        raise UserError(f"{name} must be below 2**{bits}, not {value}")


def _check_union(name: str, value: Any, arguments: tuple[Any, ...]) -> None:
    if value is None and type(None) in arguments:
        return
    wanted = [hint for hint in arguments if hint is not type(None)]
    literals = [choice for hint in wanted if typing.get_origin(hint) is Literal for choice in typing.get_args(hint)]
    if isinstance(value, str) and value in literals:
        return
    others = [hint for hint in wanted if typing.get_origin(hint) is not Literal]
    if isinstance(value, str) and literals and others and str not in others:
        raise UserError(f"{name} must be a number or {' or '.join(map(str, literals))}, not {value!r}")
    _check(name, value, (others or wanted)[0])


def _check_tuple(name: str, value: Any, arguments: tuple[Any, ...]) -> None:
    if not isinstance(value, tuple):
        raise UserError(f"{name} must be a tuple, not {value!r}")
    each = [arguments[0]] * len(value) if arguments[1:] == (Ellipsis,) else list(arguments)
    if len(value) != len(each):
        raise UserError(f"{name} must hold {len(each)} values, not {value!r}")
    for entry, hint in zip(value, each, strict=True):
        _check(name, entry, hint)


def _hint(value: Any, choices: list[str]) -> str:
    hint = near_misses(value, choices) if isinstance(value, str) else ""
    return f"; {hint}" if hint.startswith("did") else ""
