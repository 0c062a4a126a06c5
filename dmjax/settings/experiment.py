"""Experiments: their files, the flags on top of them, and what follows from network, data set and method."""

import dataclasses
import re
import runpy
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmjax import methods, networks
from dmjax.common import backend, files, imports
from dmjax.common.errors import UserError, near_misses
from dmjax.config import CheckpointConfig, Config, EvaluateConfig, EvaluationConfig, NetworkConfig
from dmjax.evaluation import protocols
from dmjax.methods import Method
from dmjax.settings import cli
from dmjax.settings.check import check
from dmjax.settings.fields import carry_over, config_from_dict, fill, flatten, from_dict, replace

R = typing.TypeVar("R", bound=Config | EvaluateConfig)
C = typing.TypeVar("C", bound=Config)

_DISPATCH = {"chunk": 10, "checkpoint.every": 500}  # section 3.1 says nothing of it: ours
_LONG_ITERATIONS = {"chunk": 1, "checkpoint.every": 10}


_HERE = Path(__file__).parents[1]
_FOLDERS = _HERE / "experiments", _HERE.parent / "experiments"
"""Where experiments are in an installed package, and in a clone of the repository."""


def load_config(path: str | Path) -> Config:
    """Reads an experiment file and returns what its `get_config()` returns, with `workdir` filled in.

    Args:
      path: Of the file; or the name of one that comes with the package, such as tiny; or of the config.json of a run.

    Raises:
      UserError: the file is missing, cannot be executed, or has no `get_config` that returns a `Config`.
    """
    path = Path(path)
    if not path.is_file() and path.name == str(path) and not path.suffix:
        path = next((folder / f"{path}.py" for folder in _FOLDERS if (folder / f"{path}.py").is_file()), path)
    if not path.is_file():
        raise UserError(f"no experiment file {str(path)!r}; {_similar(path)}")
    config = _from_json(path) if path.suffix == ".json" else _from_file(path)
    check(config)
    config = dataclasses.replace(config, method=methods.create(config.method))
    if config.workdir is None:
        config = dataclasses.replace(config, workdir=Path("runs") / path.stem)
    return config


def names() -> list[str]:
    """The names of the experiments that come with the package."""
    return sorted({file.stem for folder in _FOLDERS for file in folder.glob("*.py") if _is_one(file)})


def _is_one(file: Path) -> bool:
    return "def get_config" in file.read_text(errors="replace")


def _from_file(path: Path) -> Config:
    """What the `get_config()` of an experiment file returns."""
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:
        raise UserError(f"experiment file {str(path)!r} does not run: {imports.describe(error, str(path))}") from error
    if not isinstance(config, Config):
        raise UserError(f"experiment file {str(path)!r} needs a function get_config() that returns a dmjax.Config")
    return config


def _from_json(path: Path) -> Config:
    """The configuration in the config.json of a run, which is resolved: the run can be made again from it."""
    mend = "name the config.json of a run"
    stored = files.read_json(path, mend)
    values = stored.get("config", stored) if isinstance(stored, Mapping) else stored
    try:
        config = config_from_dict(values)
        if isinstance(config.method, str) and ":" in config.method:  # named by the user, who names this file
            settings = {name: value for name, value in values["method"].items() if name != "name"}
            config = dataclasses.replace(config, method=from_dict(methods.find(config.method), settings))
    except (KeyError, TypeError, AttributeError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else "something is missing in it"
        raise UserError(f"{str(path)!r} is no configuration ({reason}); {mend}") from None
    return config


def _similar(path: Path) -> str:
    """What may have been meant by the path of an experiment file that is not there."""
    folders = [folder for folder in (Path("experiments"), path.parent) if folder.is_dir()]
    local = (file for folder in folders for file in sorted(folder.glob("*.py")))
    there = {name: name for name in names()} | {file.stem: str(file) for file in local if _is_one(file)}
    close = near_misses(path.stem, list(there))
    if not close.startswith("did you mean"):
        return f"there are {', '.join(sorted(there.values())[:20])}"
    return "did you mean " + " or ".join(repr(there[stem]) for stem in re.findall(r"'(.*?)'", close)) + "?"


def parse(kind: type[C], arguments: list[str], prog: str, description: str) -> tuple[C, C]:
    """Flags on top of the experiment file that `--config` names.

    Args:
      kind: `Config`, or a class that inherits from it and has further fields.
      arguments: The arguments of the command line.
      prog: The command, for --help.
      description: What the command does, for --help.

    Returns:
      The configuration as it was given, and the one that it was given on top of; see `resolve`.
    """
    path, arguments = cli.take(arguments, "--config")
    name, arguments = cli.take(arguments, "--method")
    if path is None and not cli.asks_for_help(arguments):
        raise UserError("name an experiment file, for example --config experiments/tiny.py")
    loaded = load_config(path) if path else Config()
    method = methods.create(loaded.method)
    if name is not None:
        named = methods.create(name)
        method = method if type(named) is type(method) else carry_over(method, named)
    # What a kind declares anew is its own, not the experiment's.
    taken = [field for field in Config.__annotations__ if kind is Config or field not in kind.__annotations__]
    default = kind(**{field: getattr(loaded, field) for field in taken})
    if "method" in taken:
        default = dataclasses.replace(default, method=method)
    default = without_options(default, arguments)
    return cli.parse(default, arguments, prog, description, resolve), default


def parse_methods(names: Sequence[str], arguments: list[str]) -> tuple[dict[str, Method], list[str]]:
    """Several methods by their names, each with those of the flags that it has a setting for.

    Args:
      names: Their names, or import paths.
      arguments: Of the command line. What the method of the experiment that `--config` names was given, methods with
        the same setting are given too.

    Returns:
      The methods by their names, and the arguments that belong to none of them.
    """
    if cli.take(arguments, "--method")[0] is not None:
        raise UserError("the methods are those of --methods; leave out --method")
    path, _ = cli.take(arguments, "--config")
    base = methods.create((load_config(path) if path else Config()).method)
    classes = {name: type(methods.create(name)) for name in names}
    known = {name: set(methods.field_names(cls)) for name, cls in classes.items()}
    settings, rest = cli.split(arguments, set().union(*known.values()))
    found = {}
    for name, cls in classes.items():
        own, _ = cli.split(settings, known[name])
        start = base if cls is type(base) else carry_over(base, methods.create(name))
        found[name] = cli.parse(start, own, "", "")
    return found, rest


def tune(
    named: Mapping[str, Method], flag: str, field: str, given: Sequence[tuple[str, typing.Any]]
) -> dict[str, Method]:
    """Several methods, some of which are given another value of one setting.

    Args:
      named: The methods by their names.
      flag: What the values were given by, for the message.
      field: The dotted name of the setting.
      given: Names of methods and their values.

    Raises:
      UserError: a name that is not among them, or a method without this setting.
    """
    tuned = dict(named)
    for name, value in given:
        if name not in named:
            raise UserError(f"{flag}: {name!r} is not among the methods; {near_misses(name, list(named))}")
        if field not in flatten(named[name]):
            raise UserError(f"{flag}: {name} has no {field}")
        tuned[name] = replace(tuned[name], {field: value})
    return tuned


def without_options(default: R, arguments: list[str]) -> R:
    """What flags are given on top of: where they name another network, the options of the old one do not apply."""
    name, _ = cli.take(arguments, "--network.name")
    if name in (None, default.network.name):
        return default
    plain = NetworkConfig(name=default.network.name, precision=default.network.precision)
    return dataclasses.replace(default, network=plain)


def runs(config: Config) -> list[Config]:
    """The runs that a configuration asks for: consecutive seeds, each in a folder of its own below the workdir."""
    if config.runs == 1:
        return [config]
    seeds, folder = range(config.seed, config.seed + config.runs), config.workdir
    return [
        dataclasses.replace(config, runs=1, seed=seed, workdir=folder and Path(folder) / f"seed_{seed}")
        for seed in seeds
    ]


def resolve(config: R, default: R | None = None) -> R:
    """Checks a configuration and fills in all that follows from network, data set and method.

    Args:
      config: What was given.
      default: What it was given on top of: options of that network do not apply to another one.

    Raises:
      UserError: values that cannot be right, whatever the data are.
    """
    check(config)
    network = config.network if default is None else networks.on_top_of(config.network, default.network)
    network = networks.resolve(network)
    if not backend.awaits_others(getattr(config, "distributed", None)):
        network = networks.settled(network)
    method = methods.create(config.method)
    config = dataclasses.replace(config, network=network, method=method)
    config = _with_paths(config)
    check(method)
    with methods.reported(method):
        if isinstance(config, Config):
            config = dataclasses.replace(config, method=method.resolve(config))
            config = fill(config, _LONG_ITERATIONS if method.inner_loop else _DISPATCH)
        if config.evaluation.protocol is not None:  # what is given comes before it, the method's authors after it
            config = _fill_evaluation(config, protocols.settings(config.evaluation.protocol, config))
        config = _fill_evaluation(config, method.evaluation(config))
        pretraining = method.pretraining(config)
    config = _fill_evaluation(config, protocols.settings(protocols.DEFAULT, config))
    config = fill(config, {f"pretrained.{name}": value for name, value in pretraining.items()})
    check(config)
    values = flatten(config)
    _check_evaluation(config.evaluation)
    if values.get("pretrained.momentum") == 1:
        raise UserError("pretrained.momentum must be below 1, not 1")
    if values["seed"] + values.get("runs", 1) - 1 >= 2**32:
        raise UserError(f"seed must be below 2**32, and that of the last run too, not {values['seed']}")
    return config


def settled(config: R, default: R) -> R:
    """A configuration as it was given, with the network's options and precision filled in.

    For commands that join no other processes, whatever the scheduler has started.
    """
    network = networks.settled(networks.resolve(networks.on_top_of(config.network, default.network)))
    return dataclasses.replace(config, network=network)


def _fill_evaluation(config: R, values: Mapping[str, typing.Any]) -> R:
    return fill(config, {f"evaluation.{name}": value for name, value in values.items()})


def _check_evaluation(given: EvaluationConfig) -> None:
    """Raises a `UserError` for what only several fields together, or no annotation, can tell."""
    if given.momentum == 1:
        raise UserError("evaluation.momentum must be below 1, not 1")
    assert given.schedule is not None, "the configuration is not resolved"
    assert given.cutmix is not None, "the configuration is not resolved"
    assert given.mixup is not None, "the configuration is not resolved"
    if list(given.schedule) != sorted(set(given.schedule)):
        raise UserError(f"evaluation.schedule must be ascending, not {' '.join(map(str, given.schedule))}")
    if given.cutmix + given.mixup > 1:
        raise UserError(
            f"evaluation.cutmix and evaluation.mixup must be at most 1 together, not {given.cutmix} and {given.mixup}"
        )


def _with_paths(config: R) -> R:
    """The configuration with paths that mean the same in any folder; the workdir stays as it is."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else Path(path).expanduser().absolute()

    data = config.data
    data = dataclasses.replace(
        data, path=absolute(data.path), test_path=absolute(data.test_path), cache=absolute(data.cache)
    )
    config = dataclasses.replace(config, data=data)
    pretrained = dataclasses.replace(config.pretrained, path=absolute(config.pretrained.path))
    config = dataclasses.replace(config, pretrained=pretrained)
    if isinstance(config, Config):
        workdir = None if config.workdir is None else Path(config.workdir).expanduser()
        config = dataclasses.replace(config, workdir=workdir)
    return config


def left_open(config: Config) -> EvaluationConfig:
    """The evaluation of a resolved configuration, where what its protocol or method decided is left open again.

    Another network may mean another decision. A configuration whose method is not at hand keeps what was decided.
    """
    if isinstance(config.method, str) and ":" in config.method:
        return config.evaluation
    undecided = dataclasses.replace(config.evaluation, **dict.fromkeys(protocols.FIELDS))
    decided = resolve(dataclasses.replace(config, evaluation=undecided)).evaluation
    return protocols.opened(config.evaluation, vars(decided))


def undecided(config: C, given: C) -> C:
    """A resolved configuration in which what follows from the method and network of a run is as it was given."""
    checkpoint = CheckpointConfig(given.checkpoint.every, config.checkpoint.keep)
    method = methods.create(given.method)
    pretrained = dataclasses.replace(given.pretrained, path=config.pretrained.path)
    return dataclasses.replace(config, method=method, chunk=given.chunk, checkpoint=checkpoint, pretrained=pretrained)
