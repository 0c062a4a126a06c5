"""A study: many runs in one folder, with one file for each measurement.

A measurement that is there is not made again, and one that fails does not stop the others.

`experiments/` has those of the paper; each adds to the configuration of a run what it varies, and reads

    with study.opened(LargerSets, arguments, "python -m experiments.larger_sets", __doc__) as larger:
        synthetic = larger.condense("ipc_100", dataclasses.replace(larger.config, ipc=100))
        accuracy = larger.set_accuracy("ipc_100/accuracy", synthetic, larger.config)
"""

import contextlib
import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from dmjax.common import backend, compilation, files
from dmjax.common.errors import NonFiniteLoss, UserError
from dmjax.config import Config
from dmjax.data import Dataset, synthetic_set
from dmjax.data import load as load_dataset
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.accuracy import Accuracy
from dmjax.evaluation.judge import judge, teachers_digest
from dmjax.run import loop
from dmjax.run.program import check_chunks, make_problem
from dmjax.run.workdir import Workdir, changes
from dmjax.settings import experiment

C = TypeVar("C", bound=Config)


class Study(Generic[C]):
    """The measurements below FOLDER/cells and the runs below FOLDER/runs.

    Attributes:
      config: What all runs start from, where what follows from a method or network may still be open (None).
      varied: The configuration with what the study varies.
      given: What was given, the experiment file and flags on top of it, without what follows from it.
      default: What the flags were given on top of.
      dataset: The real images.
      folder: Where everything is.
      failed: What went wrong in this start, one line by the name of the cell.
    """

    def __init__(self, varied: C, given: C, default: C, dataset: Dataset, workdir: Workdir, command: list[str]):
        self.varied, self.given, self.default = varied, given, default
        self.dataset, self.folder = dataset, workdir.path
        self.config = as_config(varied)
        self.failed: dict[str, str] = {}
        self._workdir, self._command = workdir, command

    def check(self, config: Config) -> None:
        """Raises a `UserError` where a run cannot work; before the first cell nothing has been written."""
        config = experiment.resolve(config)
        if not config.method.makes_set:
            raise UserError("this method makes no set to study")
        check_chunks(make_problem(config, self.dataset))
        config.method.check(config, self.dataset)

    def check_run(self, name: str, config: Config) -> None:
        """Raises a `UserError` where a run of this name is there that has other settings."""
        folder = self.folder / "runs" / name
        resolved = experiment.resolve(dataclasses.replace(config, workdir=folder))
        changed = changes(folder, resolved)
        if changed:
            raise UserError(
                f"{folder} has other settings ({', '.join(changed)}); remove it, to make it anew, choose another "
                "--workdir, or give the old values"
            )

    def cell(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The result of a measurement, made now where it is missing; None if it fails.

        Args:
          name: Unique in the study; a path such as ConvNet/VGG11.
          measure: Returns plain JSON values, to which `seconds` and, of them, `compile_seconds` are added.
        """
        path = self._path(name)
        stored = _read(path)
        return stored if stored is not None else self._measure([name], lambda: [measure()])[0]

    def accuracy(self, name: str, measure: Callable[..., Accuracy], digest: str = "") -> dict[str, Any] | None:
        """The same for an accuracy.

        Args:
          name: As for `cell`.
          measure: `measure(resume_file=FILE)` goes on with the networks that FILE already has.
          digest: Of the set that is evaluated, and of its teachers: the accuracy of other ones is measured again.
        """
        path = self._path(name)
        resume_file, stored = path.with_suffix(".networks.json"), _read(path)
        if stored is not None and stored.get("digest", "") != digest:
            path.unlink()
        accuracy = self.cell(name, lambda: {**measure(resume_file=resume_file).to_dict(), "digest": digest})
        if accuracy is not None:
            resume_file.unlink(missing_ok=True)
        return accuracy

    def set_accuracy(
        self, name: str, synthetic: SyntheticSet, config: Config, dataset: Dataset | None = None
    ) -> dict[str, Any] | None:
        """The accuracy of a set by the network, evaluation and seed of a configuration.

        Args:
          name: As for `cell`.
          synthetic: The set.
          config: What it is judged by.
          dataset: Whose test images it is judged on, where they are not those of the study.
        """
        settings, dataset = experiment.resolve(config), dataset or self.dataset
        measure = functools.partial(judge, settings, dataset, synthetic, name)
        return self.accuracy(name, measure, synthetic.digest() + teachers_digest(settings, dataset))

    def _measure(
        self, names: Sequence[str], measure: Callable[[], Sequence[dict[str, Any] | Exception]]
    ) -> list[dict[str, Any] | None]:
        """Makes and writes the cells of these names, which share the time equally; None for those that fail."""
        self._describe()
        start, compiled = time.perf_counter(), compilation.seconds()
        try:
            results = measure()
        except Exception as error:  # whatever it is, the others can be measured
            results = [error] * len(names)
        seconds = (time.perf_counter() - start) / len(names)
        compiling = (compilation.seconds() - compiled) / len(names)
        return [
            self._fail(name, result)
            if isinstance(result, Exception)
            else self._write(name, {**result, "seconds": seconds, "compile_seconds": compiling})
            for name, result in zip(names, results, strict=True)
        ]

    def _describe(self) -> dict[str, Any]:
        """Writes whose folder this is, where that is not there; returns it."""
        files.write_json(self.folder / "study.json", self._command[2])
        return self._workdir.describe(self.config, self.dataset)

    def _fail(self, name: str, error: Exception) -> None:
        reason = (str(error).splitlines() or [""])[0]
        self.failed[name] = reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"
        print(f"{name}: failed: {self.failed[name]}", file=sys.stderr, flush=True)

    def _write(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        files.write_json(self._path(name), result)
        print(f"{name}: {_brief(result)}", flush=True)
        return result

    def condense(self, name: str, config: Config, dataset: Dataset | None = None) -> SyntheticSet | None:
        """The set of a run, in FOLDER/runs/NAME; resumed where it was interrupted, None if it fails.

        Args:
          name: As for `cell`.
          config: Of the run.
          dataset: What is condensed, where it is not the data set of the study.
        """
        return self.condense_together({name: config}, dataset)[name]

    def condense_together(
        self, configs: Mapping[str, Config], dataset: Dataset | None = None
    ) -> dict[str, SyntheticSet | None]:
        """The same for runs, by their names, that differ only in their seeds: what is missing is one program."""
        folders = {name: self.folder / "runs" / name for name in configs}
        resolved = {
            name: experiment.resolve(dataclasses.replace(config, workdir=folders[name]))
            for name, config in configs.items()
        }
        missing = [name for name in configs if not self._is_made(name, resolved[name])]
        at_once = any(resolved[name].method.iterations == 0 for name in missing)
        for group in [[name] for name in missing] if at_once else [missing] * bool(missing):
            cells = [f"{name}/condense" for name in group]
            self._measure(cells, functools.partial(self._condense, [resolved[name] for name in group], dataset))
        return {
            name: SyntheticSet.load(folders[name] / "synthetic.npz") if self._is_made(name, config) else None
            for name, config in resolved.items()
        }

    def _is_made(self, name: str, config: Config) -> bool:
        """Whether the set is there, made with this configuration."""
        assert config.workdir is not None
        return (
            _read(self._path(f"{name}/condense")) is not None
            and synthetic_set.is_readable(config.workdir / "synthetic.npz")
            and changes(config.workdir, config) == []
        )

    def _condense(self, configs: Sequence[Config], dataset: Dataset | None) -> list[dict[str, Any] | Exception]:
        results: dict[int, dict[str, Any] | Exception] = {}
        with contextlib.ExitStack() as stack:
            opened = {}
            for i, config in enumerate(configs):
                try:
                    opened[i] = stack.enter_context(Workdir(config))
                except UserError as error:  # a folder that is damaged, or of other settings
                    results[i] = error
            chosen = [configs[i] for i in opened]
            made = loop.run(chosen, dataset or self.dataset, list(opened.values())) if opened else []
        for i, result in zip(opened, made, strict=True):
            failed = isinstance(result, NonFiniteLoss)
            results[i] = result if failed else {"condense_seconds": result.clock.condense + result.pretrain}
        return [results[i] for i in range(len(configs))]

    def _path(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.json"

    def finish(self, results: dict[str, Any], table: str) -> None:
        """Prints the table, writes it and the results, and raises a `UserError` where something failed."""
        cells = [_read(path) for path in (self.folder / "cells").rglob("*.json")]
        seconds = sum(cell["seconds"] for cell in cells if cell is not None)
        about = {"command": shlex.join(self._command), **self._describe()}
        about["config"] = {k: v for k, v in about["config"].items() if k != "data"}  # its paths say nothing elsewhere
        files.write_json(self.folder / "results.json", {**results, "seconds": seconds, "about": about})
        files.write_bytes(self.folder / "table.md", f"{table}\n".encode())
        print(f"\n{table}\n\nfiles: {self.folder}/")
        if self.failed:
            raise UserError(f"{len(self.failed)} failed: {', '.join(self.failed)}; the same command tries them again")


@contextlib.contextmanager
def opened(
    kind: type[C], arguments: Sequence[str], prog: str, description: str, given: Sequence[str] | None = None
) -> Iterator[Study[C]]:
    """Parses the flags of a study and claims its folder, which belongs to one configuration.

    Args:
      kind: A `Config` with further fields: what the study varies. These may differ from start to start.
      arguments: Of the command line; `--config FILE` names the experiment that all runs start from.
      prog: The command, for --help.
      description: Its docstring.
      given: The command line as results are to show it, where `arguments` are a part of it.
    """
    compilation.use_cache()
    parsed, default = experiment.parse(kind, list(arguments), prog, description)
    backend.split_cpu(parsed.distributed)
    if default.workdir is not None and parsed.workdir == default.workdir:
        name = prog.rpartition(".")[2]
        parsed = dataclasses.replace(parsed, workdir=default.workdir.with_name(f"{default.workdir.name}_{name}"))
    if parsed.runs != 1 and "runs" not in kind.__annotations__:
        raise UserError("--runs is for dmjax.condense and dmjax.compare; a study makes one set of each")
    parsed = experiment.settled(parsed, default)
    varied = experiment.undecided(experiment.resolve(parsed), parsed)
    command = [*prog.split(), *(arguments if given is None else given)]
    with Workdir(as_config(varied), study=True) as workdir:
        _check_kind(workdir.path / "study.json", prog.split()[2])
        yield Study(varied, parsed, default, load_dataset(varied.data, varied.progress), workdir, command)


def as_config(varied: Config) -> Config:
    """The configuration of a run, without what a study adds."""
    shared = {field.name: getattr(varied, field.name) for field in dataclasses.fields(Config)}
    return dataclasses.replace(Config(**shared), runs=1)


def _check_kind(path: Path, module: str) -> None:
    """Raises a `UserError` for the folder of another study."""
    stored = files.read_json(path)
    if stored not in (None, module):
        raise UserError(f"{path.parent} belongs to {stored}; choose another --workdir")


def _read(path: Path) -> dict[str, Any] | None:
    """A measurement; None where there is none, or none that can be read."""
    try:
        stored = files.read_json(path)
    except UserError:
        return None
    return stored if isinstance(stored, dict) and {"seconds", "compile_seconds"} <= set(stored) else None


def _brief(result: dict[str, Any]) -> str:
    accuracy = f"{percent(result)} %, " if "mean" in result else ""
    return f"{accuracy}{result['seconds']:.1f} s, of which {result['compile_seconds']:.1f} s compiling"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(accuracy: dict[str, Any] | None) -> str:
    """Mean and standard deviation of a measured accuracy, for a table."""
    return "failed" if accuracy is None else f"{100 * accuracy['mean']:.1f} +- {100 * accuracy['std']:.1f}"
