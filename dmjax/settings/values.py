"""How the words behind a flag become a value of its field, and what is said where they cannot."""

import functools
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from dmjax.common.errors import near_misses


def registry() -> tyro.constructors.ConstructorRegistry:
    """How values are written: None only where nothing is given, true and false in any case."""
    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        reader = _reader(info.type)
        if reader is None or tyro.conf.UseAppendAction in info.markers:
            return None
        shown = lambda value: str(value).lower() if isinstance(value, bool) else str(value)  # noqa: E731
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*" if reader.count is None else reader.count,
            metavar=reader.metavar,
            instance_from_str=reader.read,
            is_instance=lambda value: True,
            str_from_instance=lambda value: [shown(part) for part in _flattened(value)],
        )

    return rules


class _Reader(NamedTuple):
    """How the words behind a flag become a value.

    Attributes:
      metavar: What --help shows for them.
      count: How many words there are; None for any number.
      read: Makes the value; raises a `ValueError` for the user.
    """

    metavar: str
    count: int | None
    read: Callable[[Sequence[str]], Any]


def _reader(hint: Any) -> _Reader | None:
    """The reader of a type; None for types that are not read here."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _reader(arguments[0])
    if origin is Literal:
        return _one_of([], list(arguments))
    if origin in (typing.Union, types.UnionType):
        hints = [inner for inner in arguments if inner is not type(None)]
        literals = [inner for inner in hints if typing.get_origin(inner) is Literal]
        words = [word for inner in literals for word in typing.get_args(inner)]
        return _one_of([inner for inner in hints if inner not in literals], words)
    if origin is tuple:
        parts = [_reader(inner) for inner in arguments if inner is not Ellipsis]
        if any(part is None or part.count is None for part in parts):
            return None
        return _tuple_of([part for part in parts if part is not None], repeated=arguments[-1] is Ellipsis)
    if hint in _SCALARS:
        metavar, read = _SCALARS[hint]
        return _Reader(metavar, 1, lambda words: read(words[0]))
    return None


def _one_of(hints: list[Any], words: list[Any]) -> _Reader | None:
    """Reads one of some words, or else a value of the type that there is."""
    readers = [_reader(hint) for hint in hints]
    if len(readers) > 1 or None in readers:
        return None
    choices = f"{{{','.join(map(str, words))}}}"
    if not readers:
        return _Reader(choices, 1, functools.partial(_choose, words))
    [reader] = readers
    assert reader is not None
    if not words:
        return reader
    either = lambda given: given[0] if given[0] in words else reader.read(given)  # noqa: E731
    return _Reader(f"{reader.metavar}|{choices}", 1, either)


def _choose(words: list[Any], given: Sequence[str]) -> Any:
    if given[0] not in words:
        hint = near_misses(given[0], words)
        rest = f"; {hint}" if hint.startswith("did you mean") else ""
        raise ValueError(f"{given[0]!r} is not one of {', '.join(words)}{rest}")
    return given[0]


def _tuple_of(parts: list[_Reader], repeated: bool) -> _Reader:
    """Reads a tuple of one value each, or any number of values of the first kind."""
    counts = [part.count or 1 for part in parts]
    metavar, size = " ".join(part.metavar for part in parts), sum(counts)

    def read(words: Sequence[str]) -> Any:
        if len(words) % size or (len(words) != size and not repeated):
            raise ValueError(f"{' '.join(words)!r} is not {metavar}")
        starts = [sum(counts[:i]) for i in range(len(counts))]
        if not repeated:
            return tuple(p.read(words[s : s + n]) for p, s, n in zip(parts, starts, counts, strict=True))
        return tuple(parts[0].read(words[i : i + size]) for i in range(0, len(words), size))

    return _Reader(f"[{metavar} ...]" if repeated else metavar, None if repeated else size, read)


def _flattened(value: Any) -> list[Any]:
    return [inner for part in value for inner in _flattened(part)] if isinstance(value, tuple) else [value]


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _truth(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise ValueError(f"{text!r} is neither true nor false")
    return words[text.lower()]


_SCALARS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", _whole_number),
    float: ("FLOAT", _number),
    str: ("TEXT", str),
    Path: ("PATH", Path),
    bool: ("{true,false}", _truth),
}
"""How a type is shown in --help, and read."""
