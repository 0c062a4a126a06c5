"""The package as it is installed: the command, and the experiments by their names."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from dmjax import __main__ as command
from dmjax import load_config


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [([], 2, "Commands:"), (["--help"], 0, "Commands:"), (["condens"], 2, "there are condense, evaluate")],
)
def test_a_wrong_command_is_one_line(capsys, arguments, status, message):
    assert command.main(arguments) == status
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


def test_an_experiment_has_a_name_anywhere(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny") == load_config(ROOT / "experiments" / "tiny.py")
    assert command.main(["condense", "--config", "tinny"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_wheel_has_all_of_it_and_runs(tmp_path):
    """In an environment of its own, which takes only the dependencies from here."""
    source = tmp_path / "source"  # building leaves files behind
    shutil.copytree(ROOT / "dmjax", source / "dmjax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "experiments", source / "experiments", ignore=shutil.ignore_patterns("results", "__pycache__")
    )
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True, timeout=300)
    [wheel] = tmp_path.glob("dmjax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"dmjax/experiments/tiny.py", "dmjax/benchmark/h100.txtpb", "dmjax/__main__.py"} <= set(names)
    assert {"dmjax/reporting/page.css", "dmjax/reporting/page.js"} <= set(names)
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "dmjax").rglob("*.py")}
    assert modules <= set(names)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        capture_output=True,
    )
    (site / "dependencies.pth").write_text(str(Path(importlib.metadata.distribution("jax").locate_file(""))))
    short = ["--iterations", "2", "--batch-real", "4", "--network.width", "4", "--evaluation.networks", "1"]
    short += ["--evaluation.epochs", "2", "--evaluation.whole-dataset", "false", "--workdir", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-m", "dmjax", "condense", "--config", "tiny", *short],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "synthetic.npz").exists()
    assert (tmp_path / "run" / "report.html").exists()
    where = subprocess.run(
        [str(python), "-c", "import dmjax; print(dmjax.__file__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert str(site) in where.stdout
