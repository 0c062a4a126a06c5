"""Methods: one file each, or a family that shares its arithmetic; `base.py` says what a method is.

A file that is added to this folder is found by itself. A method of one's own needs no place here: it is named by its
import path, `my_package.my_module:MyMethod`, or handed over as an object.
"""

import contextlib
import dataclasses
import functools
import importlib
import pkgutil
from typing import Any

import numpy as np

from dmjax.common import imports
from dmjax.common.errors import UserError, near_misses
from dmjax.methods.base import ClassData, Condensed, Method, Problem

__all__ = [
    "COMPARED",
    "ClassData",
    "Condensed",
    "Method",
    "Problem",
    "built_in",
    "check_condensed",
    "checked_step",
    "code_digests",
    "create",
    "field_names",
    "find",
    "identifier",
    "reported",
]

COMPARED = ("random", "herding", "dm")
"""What a comparison compares where it is not told."""


@functools.cache
def built_in() -> dict[str, type[Method]]:
    """The methods of this package by their names, in the order of the files."""
    found = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            named = isinstance(value, type) and issubclass(value, Method) and "name" in vars(value)
            if named and value.__module__ == module.name:
                found[value.name] = value
    return found


def find(name: str) -> type[Method]:
    """The method of this name, or the class that an import path `module:Class` names, whose code is then run.

    Raises:
      UserError: there is none.
    """
    if ":" in name:
        found = imports.load(name, "method")
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UserError(f"method {name!r} is no class that inherits from dmjax.Method")
        if not dataclasses.is_dataclass(found) or "__dataclass_params__" not in vars(found):
            raise UserError(f"method {name!r} needs @dataclasses.dataclass(frozen=True) above its class")
        return found
    if name not in built_in():
        raise UserError(f"unknown method {name!r}, which is no module:Class either; {near_misses(name, [*built_in()])}")
    return built_in()[name]


def create(method: Any) -> Method:
    """The method that is meant by a name, an import path, a class, or the method itself.

    Raises:
      UserError: it is none of these.
    """
    if isinstance(method, str):
        method = find(method)
    if isinstance(method, type) and issubclass(method, Method):
        with imports.reported(f"method {identifier(method)!r}", method):
            method = method()
    if not isinstance(method, Method):
        raise UserError(f"method must be a name, module:Class or a dmjax.Method, not {method!r}")
    return method


def identifier(method: Method | type[Method]) -> str:
    """The name of a method of this package, and the import path of any other."""
    cls = method if isinstance(method, type) else type(method)
    return f"{cls.__module__}:{cls.__qualname__}" if _is_own(cls) else cls.name


def _is_own(cls: type) -> bool:
    return cls.__module__.rpartition(".")[0] != __name__


def code_digests(method: Method) -> dict[str, str | None]:
    """What tells the code of a method of one's own from an earlier or later one: a digest of each of its classes."""
    own = [cls for cls in type(method).__mro__ if issubclass(cls, Method) and _is_own(cls)]
    return {identifier(cls): imports.digest_of(cls) for cls in own}


def reported(method: Method) -> contextlib.AbstractContextManager[None]:
    """Errors that a method of one's own raises inside become one line with the place in its file."""
    if ":" not in identifier(method):
        return contextlib.nullcontext()
    return imports.reported(f"method {identifier(method)!r}", type(method))


def checked_step(method: Method, returned: Any, data: ClassData) -> tuple[Any, Any]:
    """The state and the losses [C] that `step` has returned; raises a `UserError` where that is something else."""
    classes, is_pair = len(data.count), type(returned) is tuple and len(returned) == 2
    if not is_pair or np.shape(returned[1]) != (classes,):
        found = f"losses {list(np.shape(returned[1]))}" if is_pair else type(returned).__name__
        wanted = f"the state and the losses [{classes}] of the classes that a device has"
        raise UserError(f"method {identifier(method)!r}: step must return {wanted}, not {found}")
    return returned


def check_condensed(method: Method, problem: Problem, made: Any) -> None:
    """Raises a `UserError` where what `finish` has returned is no set of images of every class."""
    must = f"method {identifier(method)!r}: finish must return"
    if not isinstance(made, Condensed):
        raise UserError(f"{must} a dmjax.methods.Condensed, not {type(made).__name__}")
    classes, (height, width, channels) = problem.num_classes, problem.image_shape
    shape = np.shape(made.images)
    if len(shape) != 5 or (shape[0], *shape[2:]) != (classes, height, width, channels):
        wanted = f"[{classes}, images per class, {height}, {width}, {channels}]"
        raise UserError(f"{must} images {wanted}, not {list(shape)}")


def field_names(cls: type[Method], prefix: str = "") -> list[str]:
    """The settings of a method by their dotted names, as flags."""
    names = []
    for field in dataclasses.fields(cls):
        group = field.default_factory() if callable(field.default_factory) else None
        if dataclasses.is_dataclass(group):
            names += field_names(type(group), f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            names.append(prefix + field.name)
    return names
