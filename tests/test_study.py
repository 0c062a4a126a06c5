"""Studies: cells that are kept, failures that stop nothing, and the paper's tables and figures on small real data."""

import dataclasses
import importlib
import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dmjax.common import plots
from dmjax.common.errors import UserError
from dmjax.config import Config
from dmjax.data import synthetic_set
from dmjax.evaluation.accuracy import Accuracy
from dmjax.run import study

SMALL = (
    *("--config", "experiments/tiny.py", "--iterations", "4"),
    *("--chunk", "2", "--images-every", "0", "--checkpoint.every", "2", "--batch-real", "8", "--progress", "false"),
    *("--evaluation.networks", "2", "--evaluation.epochs", "2", "--evaluation.whole-epochs", "1"),
    *("--pretrained.networks", "1", "--pretrained.epochs", "2", "--pretrained.states", "3"),
)


NARROW = ("--network.width", "4", "--network.depth", "1")


def run(name, *arguments):
    sys.path.insert(0, str(ROOT))
    try:
        module = __import__(f"experiments.{name}", fromlist=["main"])
    finally:
        sys.path.pop(0)
    return module.main([*SMALL, *map(str, arguments)])


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def size_of(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def small(tmp_path):
    with study.opened(Config, [*SMALL, "--workdir", str(tmp_path / "study")], "python -m test.small", "") as opened:
        yield opened


def test_a_cell_is_measured_once(small):
    calls = []
    first = small.cell("a/b", lambda: calls.append(1) or {"mean": 0.5, "std": 0.1})
    assert small.cell("a/b", lambda: calls.append(1)) == first
    assert len(calls) == 1
    assert {"mean", "std", "seconds", "compile_seconds"} == set(first)


def test_the_accuracy_under_another_teacher_is_measured_again(small, monkeypatch):
    measured, dataset = [], small.dataset
    monkeypatch.setattr(study, "judge", lambda *a, **k: measured.append(1) or Accuracy.of([0.5]))
    images = np.stack([dataset.images[c, :1] for c in range(dataset.num_classes)])
    synthetic = synthetic_set.from_pixels(images, dataset.mean, dataset.std, dataset.class_names)

    def measure(labels, **pool):
        evaluation = dataclasses.replace(small.config.evaluation, labels=labels)
        pool = dataclasses.replace(small.config.pretrained, **pool)
        before, config = len(measured), dataclasses.replace(small.config, evaluation=evaluation, pretrained=pool)
        assert small.set_accuracy("a", synthetic, config)["mean"] == 0.5
        return len(measured) - before

    assert [measure("stored"), measure("stored", seed=1)] == [1, 0]
    assert [measure("teacher"), measure("teacher"), measure("teacher", seed=1)] == [1, 0, 1]


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(small, capsys):
    def fail():
        raise ValueError("no such thing\nand more")

    assert small.cell("bad", fail) is None
    assert small.cell("good", lambda: {"mean": 1.0, "std": 0.0})["mean"] == 1
    assert capsys.readouterr().err == "bad: failed: ValueError: no such thing\n"
    with pytest.raises(UserError, match="1 failed: bad; the same command tries them again"):
        small.finish({}, "")
    assert small.cell("bad", lambda: {"mean": 1.0, "std": 0.0})["mean"] == 1


def test_cross_architecture_table_heat_map_and_a_second_start(tmp_path, capsys):
    flags = ("--workdir", tmp_path / "cross", "--learn", "MLP", "ConvNetD1W4NN", "--test", "MLP", "ConvNetD1W4BN")
    assert run("cross_architecture", *flags) == 0
    table = results_of(tmp_path / "cross")["learned_and_tested"]
    assert list(table) == ["random real", "MLP", "ConvNetD1W4NN"]
    assert all(set(cells) == {"MLP", "ConvNetD1W4BN"} for cells in table.values())
    assert all(0 < cell["mean"] < 1 and len(cell["values"]) == 2 for row in table.values() for cell in row.values())
    rates = [
        json.loads((tmp_path / "cross" / "runs" / name / "config.json").read_text())["config"]["method"]["optimizer"]
        for name in ("MLP", "ConvNetD1W4NN")
    ]
    assert [rate["learning_rate"] for rate in rates] == [1, 50]  # each network has its own
    assert size_of(tmp_path / "cross" / "heat_map.png")[0] > 100
    printed = capsys.readouterr().out
    assert "| learned on \\ tested on | MLP | ConvNetD1W4BN |" in printed
    (tmp_path / "cross" / "cells" / "MLP" / "ConvNetD1W4BN.json").unlink()
    (tmp_path / "cross" / "runs" / "MLP" / "synthetic.npz").write_bytes(b"damaged")
    assert run("cross_architecture", *flags) == 0
    printed = capsys.readouterr().out
    assert printed.count(" s compiling") == 2  # only what was missing or damaged is made
    assert results_of(tmp_path / "cross")["learned_and_tested"]["MLP"]["ConvNetD1W4BN"]["values"] == pytest.approx(
        table["MLP"]["ConvNetD1W4BN"]["values"]
    )
    assert run("cross_architecture", *flags, "--ipc", 2) == 2
    assert "belongs to another configuration (ipc: 1 -> 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("cross_architecture", ("--learn", "LeNet"), "LeNet needs images of at least 12x12"),
        ("cross_architecture", ("--learn",), "at least one network after --learn"),
        ("cross_architecture", ("--learn", "ConvNetBN", "--class-chunk", 1), "class_chunk cannot be 1 with batch norm"),
        ("cross_architecture", NARROW, "leave out --network"),
        ("larger_sets", ("--sizes", 1000), "ipc 1000 asks for more images than class"),
        ("larger_sets", ("--sizes",), "sizes must be images per class"),
        ("precision", ("--precisions",), "name at least one precision"),
        ("precision", ("--precisions", "float16"), "float16"),
        ("coreset_networks", ("--epochs", 1), "looks at no trained network"),
        ("coreset_networks", ("--epochs", 0), "epochs must be at least 1"),
        ("larger_sets", ("--network.name", "VGG11"), "VGG11 needs images of at least 28x28"),
        ("larger_sets", ("--sizes", 2, "--optimizer.name", "sgdd"), "optax has no optimizer"),
        ("embedding_distributions", ("--network.depth", 9), "too deep"),
        ("embedding_distributions", ("--bounds", 0.5), "rising fractions"),
        ("feature_plot", (), "--sets"),
        ("feature_plot", ("--sets", "none.npz", "--real-images", 0), "at least 1"),
        ("feature_plot", ("--sets", "none.npz"), "no file 'none.npz'"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(tmp_path, capsys, name, flags, message):
    assert run(name, *flags, "--workdir", tmp_path / "study") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "study").exists()


def test_a_folder_belongs_to_one_study(small, tmp_path, capsys):
    small.cell("any", lambda: {"mean": 0.5, "std": 0.1})
    small._workdir.close()
    assert run("cross_architecture", "--workdir", tmp_path / "study") == 2
    assert "belongs to test.small; choose another --workdir" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[]", '{"mean": 0.'])
def test_a_damaged_cell_is_measured_again(small, content):
    first = small.cell("any", lambda: {"mean": 0.5, "std": 0.1})
    path = small.folder / "cells" / "any.json"
    path.write_text(content)
    again = small.cell("any", lambda: {"mean": 0.5, "std": 0.1})
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_larger_sets_against_random_ones(tmp_path):
    assert run("larger_sets", *NARROW, "--workdir", tmp_path / "larger", "--sizes", 2, 5) == 0
    results = results_of(tmp_path / "larger")
    assert set(results["condensed"]) == set(results["random real"]) == {"2", "5"}
    assert 0 < results["whole training set"]["mean"] < 1
    optimizer = json.loads((tmp_path / "larger/runs/ipc_5/config.json").read_text())["config"]["method"]["optimizer"]
    assert optimizer["learning_rate"] == 1  # 10 is the authors' for CIFAR-10 alone
    assert importlib.import_module("experiments.larger_sets").default_rate("cifar10") == {"optimizer.learning_rate": 10}
    assert size_of(tmp_path / "larger" / "larger_sets.png")[0] > 100


def test_sets_in_every_precision(tmp_path):
    assert run("precision", *NARROW, "--workdir", tmp_path / "precision", "--ipc", 2) == 0
    found = results_of(tmp_path / "precision")["precisions"]
    assert list(found) == ["float32", "tf32", "bfloat16"]
    sets = [synthetic_set.SyntheticSet.load(tmp_path / f"precision/runs/{name}/synthetic.npz") for name in found]
    differences = [float(np.abs(one.images - sets[0].images).max()) for one in sets[1:]]
    assert 0 < differences[0] < differences[1] < 0.5  # rounded to 10 bits and to 7


def test_coresets_by_networks_of_several_lengths(tmp_path):
    folder = tmp_path / "coreset"
    flags = ["--config", "experiments/tiny.py", "--method", "herding", "--workdir", str(folder), "--epochs", "1", "3"]
    flags += ["--evaluation.networks", "2", "--evaluation.epochs", "2", "--pretrained.networks", "1", *NARROW]
    main = importlib.import_module("experiments.coreset_networks").main
    assert main([*flags, "--progress", "false"]) == 0
    found = results_of(folder)["epochs"]
    assert set(found) == {"1", "3"}
    assert all(0 < row["mean"] < 1 and row["choosing_seconds"] > 0 for row in found.values())
    epochs = [json.loads((folder / f"runs/epochs_{n}/config.json").read_text()) for n in (1, 3)]
    assert [about["config"]["pretrained"]["epochs"] for about in epochs] == [1, 3]
    assert size_of(folder / "coreset_networks.png")[0] > 100


def test_embedding_distributions(tmp_path):
    assert run("embedding_distributions", *NARROW, "--workdir", tmp_path / "emb", "--bounds", 0, 0.99, 1) == 0
    groups = results_of(tmp_path / "emb")["groups"]
    assert set(groups) == {"random", "0-0.99", "all"}
    assert "| 0.99-1 | 0 | no such network |" in (tmp_path / "emb" / "table.md").read_text()


def test_feature_plot(tmp_path, capsys):
    assert run("larger_sets", *NARROW, "--workdir", tmp_path / "larger", "--sizes", 2) == 0
    made = tmp_path / "larger/runs/ipc_2/synthetic.npz"
    flags = (*NARROW, "--workdir", tmp_path / "features", "--sets", made, "--real-images", 20)
    assert run("feature_plot", *flags, "--classes", "8", "3") == 0
    assert results_of(tmp_path / "features")["classes"] == ["3", "8"]
    assert size_of(tmp_path / "features" / "features.png")[0] > 100
    assert run("feature_plot", *flags, "--classes", "eight") == 2
    assert "digits has no class 'eight'" in capsys.readouterr().err


def test_features_are_those_of_the_network_on_all_images():
    """In batches, the last of which is smaller; by running averages, so that no image depends on another."""
    import jax

    from dmjax import networks
    from dmjax.config import NetworkConfig
    from dmjax.evaluation import testing

    network = networks.create(NetworkConfig(width=4, depth=1, norm="batch"), 3, (8, 8, 1))
    variables = networks.init(network, jax.random.key(0), (8, 8, 1))
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    mean, std = np.float32([0.5]), np.float32([0.25])
    features = testing.features(network, variables, images, mean, std)
    one = network.apply(variables, (images[299:] / np.float32(255) - mean) / std, method="embed")
    assert features.shape == (300, one.shape[1])
    np.testing.assert_allclose(features[299], one[0], rtol=1e-5, atol=1e-5)


def test_plots_leave_out_what_is_missing(tmp_path):
    plots.heat_map(tmp_path / "a.png", np.array([[1.0, np.nan]]), ["row"], ["a", "b"], "title")
    assert size_of(tmp_path / "a.png")[0] > 100


def test_a_study_that_is_killed_goes_on(run_command, tmp_path):
    """SIGKILL after the first cell: the second start keeps it and ends with all of them."""
    flags = (*SMALL, "--workdir", tmp_path / "cross", "--learn", "MLP", "--test", "MLP", "ConvNetD1W4")
    process = run_command.start("experiments.cross_architecture", *flags)
    line = process.stdout.readline()
    process.kill()
    process.communicate()
    assert line.startswith("random/MLP: ")
    done = run_command("experiments.cross_architecture", *flags)
    assert done.returncode == 0, done.stderr
    assert "random/MLP: " not in done.stdout
    assert "\n| MLP | " in done.stdout
