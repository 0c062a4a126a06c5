"""What the commands share: flags from dataclasses, one-line errors, exit statuses."""

import contextlib
import io
import os
import re
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from dmjax import signals
from dmjax.errors import UserError
from dmjax.fields import flatten

T = TypeVar("T")


def run(command: Callable[[list[str]], None], arguments: list[str] | None, when_interrupted: str) -> int:
    """Runs a command and returns its exit status: 2 for bad input, 128 + number for a signal, 0 for success.

    Args:
      command: Takes the arguments; raises a `UserError` for bad input.
      arguments: By default those of the process.
      when_interrupted: What to tell the user after a signal.
    """
    try:
        with signals.handled():
            command(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, or a file where a folder should be
        print(f"error: {error.strerror or error}: {error.filename}; mend it, or choose another place", file=sys.stderr)
        return UserError.status
    except signals.Interrupted as error:
        print(f"{error}; {when_interrupted}", file=sys.stderr)
        return 128 + error.signum
    return 0


def take(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Removes `flag VALUE` or `flag=VALUE`, which the defaults of all other flags depend on."""
    value, rest, remaining = None, [], iter(arguments)
    for argument in remaining:
        if argument == flag:
            value = next(remaining, None)
            if value is None:
                raise UserError(f"{flag} needs a value")
        elif argument.startswith(flag + "="):
            value = argument.removeprefix(flag + "=")
        else:
            rest.append(argument)
    return value, rest


def parse(cls: type[T], default: T, arguments: list[str], prog: str, description: str) -> T:
    """Overrides the fields of `default` by flags; `--help` lists them all, with the values of `default`.

    Raises:
      UserError: unknown flag or a value of the wrong type; one line that names it.
    """
    arguments = _complete_booleans(default, arguments)
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    captured = io.StringIO()
    stream = contextlib.nullcontext() if asks_for_help else contextlib.redirect_stderr(captured)
    columns = os.environ.get("COLUMNS")
    try:
        if not asks_for_help:
            os.environ["COLUMNS"] = "4000"  # nothing may be wrapped in what becomes one line
        with stream:
            return tyro.cli(
                cls,
                prog=prog,
                description=description,
                args=arguments,
                default=default,
                config=(tyro.conf.FlagConversionOff,),
                registry=_registry(),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(captured.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS", None)
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _complete_booleans(default: Any, arguments: list[str]) -> list[str]:
    """Lets a flag such as --data.skip-unreadable stand for itself and `true`."""
    booleans = {f"--{name}" for name, value in flatten(default).items() if isinstance(value, bool)}
    completed = []
    for i, argument in enumerate(arguments):
        completed.append(argument)
        alone = i + 1 == len(arguments) or arguments[i + 1].startswith("--")
        if argument.replace("-", "_").replace("__", "--", 1) in booleans and alone:
            completed.append("true")
    return completed


def _one_line(box: str) -> str:
    """Takes the message out of the box that tyro draws around it."""
    lines = [re.sub(r"[│╭╮╰╯|+]|-{5,}", "", line).strip() for line in box.splitlines()]
    sections: list[list[str]] = [[]]
    for line in lines:
        if line and not line.strip("─ "):
            sections.append([])
        elif line and not re.search(r"─{3,}|^─", line):
            sections[-1].append(line)
    text = "; ".join(" ".join(section) for section in sections if section)
    text = re.sub(r"(; )?(Argument helptext:.*|For full helptext, (run|see) .*)$", "", text)
    return text[:1].lower() + text[1:] + " (--help lists all flags)"


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Booleans are written true and false, in any case."""
    registry = tyro.constructors.ConstructorRegistry()
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

    @registry.primitive_rule
    def boolean(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type is not bool:
            return None

        def parse_word(values: list[str]) -> bool:
            if values[0].lower() not in words:
                raise ValueError(f"{values[0]!r} is neither true nor false")
            return words[values[0].lower()]

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="{true,false}",
            instance_from_str=parse_word,
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(value).lower()],
        )

    return registry


class _CallableModule(types.ModuleType):
    """A module that is called as the function of its own name."""

    def __call__(self, *args, **kwargs):
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(module: str) -> None:
    """Lets `dmjax.condense(config)` and `python -m dmjax.condense` share a name, whichever is imported first."""
    sys.modules[module].__class__ = _CallableModule
