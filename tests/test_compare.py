"""All methods in one table: what is kept, what fails, what is printed."""

import dataclasses
import json
import math

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dmjax import DM, compare, condense, methods
from dmjax.common.errors import UserError
from dmjax.evaluation.scores import scores
from dmjax.methods import coreset
from dmjax.run import comparison, papers, study
from dmjax.run.workdir import Workdir
from dmjax.settings import experiment, fields

SMALL = (
    *("--config", str(ROOT / "experiments" / "tiny.py"), "--network.width", "4", "--network.depth", "2"),
    *("--images-every", "0"),
    *("--evaluation.networks", "2", "--evaluation.epochs", "2", "--evaluation.whole-epochs", "1"),
    *("--pretrained.networks", "1", "--pretrained.epochs", "1", "--pretrained.states", "1", "--progress", "false"),
)
EVERY_KIND = ("random", "herding", "dm", "idm", "blend", "dc", "dd", "ld", "kip", "whole")
ALL = (*(name for name, cls in methods.built_in().items() if cls.makes_set), "whole")


def run(*arguments):
    """Compares; what only iterative methods have is given where one of them is compared."""
    flags = [*SMALL, *map(str, arguments)]
    chosen = flags if "--methods" in flags else methods.COMPARED
    iterations = {name: 4 for name, cls in methods.built_in().items() if cls().iterations}
    iterations |= {"dc": 1, "dsa": 1, "dd": 3, "ld": 3, "kip": 3}
    if "--iterations-of" not in arguments:
        counts = [text for name, n in iterations.items() if name in chosen for text in (name, str(n))]
        flags += ["--iterations-of", *counts] if counts else []
    if {"dm", "dc", "dsa"} & set(chosen):
        flags += ["--batch-real", "8"]
    return compare.main(flags)


def test_figures_that_were_measured_with_other_networks_say_so():
    about = {"settings": [], "published": 79.5, "ipc": 10, "mean": 0.7, "std": 0.1, "seconds": 1.0}
    dd = {**about, "method": "dd", "published_note": "LeNet", "own_evaluation": {"mean": 0.8, "std": 0.05}}
    table = comparison.table([dd, {**about, "method": "dm", "published_note": None}])
    assert "| dd | 10 | 70.0 +- 10.0 | 80.0 +- 5.0 | 79.5 |" in table
    assert "| dm | 10 | 70.0 +- 10.0 | - | 79.5 |" in table
    assert "published for dd: LeNet" in table
    assert "published for dm" not in table


def test_scores_by_hand():
    found = scores(condensed=0.5, random=0.3, whole=0.9)
    assert found.hard_label_recovery == pytest.approx(0.4)
    assert found.improvement_over_random == pytest.approx(0.2)
    assert found.label_robust == pytest.approx((math.exp(-0.1) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert scores(1.0, 0.0, 0.0).label_robust == pytest.approx(1)
    assert scores(0.5, 0.25, None) == (None, 0.25, None, None)  # what was not measured is not said


def test_the_augmentation_robust_score_by_hand():
    """DD-Ranking: beta is half the improvement with augmentation and half that without."""
    found = scores(condensed=0.5, random=0.3, whole=None, plain=(0.4, 0.35))
    beta = 0.5 * 0.2 + 0.5 * 0.05
    assert found.augmentation_robust == pytest.approx((math.exp(beta) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert found.label_robust is None
    assert scores(0.5, 0.3, 0.9, plain=(0.4, None)).augmentation_robust is None
    assert scores(1.0, 0.0, None, plain=(1.0, 0.0)).augmentation_robust == pytest.approx(1)


def test_published_figures():
    assert papers.published(DM(), "cifar10", 50) == 63.0
    assert papers.published(methods.create("whole"), "cifar10", None) == 84.8
    assert papers.published(DM(), "cifar10", 20) is None
    assert papers.published(DM(), "digits", 1) is None


def test_published_figures_are_marked_where_the_settings_are_others():
    row = {"method": "dm", "ipc": 10, "mean": 0.5, "std": 0.1, "seconds": 1.0, "published": 48.9, "settings": []}
    row["published_note"] = None
    assert "| dm | 10 | 50.0 +- 10.0 | 48.9 | 1.0 | - | - | - |" in comparison.table([row])
    table = comparison.table(
        [{**row, "settings": ["epochs 2", "lr 1"]}, {**row, "method": "dsa", "settings": ["epochs 2"]}]
    )
    assert "| 48.9\\* |" in table
    assert table.endswith("\\* not the papers' settings: epochs 2\n\n\\* dm 10: lr 1")


@pytest.mark.parametrize("chosen", [EVERY_KIND, pytest.param(ALL, marks=pytest.mark.slow)], ids=["kinds", "all"])
def test_methods_in_one_table_and_a_second_start(tmp_path, capsys, chosen):
    flags = ("--workdir", tmp_path / "all", "--methods", *chosen, "--ipc", 2, "--runs", 1)
    assert run(*flags, "--json", tmp_path / "rows.json") == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == [*chosen, "random"]  # for the sets of a factor
    assert [row["factor"] for row in rows if row["method"] == "random"] == [1, 2]
    for row in rows:
        assert {"method", "ipc", "mean", "std", "runs", "seconds"} <= set(row)
        assert len(row["values"]) == 2  # runs x networks
        assert (row["ipc"] is None) == (row["method"] == "whole") == ("label_robust" not in row)
    own = {row["method"]: row["own_evaluation"]["name"] for row in rows if "own_evaluation" in row}
    assert own == {name: cls.own_evaluation for name, cls in methods.built_in().items() if cls.own_evaluation}
    with Image.open(tmp_path / "all" / "comparison.png") as picture:
        picture.load()
    out = capsys.readouterr().out
    assert "| whole | all | " in out
    assert (
        "| method | images per class | protocol | stored pixels (factor) | accuracy (%) | own evaluation (%) |" in out
    )
    assert "Protocol dm, soft labels stored with the images:" in out
    settings = {row["method"]: row["settings"] for row in rows[:-1]}
    evaluation = ["evaluation.networks 2", "evaluation.epochs 2", "evaluation.batch_size 64"]
    assert settings["random"] == ["network.width 4", "network.depth 2", *evaluation, "runs 1"]
    assert settings["dm"] == [*settings["random"][:-1], "iterations 4", "batch_real 8", "runs 1"]
    assert "pretrained.epochs 1" in settings["herding"]
    whole = ["evaluation.networks 2", "evaluation.batch_size 64", "evaluation.whole_epochs 1", "runs 1"]
    assert settings["whole"][-4:] == whole
    sets = {m: (tmp_path / f"all/runs/{m}/ipc_2/run_0/synthetic.npz").exists() for m in chosen[:-1]}
    assert all(sets.values())
    path = tmp_path / "all" / "cells" / "dm" / "ipc_2" / "run_0" / "accuracy.json"
    other_set = {**json.loads(path.read_text()), "mean": 0.99, "values": [0.99, 0.99], "digest": "another"}
    path.write_text(json.dumps(other_set))
    assert not list((tmp_path / "all" / "cells").rglob("*.networks.json"))
    assert run(*flags, "--json", tmp_path / "again.json") == 0
    assert capsys.readouterr().out.count(" s compiling") == 1
    again = json.loads((tmp_path / "again.json").read_text())["rows"]
    assert [row["values"] for row in again] == [row["values"] for row in rows]


def test_a_cell_that_fails_stops_no_other(tmp_path, capsys, monkeypatch):
    choose = coreset.Random.choose

    def fail(self, problem, dataset, seed):
        if seed == 1:
            raise RuntimeError("out of memory")
        return choose(self, problem, dataset, seed)

    monkeypatch.setattr(coreset.Random, "choose", fail)
    flags = ("--workdir", tmp_path / "all", "--methods", "random", "--ipc", 1, "--runs", 3)
    assert run(*flags, "--json", tmp_path / "rows.json") == 2
    assert "1 failed: random/ipc_1/run_1/condense" in capsys.readouterr().err
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["runs"] == 2
    monkeypatch.setattr(coreset.Random, "choose", choose)
    assert run(*flags, "--json", tmp_path / "rows.json") == 0
    row = json.loads((tmp_path / "rows.json").read_text())["rows"][0]
    assert row["runs"] == 3
    assert len(row["values"]) == 6  # runs x networks


def test_the_runs_of_a_cell_are_those_of_their_seeds_and_other_settings_are_not_mixed(tmp_path, capsys):
    flags = ("--workdir", tmp_path / "all", "--methods", "dm", "--ipc", 1, 2, "--runs", 2, "--json", tmp_path / "j")
    assert run(*flags, "--iterations-of", "dm-ipc1", 2, "dm", 4) == 0
    configs = [
        json.loads((tmp_path / f"all/runs/dm/ipc_{ipc}/run_{seed}/config.json").read_text())["config"]
        for ipc in (1, 2)
        for seed in (0, 1)
    ]
    assert [(c["ipc"], c["seed"], c["method"]["iterations"]) for c in configs] == [
        (1, 0, 2),
        (1, 1, 2),
        (2, 0, 4),
        (2, 1, 4),
    ]
    capsys.readouterr()
    before = (tmp_path / "all" / "table.md").read_bytes()
    assert run(*flags, "--iterations-of", "dm-ipc1", 2, "dm", 6) == 2
    error = capsys.readouterr().err
    assert "ipc_2/run_0 has other settings (iterations: 4 -> 6)" in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "all" / "table.md").read_bytes() == before
    assert len(json.loads((tmp_path / "j").read_text())["rows"]) == 2
    (tmp_path / "all/runs/dm/ipc_2/run_0/config.json").write_text("{")  # one that is damaged stops no other
    (tmp_path / "all/cells/dm/ipc_2/run_1/condense.json").unlink()
    assert run(*flags, "--iterations-of", "dm-ipc1", 2, "dm", 4) == 2
    assert "1 failed: dm/ipc_2/run_0/condense" in capsys.readouterr().err
    assert [row["runs"] for row in json.loads((tmp_path / "j").read_text())["rows"]] == [2, 1]


def test_runs_and_studies_do_not_share_a_folder(tmp_path, capsys):
    small = [*map(str, SMALL[:6]), "--method", "random", "--ipc", "1", "--progress", "false"]
    small += ["--evaluation.networks", "1", "--evaluation.epochs", "1", "--evaluation.random-real", "false"]
    small += ["--evaluation.whole-dataset", "false"]
    assert condense.main([*small, "--workdir", str(tmp_path / "run")]) == 0
    assert run("--workdir", tmp_path / "study", "--methods", "random", "--ipc", 1, "--runs", 1) == 0
    capsys.readouterr()
    for command, flags, message in (
        (condense.main, [*small, "--workdir", str(tmp_path / "study")], "configuration"),
        (condense.main, [*small, "--workdir", str(tmp_path / "run"), "--runs", "2"], "holds a run or a study"),
        (compare.main, [*small[:6], "--workdir", str(tmp_path / "run"), "--methods", "random"], "configuration"),
    ):
        assert command(flags) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    config = experiment.resolve(condense.experiment.load_config(SMALL[1]))
    config = dataclasses.replace(config, workdir=tmp_path / "study")
    (tmp_path / "study" / "config.json").write_text(json.dumps({"config": fields.to_dict(config)}))
    with pytest.raises(UserError, match="holds a study, not a run"):
        Workdir(config)
    (tmp_path / "study" / "study.json").unlink()
    with pytest.raises(UserError, match="holds a run, not a study"):
        Workdir(config, study=True)


def test_each_method_has_its_own_defaults(tmp_path):
    (tmp_path / "plain.py").write_text("import dmjax\n\ndef get_config():\n    return dmjax.Config(progress=False)\n")
    flags = ["--config", str(tmp_path / "plain.py"), "--workdir", str(tmp_path / "all")]
    flags += ["--learning-rates-of", "dm-ipc1", "7", "dsa", "3"]
    flags += ["--batch-real", "32", "--gradient.outer", "4"]
    named, rest = experiment.parse_methods(["random", "dm", "dc", "dsa"], flags)
    with study.opened(compare.CompareConfig, rest, "python -m dmjax.compare", "") as opened:
        assert opened.varied.runs == 5
        compared = compare.Comparison(opened, named)
        runs = {name: experiment.resolve(compared.config(name, 10, 3)) for name in ("dm", "dc", "dsa")}
        small = compared.config("dm", 1)
    assert {c.seed for c in runs.values()} == {3}
    assert [c.method.batch_real for c in runs.values()] == [32, 32, 32]  # a flag is for all that have it
    assert runs["dsa"].method.gradient.outer == 4
    found = {name: (c.method.iterations, c.method.init, c.chunk, c.checkpoint.every) for name, c in runs.items()}
    assert found == {
        "dm": (20_000, "real", 10, 500),
        "dc": (1000, "noise", 1, 10),
        "dsa": (1000, "real", 1, 10),
    }
    assert [c.method.optimizer.learning_rate for c in (*runs.values(), small)] == [1, 0.1, 3, 7]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--methods", "hearding"), "unknown method 'hearding'"),
        (("--methods",), "takes at least one"),
        (("--methods", "herding", "--ipc", 1000), "leave out herding"),
        (
            ("--methods", "dm", "--iterations-of", "dmm", 3),
            "'dmm' is not among the methods that are compared; did you mean",
        ),
        (("--methods", "dm", "--iterations-of", "dsa", 3), "'dsa' is not among the methods"),
        (("--methods", "dm", "--iterations-of", "dmm-ipc1", 3), "'dmm' is not among the methods"),
        (("--methods", "random", "--iterations-of", "random", 3), "random has no iterations"),
        (("--methods", "dm", "--gradient.outer", 3), "--gradient.outer"),
        (("--learning-rates-of", "dm", 0), "learning_rate must be above 0"),
        (("--iterations-of", "dm-ipc7", 3, "--ipc", 1), "--ipc does not name"),
        (("--runs", 0), "runs must be between 1 and 1000"),
        (("--ipc", "ten"), "ten"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(tmp_path, capsys, flags, message):
    assert run("--workdir", tmp_path / "all", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "all").exists()


def one_line(run, capsys, *arguments):
    assert run([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_compare_groups_what_can_be_compared(tmp_path, capsys):
    flags = ["--config", ROOT / "experiments" / "tiny.py", "--network.width", 4, "--network.depth", 1]
    flags += ["--images-every", 0, "--evaluation.networks", 1, "--evaluation.epochs", 2]
    flags += ["--progress", "false", "--runs", 1]
    flags += ["--workdir", tmp_path / "all", "--json", tmp_path / "rows.json"]
    flags += ["--methods", "random", "whole", "--ipc", 1, "--evaluation.whole-epochs", 1]
    flags += ["--protocols", "dm", "idc", "--robustness", "true"]
    assert compare.main([str(flag) for flag in flags]) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["method"], row["protocol"]) for row in rows] == [
        *(("random", "dm"), ("random", "idc"), ("whole", "dm"), ("whole", "idc")),
    ]
    assert "Protocol dm, hard labels:" in out
    assert "Protocol idc, hard labels:" in out
    assert "| random | 1 | idc | 64 (1) |" in out
    assert "ARS: IOR with and without augmentation" in out
    for row in rows[:2]:
        assert row["improvement_over_random"] == 0
        assert row["augmentation_robust"] == pytest.approx((1 - np.exp(-1)) / (np.e - np.exp(-1)))
        assert row["hard_label_recovery"] == pytest.approx(rows[2 + rows.index(row)]["mean"] - row["mean"])
    assert rows[0]["values"] != rows[1]["values"]
    assert "evaluation.protocol idc" in rows[1]["settings"]
    assert not any("protocol" in setting for setting in rows[0]["settings"])


PACKED = """
import dataclasses
from typing import ClassVar
import numpy as np
from dmjax.data.factor import pack
from dmjax.methods.base import Condensed, Method


@dataclasses.dataclass(frozen=True)
class Packed(Method):
    name: ClassVar[str] = "packed"
    factor: int = 2

    def start(self, problem, seed):
        images = problem.dataset.images[:, : problem.config.ipc * self.factor**2]
        return np.stack([pack(of_class, self.factor) for of_class in images])

    def finish(self, problem, state):
        return Condensed(state, factor=self.factor)
"""


def test_random_images_stand_beside_sets_of_every_factor(tmp_path, capsys, monkeypatch):
    (tmp_path / "packed_sets.py").write_text(PACKED)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--config", ROOT / "experiments" / "tiny.py", "--network.width", 4, "--network.depth", 1]
    flags += ["--images-every", 0, "--evaluation.networks", 1, "--evaluation.epochs", 2]
    flags += ["--progress", "false", "--runs", 1, "--workdir", tmp_path / "all", "--json", tmp_path / "rows.json"]
    chosen = [*flags, "--methods", "random", "packed_sets:Packed"]
    assert compare.main([str(flag) for flag in (*chosen, "--ipc", 1)]) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    found = [(row["method"], row["factor"], row["pixels"]) for row in rows]
    assert found == [("random", 1, 64), ("packed_sets:Packed", 2, 64), ("random", 2, 64)]
    plain, packed, beside = rows
    assert packed["improvement_over_random"] == pytest.approx(packed["mean"] - beside["mean"])
    assert (plain["improvement_over_random"], beside["improvement_over_random"]) == (0, 0)
    assert "| random | 1 | dm | 64 (2) |" in out
    error = one_line(compare.main, capsys, *chosen, "--ipc", 60)
    assert "lower the largest of --ipc or the factor of packed_sets:Packed, or leave out random" in error
