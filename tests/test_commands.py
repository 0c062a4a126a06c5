"""Every command that the README and the documentation show runs, shortened, or is listed with what runs it instead.

A command is run as it stands on its page, but with two iterations, tiny networks and one epoch, in an empty folder, and
with a few random images in place of data that are not here. `docs/commands.md` lists the others.
"""

import datetime
import importlib
import importlib.util
import re
import runpy
import shlex
import sys

import commands
import jax
import numpy as np
import pytest
from conftest import ROOT

from dmjax import __main__ as program
from dmjax import methods

EVERY, LISTED = commands.every(), commands.listed()
MODULES = {f"python -m dmjax.{name}": module for name, module in program.COMMANDS.items()}
SIDES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
BRIEF = {
    "iterations": "2",
    "batch-real": "4",
    "batch-target": "40",
    "images-every": "0",
    "gradient.inner": "1",
    "queue.size": "3",
    "queue.steps": "1",
    "queue.batch-size": "20",
    "match.frequencies": "16",
    "network.width": "4",
    "network.depth": "2",
    "pretrained.networks": "1",
    "pretrained.epochs": "1",
    "pretrained.states": "2",
    "evaluation.networks": "1",
    "evaluation.epochs": "1",
    "evaluation.whole-epochs": "1",
    "progress": "false",
}
"""What makes a command short, by its flags; a command is given those that it has."""

_SHORTER = {
    "evaluate": ("evaluation.networks", "evaluation.epochs", "progress"),
    "compare": (
        *("network.width", "network.depth", "pretrained.networks", "pretrained.epochs", "pretrained.states"),
        *("evaluation.networks", "evaluation.epochs", "evaluation.whole-epochs", "images-every", "progress"),
    ),
    "pretrain": (
        *("network.width", "network.depth", "progress"),
        *("pretrained.networks", "pretrained.epochs", "pretrained.states"),
    ),
    "benchmark": ("network.width", "network.depth", "batch-real"),
}
"""The flags that each command has, but for `condense`, which has those of the method too."""


def of_module(command: str) -> str | None:
    """The command of the package that this is, or None."""
    words = shlex.split(command)
    words = words[next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), 0) :]
    if words[:1] == ["dmjax"] and len(words) > 1:
        return words[1]
    if words[:2] == ["python", "-m"] and words[2].startswith("dmjax.") and words[2][6:] in program.COMMANDS:
        return words[2][6:]
    return None


RUN = [command for command in EVERY if of_module(command) and command not in LISTED]
SCRIPTS = [command for command in EVERY if re.fullmatch(r"python \w+\.py", command) and command not in LISTED]


def test_every_command_is_run_or_listed():
    neither = {command: pages for command, pages in EVERY.items() if command not in (*RUN, *SCRIPTS, *LISTED)}
    assert not neither, "run them in tests/test_commands.py, or list them in docs/commands.md with what runs them"


def test_the_list_has_only_commands_that_are_shown_and_says_who_runs_them():
    for command, row in LISTED.items():
        assert command in EVERY, f"no page shows {command}"
        runs, _, when = (cell.strip() for cell in row.rpartition("|"))
        assert runs, command
        if when not in ("every change", "never"):
            assert datetime.date.fromisoformat(when) <= datetime.date.today(), command
        for test in re.findall(r"tests/test_\w+\.py", runs):
            assert (ROOT / test).exists(), test


@pytest.fixture
def lenient():
    """JAX as a reader has it, whose own code need not be strict about types; in all threads."""
    kept = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", kept[0])
    jax.config.update("jax_numpy_rank_promotion", kept[1])


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=[pytest.mark.slow] if "--pool" in one else []) for one in RUN]
)
def test_a_command_runs(command, lenient, tmp_path, monkeypatch, capsys):
    _prepare(tmp_path, monkeypatch)
    if of_module(command) == "report" or "--synthetic" in command:
        _run(_made_by(command), tmp_path)
    _run(command, tmp_path)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_file_that_is_shown_runs(command, lenient, tmp_path, monkeypatch, capsys):
    _prepare(tmp_path, monkeypatch)
    name = command.split()[1]
    path = tmp_path / name
    text = path.read_text()
    path.write_text(re.sub(r"(iterations|networks|epochs)=\d+", r"\1=1", text))
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_python_of_the_readme_runs(lenient, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [text] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "readme.py").write_text(re.sub(r"(iterations|networks|epochs)=\d+", r"\1=1", text))
    runpy.run_path(str(tmp_path / "readme.py"), run_name="__main__")
    assert "+-" in capsys.readouterr().out


def test_the_python_of_its_page_runs(torch, lenient, tmp_path, monkeypatch, capsys):
    """Block after block, as in a notebook; those of a library that is not here are left out."""
    _prepare(tmp_path, monkeypatch)
    _run("python -m dmjax.condense --config experiments/tiny.py", tmp_path)
    namespace: dict[str, object] = {}
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)):
        wanted = re.findall(r"^import (torch|datasets|tensorflow_datasets)", block, re.MULTILINE)
        if not all(map(importlib.util.find_spec, wanted)):
            continue
        formats = [{"datasets": "huggingface", "tensorflow_datasets": "tfds"}.get(name, name) for name in wanted]
        for to in formats:
            _run(f"python -m dmjax.export runs/tiny/synthetic.npz --to {to}", tmp_path)
        (tmp_path / f"block_{i}.py").write_text(re.sub(r"(iterations|networks|epochs)=\d+", r"\1=1", block))
        namespace |= runpy.run_path(str(tmp_path / f"block_{i}.py"), init_globals=namespace)
        if formats:
            assert len(namespace["images"]) == len(namespace["labels"]) == 10
    assert capsys.readouterr().out.count("+-") >= 2
    assert (tmp_path / "now.png").exists()


def _run(command: str, folder) -> None:
    name = of_module(command)
    assert name is not None
    given = shlex.split(command)
    given = given[next(i for i, word in enumerate(given) if word in ("dmjax", f"dmjax.{name}")) + 1 :]
    given = given[1:] if given[:1] == [name] else given
    main = importlib.import_module(program.COMMANDS[name]).main
    if "--help" in given:
        with pytest.raises(SystemExit) as left:
            main(given)
        assert left.value.code == 0
        return
    assert main(_shortened(name, given, folder)) == 0, command


def _shortened(name: str, given: list[str], folder) -> list[str]:
    """The words of a command with what makes it short, and with data that are here."""
    flags = list(_SHORTER.get(name, ()))
    if name == "condense":
        own = _flags(methods.find(_value(given, "--method") or "dm"))
        every = {flag for method in methods.built_in().values() for flag in _flags(method)}
        flags = [flag for flag in BRIEF if flag in own or flag not in every]
        given = [*_without(given, "--evaluation.whole-dataset"), "--evaluation.whole-dataset", "false"]
    if name == "evaluate" and "--config" in given and "--pool" not in given:
        flags += ["network.width", "network.depth"]
    if _value(given, "--network.name"):  # another network has no such options
        flags = [flag for flag in flags if flag not in ("network.width", "network.depth")]
    if name == "compare":
        shorter = [m for m in _values(given, "--methods") if "iterations" in _flags(methods.find(m))]
        given = _without(_without(_without(given, "--runs"), "--iterations-of"), "--ipc")
        given = [*given, "--runs", "1", "--ipc", "1", "--iterations-of", *(word for m in shorter for word in (m, "2"))]
    for flag in flags:
        given = [*_without(given, f"--{flag}"), f"--{flag}", BRIEF[flag]]
    if config := re.search(r"experiments/(mnist|cifar10)\.py", " ".join(given)):
        path = _random_images(folder, SIDES[config.group(1)])
        given = _without(_without(given, "--data.source"), "--data.path")
        given = [*given, "--data.source", "npz", "--data.path", str(path)]
    return given


def _flags(method: type) -> set[str]:
    return {field.replace("_", "-") for field in methods.field_names(method)}


def _prepare(folder, monkeypatch) -> None:
    """An empty folder with the experiments, the files that pages show, and a folder of images."""
    from PIL import Image

    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(folder))
    for name in ("my_method", "my_pixels", "my_network", "my_data"):  # of another test's folder
        monkeypatch.delitem(sys.modules, name, raising=False)
    (folder / "experiments").symlink_to(ROOT / "experiments")
    for page in commands.pages():
        for name, text in re.findall(r"```python\n(# (?:my_\w+)\.py)\n(.*?)```", page.read_text(), re.DOTALL):
            (folder / name[2:]).write_text(text)
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            place = folder / "my_images" / split / label
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(place / f"{i}.png")


def _random_images(folder, shape):
    path, rng = folder / "random.npz", np.random.default_rng(0)
    if not path.exists():
        draw = lambda n: (rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10)  # noqa: E731
        (train, labels), (test, test_labels) = draw(480), draw(20)
        np.savez(path, train_images=train, train_labels=labels, test_images=test, test_labels=test_labels)
    return path


def _made_by(command: str) -> str:
    """The command that makes the set which this one reads."""
    words = shlex.split(command)
    folder = words[-1] if of_module(command) == "report" else _value(words, "--synthetic").rpartition("/")[0]
    for other in EVERY:
        words = shlex.split(other) if of_module(other) == "condense" and "--help" not in other else []
        experiment = re.sub(r".*/(\w+)\.py$", r"runs/\1", _value(words, "--config") or "")
        if words and (_value(words, "--workdir") or experiment) == folder:
            return other
    raise AssertionError(f"no command makes the set of {command}")


def _value(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def _values(words: list[str], flag: str) -> list[str]:
    if flag not in words:
        return []
    rest = words[words.index(flag) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))]


def _without(words: list[str], flag: str) -> list[str]:
    """The words without a flag and its values."""
    if flag not in words:
        return list(words)
    start = words.index(flag)
    return words[:start] + words[start + 1 + len(_values(words, flag)) :]
