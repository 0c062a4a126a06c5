"""A user's own code by its import path, `module:Class`: loading it, and its errors as one line with their place."""

import ast
import contextlib
import hashlib
import importlib
import inspect
import linecache
import os
import traceback
from collections.abc import Iterator
from typing import Any

from dmjax.common.errors import UserError


def load(path: str, kind: str) -> Any:
    """Imports what a path `module:name` names, which runs the code of that module.

    Args:
      path: The import path.
      kind: What it should be, for messages: "method", or "network.name".

    Raises:
      UserError: the module cannot be imported, or has nothing of that name.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{kind} {path!r} cannot be imported: {error}; start the command in the folder that holds it, or install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{kind} {path!r} cannot be imported: {describe(error)}") from error
    if not hasattr(module, name):
        raise UserError(f"{kind} {path!r}: {module_name} has no {name!r}")
    return getattr(module, name)


@contextlib.contextmanager
def reported(what: str, owner: Any) -> Iterator[None]:
    """Turns whatever the code inside raises into a `UserError` of one line with file and line number.

    Args:
      what: The subject of the message.
      owner: The class whose file is looked for among the frames of the error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} does not run: {describe(error, owner)}") from error


def describe(error: BaseException, owner: Any = None) -> str:
    """One line: the kind of an error, the first line of its message, and where it was raised.

    Args:
      error: The error.
      owner: A class, or the path of a file. The deepest frame in its file is named, or the deepest of all where none
        is in it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    file = owner if owner is None or isinstance(owner, str) else file_of(owner)
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == file] or frames
    return f"{reason} ({_place(inside[-1])})" if inside else reason


def file_of(cls: type) -> str | None:
    """The file that a class was written in; of a class in a notebook, what Python calls the cell."""
    with contextlib.suppress(TypeError, OSError):  # in a notebook, whose module has no file
        return inspect.getsourcefile(cls)
    written = [
        value.__code__.co_filename for value in map(inspect.unwrap, vars(cls).values()) if hasattr(value, "__code__")
    ]
    return next((file for file in written if file != "<string>"), None)  # which `dataclass` writes


def digest_of(cls: type) -> str | None:
    """Tells the code inside a class from other code, whatever its comments are; None where it cannot be read."""
    try:
        tree = ast.parse("".join(linecache.getlines(file_of(cls) or "")))
    except SyntaxError:
        return None
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
    return hashlib.sha256(ast.unparse(found[-1]).encode()).hexdigest()[:16] if found else None


def _place(frame: traceback.FrameSummary) -> str:
    """File and line; of a notebook's cell, which has no file that anybody could open, the line itself."""
    if os.path.exists(frame.filename) or not frame.line:
        return f"{frame.filename}:{frame.lineno}"
    return f"line {frame.lineno} of its cell: {frame.line}"
