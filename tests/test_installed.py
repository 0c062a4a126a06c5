"""The package as it is installed: the command, and the experiments by their names."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import dmjax
from dmjax import __main__ as command
from dmjax import load_config


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Commands:"),
        (["--help"], 0, "Commands:"),
        (["--version"], 0, f"dmjax {dmjax.__version__}\n"),
        (["condens"], 2, "there are condense, evaluate"),
    ],
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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the sdist, and of the wheel that was built of it and of nothing else."""
    pytest.importorskip("build", reason="needs build: pip install -r tests/requirements.txt")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"  # building leaves files behind
    left_out = (".git", ".*cache", "__pycache__", "*venv*", "runs", "site", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out), symlinks=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "dist"


def test_what_is_uploaded_is_described_well(built):
    pytest.importorskip("twine", reason="needs twine: pip install -r tests/requirements.txt")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(built.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sdist_is_small_and_its_core_tests_pass(built, tmp_path):
    """It holds code, tests, texts and the released sets, no other pictures and no measurements."""
    [sdist] = built.glob("*.tar.gz")
    assert sdist.stat().st_size < 3e6  # two of which are the released sets
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path, filter="data")
    members = [member for member in members if "/dmjax/released/" not in member.name]
    assert max(member.size for member in members) < 100_000
    names = {member.name.partition("/")[2] for member in members}
    assert not [name for name in names if name.endswith((".png", ".json", ".npz", ".pyc"))]
    wanted = {p.relative_to(ROOT).as_posix() for f in ("dmjax", "tests") for p in (ROOT / f).rglob("*.py")}
    wanted |= {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml"}
    wanted |= {"requirements.txt", "tests/requirements.txt", "docs/index.md", "docs/methods/dm.md", "mkdocs.yml"}
    assert wanted <= names
    [folder] = tmp_path.glob("dmjax-*")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    core = ["tests/test_config.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *core],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout


def test_the_wheel_has_all_of_it_and_runs(built, tmp_path):
    """In an environment of its own, which takes only the dependencies from here."""
    [wheel] = built.glob("dmjax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"dmjax/experiments/tiny.py", "dmjax/benchmark/h100.txtpb", "dmjax/__main__.py"} <= set(names)
    assert {"dmjax/reporting/page.css", "dmjax/reporting/page.js"} <= set(names)
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "dmjax").rglob("*.py")}
    assert modules <= set(names)
    others = [name for name in names if not name.startswith("dmjax/released/")]
    assert len(names) > len(others)
    assert not [name for name in others if name.startswith(("tests/", "docs/")) or name.endswith((".png", ".json"))]
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
        [str(python), "-c", "import dmjax; print(dmjax.__file__, len(dmjax.load_released('mnist-ipc1').images))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert str(site) in where.stdout
    assert where.stdout.split()[-1] == "10"
