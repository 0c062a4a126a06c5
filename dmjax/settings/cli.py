"""What the commands share: flags from dataclasses, one-line errors, exit statuses."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from dmjax import methods
from dmjax.common import signals
from dmjax.common.errors import UserError
from dmjax.settings import values
from dmjax.settings.fields import flatten

T = TypeVar("T")

_HELP = {"-h", "--help"}


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
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{place}; mend it, or choose another place", file=sys.stderr)
        return UserError.status
    except signals.Interrupted as error:
        print(f"{error}; {when_interrupted}", file=sys.stderr)
        return 128 + error.signum
    return 0


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the flags are to be listed."""
    return bool(_HELP & set(arguments))


def take(arguments: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """Removes `flag VALUE` or `flag=VALUE`, on which the defaults of all other flags depend.

    Returns:
      The value, None where the flag is not given, and the other arguments.
    """
    taken, rest = split(arguments, {_name(flag)})
    if not taken:
        return None, rest
    given = [taken[0].partition("=")[2]] if "=" in taken[0] else taken[1:]
    if len(given) != 1 or not given[0]:
        empty = "is given an empty value: is a variable of the shell not set?"
        raise UserError(f"{flag} {empty if given == [''] else 'takes one value'}")
    return given[0], rest


def first_is(flag: str, arguments: Sequence[str]) -> list[str]:
    """Lets a first word that is no flag be the value of this one, so that `export SET` is `export --synthetic SET`."""
    return [flag, *arguments] if arguments and not arguments[0].startswith("-") else list(arguments)


def split(arguments: Sequence[str], names: set[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into the flags of these dotted names, with their values, and all others."""
    mine, others, current = [], [], []
    for argument in arguments:
        if argument.startswith("--"):
            current = mine if _name(argument) in names else others
        elif argument in _HELP:
            current = others
        (current if current is mine else others).append(argument)
    return mine, others


def values_of(arguments: Sequence[str], name: str) -> list[str] | None:
    """The values of the flag of a field; None where it is not given."""
    mine, _ = split(arguments, {name})
    found = [a.partition("=")[2] if a.startswith("--") else a for a in mine if "=" in a or not a.startswith("--")]
    if mine and not found:
        raise UserError(f"--{name.replace('_', '-')} takes at least one value")
    return found if mine else None


def _name(flag: str) -> str:
    """The dotted name of the field that a flag sets."""
    return flag.removeprefix("--").partition("=")[0].replace("-", "_")


def parse(
    default: T,
    arguments: Sequence[str],
    prog: str,
    description: str,
    resolve: Callable[[T, T], T] | None = None,
    repeatable: Sequence[str] = (),
) -> T:
    """Overrides the fields of `default` by flags; the settings of its method are flags like the other fields.

    Args:
      default: A dataclass of the configuration, or a method.
      arguments: Of the command line.
      prog: The command, for --help.
      description: What the command does, for --help.
      resolve: Fills in what is left open in what was given, so that --help shows the values that will be used.
      repeatable: Names of flags that may be given several times.

    Raises:
      UserError: unknown flag or a value of the wrong type; one line that names it.
    """
    _check_flags(default, arguments, repeatable)
    if asks_for_help(arguments):
        with contextlib.suppress(UserError):
            given = _tyro(default, [a for a in arguments if a not in _HELP], prog, description)
            default = resolve(given, default) if resolve else given
        arguments = ["--help"]
        description = f"{description.strip()}\n\n{_methods_help(default)}".strip()
    return _tyro(default, arguments, prog, description)


def _methods_help(default: Any) -> str:
    method = getattr(default, "method", None)
    if not isinstance(method, methods.Method):
        return ""
    lines = [f"  {name}: {(cls.__doc__ or '').strip().splitlines()[0]}" for name, cls in methods.built_in().items()]
    if hasattr(default, "methods"):  # of a study, which gives each of several methods its own flags
        head = "--methods NAME ... chooses among these, or module:Class of one's own, and their flags are accepted too:"
    else:
        head = "--method NAME chooses among these, or module:Class of one's own; the flags below are those of "
        head += f"{methods.identifier(method)}:"
    return "\n\n".join([head, *lines])


def _check_flags(default: Any, arguments: Sequence[str], repeatable: Sequence[str]) -> None:
    """Raises a `UserError` for flags that are given twice or without content, and for those of another method."""
    flags = [_name(argument) for argument in arguments if argument.startswith("--")]
    for i, argument in enumerate(arguments):
        if argument == "" or (argument.startswith("--") and argument.endswith("=")):
            flag = next((a for a in reversed(arguments[: i + 1]) if a.startswith("--")), "an argument")
            raise UserError(f"{flag.partition('=')[0]} is given an empty value: is a variable of the shell not set?")
    for flag in flags:
        if flags.count(flag) > 1 and flag not in repeatable:
            raise UserError(f"--{flag.replace('_', '-')} is given twice")
    known = {*flatten(default), *(field.name for field in dataclasses.fields(default))}
    method = getattr(default, "method", default)
    for flag in flags:
        owners = [name for name, cls in methods.built_in().items() if flag in methods.field_names(cls)]
        if owners and flag not in known:
            rest = "which does not apply here; leave it out"
            if isinstance(method, methods.Method):
                rest = f"not of {methods.identifier(method)}; leave it out, or choose its method with --method"
            listed = " and ".join(filter(None, [", ".join(owners[:-1]), owners[-1]]))
            raise UserError(f"--{flag.replace('_', '-')} is a setting of {listed}, {rest}")


def _tyro(default: T, arguments: Sequence[str], prog: str, description: str) -> T:
    """Calls tyro, whose error message becomes one line."""
    arguments = _complete_booleans(default, arguments)
    help_wanted = asks_for_help(arguments)
    captured, columns = io.StringIO(), os.environ.get("COLUMNS")
    cls, start = _flat(default)
    try:
        if not help_wanted:
            os.environ["COLUMNS"] = "4000"  # nothing may be wrapped in what becomes one line
        with contextlib.nullcontext() if help_wanted else contextlib.redirect_stderr(captured):
            parsed = tyro.cli(
                cls,
                prog=prog,
                description=description,
                args=arguments,
                default=start,
                config=(tyro.conf.FlagConversionOff,),
                registry=values.registry(),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(captured.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS", None)
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return type(default)(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(default)})  # type: ignore


def _flat(default: T) -> tuple[type[T], T]:
    """The class and the default of a configuration whose method's settings have no prefix on the command line."""
    if typing.get_type_hints(type(default), include_extras=True).get("method") is not Any:
        return type(default), default
    method = default.method  # type: ignore[attr-defined]
    flags = Annotated[type(method), tyro.conf.arg(name="")]
    field = ("method", flags, dataclasses.field(default=method))
    cls = dataclasses.make_dataclass(type(default).__name__, [field], bases=(type(default),), frozen=True)
    return cls, cls(**{field.name: getattr(default, field.name) for field in dataclasses.fields(default)})  # type: ignore


def _complete_booleans(default: Any, arguments: Sequence[str]) -> list[str]:
    """Lets a flag such as --data.skip-unreadable stand for itself and `true`."""
    booleans = {name for name, value in flatten(default).items() if isinstance(value, bool)}
    completed = []
    for i, argument in enumerate(arguments):
        completed.append(argument)
        alone = i + 1 == len(arguments) or arguments[i + 1].startswith("--")
        if argument.startswith("--") and "=" not in argument and _name(argument) in booleans and alone:
            completed.append("true")
    return completed


def _one_line(box: str) -> str:
    """Takes the message out of the box that tyro draws around it, in ASCII where a terminal knows no more."""
    inside = [line for line in box.splitlines() if not line.startswith(("╭", "+-"))]  # without its title
    lines = [re.sub(r"[│╭╮╰╯|+]|-{5,}", "", line).strip() for line in inside]
    sections: list[list[str]] = [[]]
    for line in lines:
        if line and not line.strip("─ "):
            sections.append([])
        elif line and not re.search(r"─{3,}|^─", line):
            sections[-1].append(line)
    for section in sections:
        if section and section[0].startswith("Perhaps you meant"):  # flags without what their help says
            section[:] = [f"did you mean {' or '.join(line.split()[0] for line in section if line.startswith('--'))}?"]
    text = "; ".join(" ".join(section) for section in sections if section)
    text = re.sub(r"(; )?(Argument helptext:.*|For full helptext, (run|see) .*)$", "", text)
    return text[:1].lower() + text[1:] + " (--help lists all flags)"


class _CallableModule(types.ModuleType):
    """A module that is called as the function of its own name."""

    def __call__(self, *args, **kwargs):
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(module: str) -> None:
    """Lets `dmjax.condense(config)` and `python -m dmjax.condense` share a name, whichever is imported first."""
    sys.modules[module].__class__ = _CallableModule
