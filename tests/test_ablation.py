"""What gives what: two rows of the study on small real data, and what it says of wrong rows."""

import importlib

import pytest
from conftest import ROOT
from test_study import results_of, size_of

from dmjax.config import Config
from dmjax.methods.distribution import DM

FLAGS = (
    *("--config", "experiments/tiny.py", "--runs", "1", "--batch-real", "8", "--chunk", "5", "--images-every", "0"),
    *("--network.width", "4", "--network.depth", "1", "--progress", "false"),
    *("--pretrained.networks", "1", "--pretrained.epochs", "1"),
    *("--evaluation.networks", "1", "--evaluation.epochs", "2", "--evaluation.whole-dataset", "false"),
)


@pytest.fixture
def ablation(monkeypatch):
    """The study, in the folder of the repository."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("experiments.ablation")


def run(ablation, *arguments):
    return ablation.main([*FLAGS, *map(str, arguments)])


def test_two_rows_and_a_second_start(ablation, monkeypatch, tmp_path, capsys):
    """Random real images of both factors beside them; the time for networks is a part of the row's.

    An iteration is said to take 20 seconds, so that there are few, whatever else the machine does.
    """
    folder, pilot, seconds = tmp_path / "ablation", ablation._pilot, []

    def slow(*arguments):
        measured = pilot(*arguments)
        seconds.append(measured["seconds_per_iteration"])
        return {**measured, "seconds_per_iteration": 20.0}

    monkeypatch.setattr(ablation, "_pilot", slow)
    flags = (ablation, "--workdir", folder, "--seconds", 250, "--rows", "dm", "pool", "dm")
    assert run(*flags) == 0
    assert len(seconds) == 2
    assert 0 < min(seconds) <= max(seconds) < 20
    rows = results_of(folder)["rows"]
    assert [(row["row"], row["factor"]) for row in rows] == [("random", 1), ("random", 2), ("dm", 1), ("pool", 2)]
    assert all(0 < row["accuracy"]["mean"] < 1 and len(row["accuracy"]["values"]) == 1 for row in rows)
    assert [row["about"] for row in rows[2:]] == ["as published", "networks along their training"]
    assert rows[2]["pretrain_seconds"] == 0
    assert rows[3]["pretrain_seconds"] > 0
    assert [row["iterations"] for row in rows[2:]] == [12, int((250 - rows[3]["pretrain_seconds"]) / 20)]
    assert all(row["condense_seconds"] > 0 for row in rows[2:])
    table = (folder / "table.md").read_text()
    header, _, *lines = table.splitlines()
    assert header == "| row | idea | factor | accuracy (%) | iterations | seconds | and for networks |"
    assert [line.split(" | ")[0] for line in lines] == ["| random", "| random", "| dm", "| pool"]
    assert f"| {rows[3]['iterations']} |" in lines[3]
    assert min(size_of(folder / "ablation.png")) > 100
    made = [(folder / "runs" / name / "run_0" / "synthetic.npz").read_bytes() for name in ("dm", "pool")]
    cells = {path: path.stat().st_mtime_ns for path in folder.rglob("cells/**/*.json")}
    assert len(cells) == 8  # random of two factors; a pilot, a set and its accuracy of two rows
    assert capsys.readouterr().out.count(" s compiling") == 8

    assert run(*flags) == 0
    assert " s compiling" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("cells/**/*.json")} == cells
    assert [(folder / "runs" / name / "run_0" / "synthetic.npz").read_bytes() for name in ("dm", "pool")] == made
    assert len(seconds) == 2
    assert results_of(folder)["rows"] == rows
    assert (folder / "table.md").read_text() == table


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rows", "dm", "pol"), "error: rows: there is no 'pol'; did you mean 'pool'"),
        (("--rows", "whole"), "error: this method makes no set to study"),
        (("--rows",), "error: rows: give at least one row after --rows, or leave it out for all"),
        (("--rows", "factor 4", "--ipc", 20), "error: 320 images of each class are needed to fill 20 with 16 each"),
        (("--rows", "attention"), "and the network has 1"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(ablation, tmp_path, capsys, flags, message):
    assert run(ablation, "--workdir", tmp_path / "ablation", *flags) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert message in error
    assert not (tmp_path / "ablation").exists()


def test_a_row_may_be_a_method_with_its_own_settings(ablation):
    config = ablation.config_of(Config(method=DM(batch_real=8)), "tgdd")
    assert (config.method.name, config.method.batch_real, config.method.factor) == ("tgdd", 8, 2)
    assert config.method.pixels


def test_a_row_whose_networks_take_all_the_time_is_left_out(ablation, tmp_path, capsys):
    assert run(ablation, "--workdir", tmp_path / "ablation", "--seconds", 1e-6, "--rows", "pool") == 0
    assert [row["row"] for row in results_of(tmp_path / "ablation")["rows"]] == ["random"]
    assert capsys.readouterr().err.startswith("pool: left out, its networks alone take ")
    assert not (tmp_path / "ablation" / "runs" / "pool").exists()
