"""A user's own code by its import path, `module:Class`: loading it, and its errors as one line with their place."""

import contextlib
import importlib
import inspect
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
      owner: A class. The deepest frame in its file is named, or the deepest of all where none is in it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    try:
        file = inspect.getsourcefile(owner) if owner is not None else None
    except TypeError:
        file = None
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == file] or frames
    return f"{reason} ({inside[-1].filename}:{inside[-1].lineno})" if inside else reason
