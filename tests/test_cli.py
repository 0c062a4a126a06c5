"""The command line: every kind of bad input gives one line, exit status 2, and no traceback."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from dmjax.condense import main as condense
from dmjax.config import Config
from dmjax.evaluate import main as evaluate
from dmjax.settings import experiment

TINY = ("--config", str(ROOT / "experiments" / "tiny.py"))
QUICK = (
    *("--iterations", 4, "--chunk", 2, "--checkpoint.every", 2, "--images-every", 2, "--batch-real", 8),
    *("--network.width", 4, "--network.depth", 1),
    *("--evaluation.networks", 2, "--evaluation.epochs", 2, "--evaluation.whole-dataset", "false"),
)


def call(main, capsys, *arguments):
    """Returns (status, stdout, stderr)."""
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def one_line_error(main, capsys, *arguments):
    status, _, err = call(main, capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--ipd", "3"), ["--ipd", "--ipc"]),
        (("--ipc", "many"), ["--ipc", "many"]),
        (("--ipc",), ["--ipc"]),
        (("--ipc", "0"), ["ipc must be at least 1"]),
        (("--ipc", "1.5"), ["--ipc", "1.5"]),
        (("--progress", "maybe"), ["--progress", "maybe"]),
        (("--data.source", "digts"), ["digts", "digits"]),
        (("--data.sauce", "npz"), ["--data.sauce"]),
        (("--optimizer.name", "sdg"), ["sdg", "'sgd'"]),
        (("--optimizer.name", "adam"), ["momentum", "--optimizer.options"]),
        (("--network.name", "ConvNut"), ["ConvNut", "'ConvNet'"]),
        (("--network.depth", "9"), ["depth 9", "at most 3"]),
        (("--ipc", "150"), ["ipc 150", "--init noise"]),
        (("--augment.strategy", "flop"), ["'flop'", "'flip'"]),
        (("--data.source", "npz"), ["--data.path"]),
        (("--evaluation.learning-rate", "inf"), ["evaluation.learning_rate must be finite"]),
        (("--optimizer.options", "momentum", "nan"), ["optimizer.options must be finite"]),
        (("--evaluation.momentum=-3",), ["evaluation.momentum must be"]),
        (("--optimizer.name", "lbfgs", "--optimizer.options"), ["lbfgs", "cannot be used"]),
        (("--init", "noise", "--ipc", "150"), ["ipc 150", "--evaluation.random-real false"]),
        (("--data.source", "folder", "--data.path", "/nowhere"), ["/nowhere"]),
        (("--workdir", "/proc/nowhere"), ["/proc/nowhere", "--workdir"]),
        (("--workdir", "/etc/hostname/x"), ["/etc/hostname", "--workdir"]),
    ],
)
def test_bad_flags(capsys, tmp_path, arguments, expected):
    workdir = () if "--workdir" in arguments else ("--workdir", tmp_path / "run")
    error = one_line_error(condense, capsys, *TINY, *workdir, *arguments)
    for part in expected:
        assert part in error
    if "--workdir" not in arguments:
        assert not (tmp_path / "run" / "config.json").exists()


def test_bad_experiment_files(capsys, tmp_path):
    assert "--config" in one_line_error(condense, capsys)
    assert "tiny.py" in one_line_error(condense, capsys, "--config", str(ROOT / "experiments" / "tyni.py"))
    assert "experiments/tiny.py" in one_line_error(condense, capsys, "--config", tmp_path / "none" / "x.py")
    assert "did you mean 'experiments/tiny.py'?" in one_line_error(condense, capsys, "--config", "tinny")
    for text, expected in (
        ("x = 1", "get_config()"),
        ("def get_config(): return 3", "get_config()"),
        ("def get_config(): raise ValueError('a\\nb')", "ValueError"),
        ("def get_config(:", "SyntaxError"),
        ("from dmjax import Config\ndef get_config(): return Config(ipd=3)", "ipd"),
        ("from dmjax import Config\ndef get_config(): return Config(ipc='3')", "ipc must be of type int"),
        ("from dmjax import Config\ndef get_config(): return Config(data={})", "data must be of type DataConfig"),
        ("raise SystemExit(3)", "SystemExit"),
    ):
        path = tmp_path / "experiment.py"
        path.write_text(text)
        assert expected in one_line_error(condense, capsys, "--config", path)


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        condense([*TINY, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in (
        *("--ipc", "--iterations", "--batch-real", "--seed", "--workdir", "--data.source", "--data.path"),
        *("--evaluation.networks", "--evaluation.epochs", "--config"),
    ):
        assert flag in text


def test_booleans_and_underscores_as_people_write_them(capsys, tmp_path):
    arguments = ("--workdir", tmp_path, *QUICK, "--progress", "False", "--evaluation.random_real=no")
    status, _, err = call(condense, capsys, *TINY, *arguments)
    assert (status, err) == (0, "")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"]["random_real"] is None


def test_a_run_and_what_it_leaves_behind(capsys, tmp_path):
    run = tmp_path / "run"
    status, out, err = call(condense, capsys, *TINY, "--workdir", run, *QUICK)
    assert status == 0
    assert err == ""  # no bar: this is not a terminal
    assert "condensed" in out
    assert "random real" in out
    assert str(run) in out
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {
        *("dataset", "method", "network", "ipc", "iterations", "seed", "seconds", "iterations_per_second", "accuracy")
    }
    assert set(results["seconds"]) == {"condense", "pretrain", "evaluate", "compile"}
    for kind in ("synthetic", "random_real"):
        accuracy = results["accuracy"][kind]
        assert len(accuracy["values"]) == 2
        assert accuracy["mean"] == pytest.approx(np.mean(accuracy["values"]))
        assert accuracy["std"] == pytest.approx(np.std(accuracy["values"]))
        assert 0 <= accuracy["mean"] <= 1
    assert results["accuracy"]["whole_dataset"] is None
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["method"]["iterations"] == 4
    assert {"jax", "python", "dmjax"} <= set(config["versions"])
    assert config["devices"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["iteration"] for m in metrics] == [2, 4]
    assert all(np.isfinite(m["loss"]) for m in metrics)
    assert sorted(p.name for p in (run / "images").iterdir()) == ["000000.png", "000002.png", "000004.png"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "4"]
    assert any((run / "tensorboard").iterdir())

    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    status, out, _ = call(condense, capsys, *TINY, "--workdir", run, *QUICK)
    assert status == 0
    assert "is finished" in out
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}

    error = one_line_error(condense, capsys, *TINY, "--workdir", run, *QUICK, "--ipc", 2, "--network.norm", "none")
    assert "ipc: 1 -> 2" in error
    assert "network.norm: instance -> none" in error

    # The set can be evaluated on its own, with the data and the recipe of its run.
    flags = ("--synthetic", run / "synthetic.npz", "--json", tmp_path / "e.json")
    status, out, _ = call(evaluate, capsys, *flags)
    assert status == 0
    (measured,) = json.loads((tmp_path / "e.json").read_text())["networks"].items()
    assert measured[0] == "ConvNetW4D1"
    assert measured[1]["values"] == results["accuracy"]["synthetic"]["values"]
    error = one_line_error(evaluate, capsys, "--synthetic", tmp_path / "none.npz")
    assert "none.npz" in error
    (run / "synthetic.npz").write_bytes((run / "synthetic.npz").read_bytes()[:1000])
    assert "damaged" in one_line_error(evaluate, capsys, *flags)


def test_evaluation_every_n_iterations(capsys, tmp_path):
    status, *_ = call(condense, capsys, *TINY, "--workdir", tmp_path, *QUICK, "--evaluation.every", 2)
    assert status == 0
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [m["iteration"] for m in metrics if "accuracy_mean" in m] == [2]


def test_random_real_subsets_can_be_evaluated(capsys):
    quick = ("--evaluation.networks", 2, "--evaluation.epochs", 2, "--network.width", 4, "--network.depth", 1)
    status, out, _ = call(evaluate, capsys, *TINY, "--random-real", 3, *quick)
    assert status == 0
    assert "3 random real images per class" in out
    error = one_line_error(evaluate, capsys, *TINY, *quick)
    assert "name a set first" in error


def test_a_pool_is_a_table_and_a_report(capsys, tmp_path):
    quick = ("--evaluation.networks", 2, "--evaluation.epochs", 1, "--json", tmp_path / "pool.json")
    status, out, _ = call(evaluate, capsys, *TINY, "--random-real", 1, *quick, "--pool", "pooling")
    assert status == 0
    report = json.loads((tmp_path / "pool.json").read_text())
    assert list(report["networks"]) == ["ConvNetNP", "ConvNetMP", "ConvNetAP"]
    for name, row in report["networks"].items():
        assert np.isclose(row["mean"], np.mean(row["values"]))
        assert len(row["values"]) == 2
        assert f"| {name} | " in out
    assert report["seconds"] == pytest.approx(sum(row["seconds"] for row in report["networks"].values()))
    error = one_line_error(evaluate, capsys, *TINY, "--random-real", 1, *quick, "--pool", "cross")
    assert "VGG11 needs images of at least 28x28" in error


def test_data_that_a_set_does_not_fit_are_refused_before_anything_is_said(capsys):
    for words in (("mnist-ipc1",), ("--synthetic", "mnist-ipc1")):
        status, out, error = call(evaluate, capsys, *words, *TINY)
        assert (status, out, error.count("\n")) == (2, "", 1)
        assert "(28, 28, 1)" in error


def test_another_network_drops_the_options_of_the_experiments(capsys):
    quick = ("--random-real", 1, "--evaluation.networks", 1, "--evaluation.epochs", 1)
    status, out, _ = call(evaluate, capsys, *TINY, *quick, "--network.name", "MLP")
    assert status == 0
    assert "| MLP | " in out
    assert "contradict" in one_line_error(
        evaluate, capsys, *TINY, *quick, "--network.name", "ConvNetD1", "--network.depth", 2
    )


def test_an_option_that_is_given_counts_even_where_the_experiment_has_the_same():
    flags = [*map(str, TINY), "--network.name", "ConvNetBN"]
    for more, width in (([], 128), (["--network.width", "32"], 32), (["--network.width=64"], 64)):
        given, default = experiment.parse(Config, [*flags, *more], "", "")
        assert experiment.resolve(given, default).network.width == width


def test_a_loss_that_is_not_finite_stops_the_run(capsys, tmp_path):
    quick = [6 if flag == 4 else flag for flag in QUICK]
    flags = (*TINY, "--workdir", tmp_path, *quick, "--optimizer.learning-rate", "1e38")
    status, _, err = call(condense, capsys, *flags)
    assert status == 1
    assert err.count("\n") == 1
    assert "iteration" in err
    assert "--optimizer.learning-rate" in err
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0"]  # the state before it went wrong
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "synthetic.npz").exists()


def test_three_unequal_classes_of_ones_own(capsys, tmp_path, make_folder):
    folder = make_folder(train=(9, 3, 5), test=4)
    flags = ("--data.source", "folder", "--data.path", folder, "--workdir", tmp_path / "run", "--ipc", 2)
    status, out, _ = call(condense, capsys, *TINY, *QUICK, *flags)
    assert status == 0
    with np.load(tmp_path / "run" / "synthetic.npz") as synthetic:
        assert synthetic["images"].shape == (6, 8, 8, 3)
        assert json.loads(str(synthetic["metadata"]))["config"]["data"]["path"] == str(folder.absolute())
        assert synthetic["class_names"].tolist() == ["class0", "class1", "class2"]
    assert "condensed" in out


def test_a_workdir_started_on_other_data_is_refused(capsys, tmp_path, make_folder):
    folder = make_folder()
    flags = ("--data.source", "folder", "--data.path", folder, "--workdir", tmp_path / "run")
    assert call(condense, capsys, *TINY, *QUICK, *flags)[0] == 0
    (tmp_path / "run" / "results.json").unlink()
    (folder / "train" / "class0" / "0.png").unlink()
    assert "other data" in one_line_error(condense, capsys, *TINY, *QUICK, *flags)


def test_the_evaluator_and_the_configuration_import_nothing_of_the_condensing_side():
    code = (
        "import sys, dmjax.evaluate\n"
        "assert not [name for name in sys.modules if name.startswith(('dmjax.run', 'dmjax.condense', 'orbax'))]\n"
        "assert 'tensorflow_datasets' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_python_api(tmp_path):
    import dataclasses

    import dmjax

    config = dmjax.load_config(ROOT / "experiments" / "tiny.py")
    config = dataclasses.replace(
        config,
        method=dmjax.DM(iterations=2),
        chunk=2,
        network=dmjax.NetworkConfig(width=4, depth=1),
        workdir=str(tmp_path),
        progress=False,
    )
    synthetic = dmjax.condense(config)
    accuracy = dmjax.evaluate(synthetic, networks=2, epochs=2, progress=False)
    assert synthetic.images.shape == (10, 8, 8, 1)
    assert len(accuracy.values) == 2


def test_condensing_and_evaluating_never_share_a_key():
    """Otherwise a set would be judged on the very networks that it was made with."""
    import jax

    root = jax.random.key(0)
    condensing = {
        tuple(jax.random.key_data(k).tolist())
        for i in range(50)
        for k in jax.random.split(jax.random.fold_in(jax.random.fold_in(root, 1), i))
    }
    from dmjax.evaluation import training

    seen = []
    original = training.networks.init

    def spy(network, key, shape):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return original(network, key, shape)

    training.networks.init = spy
    try:
        quick = ("--evaluation.networks", 3, "--evaluation.epochs", 1, "--network.width", 5, "--network.depth", 1)
        assert evaluate([str(a) for a in (*TINY, "--random-real", 1, *quick)]) == 0
        jax.effects_barrier()
    finally:
        training.networks.init = original
    assert len(set(seen)) == 3
    assert not condensing & set(seen)


def test_a_finished_run_notices_other_data_and_a_folder_without_its_configuration(capsys, tmp_path, make_folder):
    folder = make_folder()
    flags = (*TINY, *QUICK, "--data.source", "folder", "--data.path", folder, "--workdir", tmp_path / "run")
    assert call(condense, capsys, *flags)[0] == 0
    assert "is finished" in call(condense, capsys, *flags)[1]
    (folder / "train" / "class0" / "0.png").unlink()
    assert "was started on other data" in one_line_error(condense, capsys, *flags)
    config = tmp_path / "run" / "config.json"
    content = config.read_text()
    config.write_text("[" * 200_000)
    assert "is damaged" in one_line_error(condense, capsys, *flags)
    config.unlink()
    assert "holds checkpoints of a run, but no config.json" in one_line_error(condense, capsys, *flags, "--seed", 1)
    old = json.loads(content)
    config.write_text(json.dumps({**old, "config": {**old["config"], "method": "dm"}}))
    assert "made by an older dmjax" in one_line_error(condense, capsys, *flags)


def test_a_disk_that_is_full_is_one_line(capsys, tmp_path, monkeypatch):
    from collections import namedtuple

    from dmjax.common import files

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    error = one_line_error(condense, capsys, *TINY, *QUICK, "--workdir", tmp_path)
    assert "no space left for" in error
    assert "make room, and the same command goes on" in error


def test_a_log_has_a_line_now_and_then(capsys, monkeypatch):
    """Outside a terminal: nothing for half a minute, then one line with what is done, left and lost."""
    from dmjax.common import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar(None, "condensing", True, 100) as bar:
        for second in range(100):
            now[0] = float(second)
            bar.set_postfix(loss="0.5", refresh=False)
            bar.update(1)
            bar.refresh()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("condensing: 31/100 after ")
    assert lines[0].endswith("loss=0.5")
    with progress.progress_bar(None, "condensing", False, 100) as bar:
        bar.update(100)
    assert capsys.readouterr().err == ""
