"""The pictures of the documentation that are drawn from a run: its saturation, and learned images below real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmjax import condense, evaluate, load_config
from dmjax.common import plots
from dmjax.data import load
from dmjax.data.synthetic_set import SyntheticSet
from experiments import real_and_learned, saturation

QUICK = (
    *("--config", "experiments/tiny.py", "--network.width", "4", "--network.depth", "1", "--iterations", "8"),
    *("--batch-real", "8", "--chunk", "2", "--evaluation.every", "4", "--evaluation.networks", "2"),
    *("--evaluation.epochs", "2", "--evaluation.whole-dataset", "false", "--progress", "false"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert condense.main([*QUICK, "--workdir", str(folder)]) == 0
    return folder


def test_saturation_has_every_evaluation_of_the_run_and_those_of_longer_ones(run, tmp_path, capsys):
    judged = []
    for seed in ("0", "1"):
        judged.append(str(tmp_path / f"{seed}.json"))
        flags = ["--evaluation.networks", "3", "--evaluation.epochs", "1", "--seed", seed, "--json", judged[-1]]
        assert evaluate.main([str(run / "synthetic.npz"), *flags]) == 0
    capsys.readouterr()
    flags = ["--run", str(run), "--judged", *judged, "--published", "89.7", "0.6", "--out", str(tmp_path)]
    assert saturation.main(flags) == 0
    found = json.loads((tmp_path / "saturation.json").read_text())
    end = json.loads((run / "results.json").read_text())["accuracy"]["synthetic"]
    assert [point["iteration"] for point in found["accuracy"]] == [4, 8]
    assert found["accuracy"][-1]["mean"] == end["mean"]
    assert [i for i, _ in found["loss"]] == [2, 4, 6, 8]
    values = [v for path in judged for v in _read(path)["values"]]
    assert [v for one in found["judged"] for v in one["values"]] == values
    assert [one["epochs"] for one in found["judged"]] == [1, 1]
    assert f"| all of these | {100 * np.mean(values):.1f} +- {100 * np.std(values):.1f} |" in capsys.readouterr().out
    with Image.open(tmp_path / "saturation.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--run"),
        (["--run", "RUN", "--published", "1"], "--published"),
        (["--run", "RUN", "--judged", "RUN/results.json"], "dmjax.evaluate --json"),
        (["--run", "RUN", "--judged", "RUN/synthetic.npz"], "dmjax.evaluate --json"),
        (["--run", "RUN", "--published", "89.7", "-0.6"], "--published"),
        (["--run", "RUN/images"], "no folder of a run"),
        (["--run", "nowhere"], "no folder of a run"),
    ],
)
def test_saturation_says_what_is_missing(run, capsys, flags, message):
    assert saturation.main([flag.replace("RUN", str(run)) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_real_images_stand_above_the_learned_ones(run, tmp_path, monkeypatch):
    drawn, draw = {}, plots.pictures
    monkeypatch.setattr(plots, "pictures", lambda path, rows: (drawn.update(rows), draw(path, rows)))
    assert real_and_learned.main([str(run / "synthetic.npz"), "--out", str(tmp_path / "picture.png")]) == 0
    synthetic = SyntheticSet.load(run / "synthetic.npz")
    dataset = load(load_config(run / "config.json").data)
    np.testing.assert_array_equal(drawn["real"], dataset.images[:, 0] / 255)
    np.testing.assert_array_equal(drawn["learned"], synthetic.pixels() / 255)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 2 * picture.height


@pytest.mark.parametrize(
    ("words", "message"), [([], "--synthetic"), (["nowhere"], "nowhere"), (["PART"], "no image of")]
)
def test_a_picture_that_cannot_be_drawn_is_one_line(run, tmp_path, capsys, words, message):
    SyntheticSet.load(run / "synthetic.npz").of_classes([0, 2]).save(tmp_path / "part.npz")
    assert real_and_learned.main([word.replace("PART", str(tmp_path / "part.npz")) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def _read(path):
    [accuracy] = json.loads(Path(path).read_text())["networks"].values()
    return accuracy
