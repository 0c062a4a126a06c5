"""The command that makes a set again, from the configuration that made it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmjax import methods
from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.methods import Method
from dmjax.settings import experiment
from dmjax.settings.fields import carry_over, flatten

_CONDENSE = ("python", "-m", "dmjax.condense")
_CANDIDATES = 2  # experiments that are tried
_ROUNDS = 3  # what follows from a flag may need a flag itself
_ELSEWHERE = ("workdir",)  # where a set is written does not belong to it
FOLDER = "repeated"
"""The working folder that the commands name."""


def from_json(runs: int = 1) -> list[str]:
    """The command by config.json, for the folder of the page; with several seeds by that of the first."""
    further = ["--runs", str(runs)] if runs > 1 else []
    return [*_CONDENSE, "--config", "config.json", *further, "--workdir", FOLDER]


def from_flags(config: Config) -> list[str] | None:
    """The command by flags, on top of the experiment of this package that comes closest.

    Args:
      config: The resolved configuration.

    Returns:
      The words of the command. It was parsed again and gives exactly this configuration; None where none does, where
      the images were handed over in Python, or where it would run code that the configuration names.
    """
    if config.data.source == "memory" or ":" in config.network.name or not isinstance(config.method, Method):
        return None
    known = [(name, experiment.load_config(name)) for name in experiment.names()]
    close = [(name, base) for name, base in known if base.data.source == config.data.source] or known
    for name, base in sorted(close, key=lambda pair: _distance(pair[1], config))[:_CANDIDATES]:
        start = ["--config", name]
        method, network = methods.identifier(config.method), config.network.name
        start += ["--method", method] if methods.identifier(base.method) != method else []
        start += ["--network.name", network] if base.network.name != network else []
        found = _completed(start, config)
        if found is not None:
            return found
    return None


def _distance(base: Config, config: Config) -> int:
    """How many settings differ from those of an experiment that the method is put into."""
    assert isinstance(config.method, Method)
    method = base.method if type(base.method) is type(config.method) else carry_over(base.method, type(config.method)())
    wanted, given = flatten(config), {**flatten(base), **flatten(method)}
    return sum(given[name] != value for name, value in wanted.items() if given.get(name) is not None)


def _completed(start: list[str], config: Config) -> list[str] | None:
    """The arguments with flags for all that is not yet as it should be; None where flags cannot say it."""
    wanted, flags = flatten(config), {}
    for _ in range(_ROUNDS):
        arguments = [*start, *(word for name, value in flags.items() for word in _flag(name, value))]
        try:
            found = flatten(experiment.resolve(*experiment.parse(Config, arguments, "", "")))
        except UserError:
            return None
        missing = {name: value for name, value in wanted.items() if found.get(name, ...) != value}
        missing = {name: value for name, value in missing.items() if name not in _ELSEWHERE}
        if not missing:
            return [*_CONDENSE, *arguments, "--workdir", FOLDER]
        if None in missing.values():  # no flag takes back what an experiment has
            return None
        flags |= missing
    return None


def _flag(name: str, value: Any) -> list[str]:
    """A field and its value as on the command line."""
    flag = f"--{name.replace('_', '-')}"
    words = [_word(part) for part in _flat(value)]
    return [f"{flag}={words[0]}"] if len(words) == 1 and words[0].startswith("-") else [flag, *words]


def _flat(value: Any) -> Sequence[Any]:
    return [inner for part in value for inner in _flat(part)] if isinstance(value, tuple | list) else [value]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(Path(value)) if isinstance(value, Path) else str(value)
