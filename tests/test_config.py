"""Configuration: experiment files, overrides, comparison."""

import dataclasses
from pathlib import Path

import pytest
from conftest import ROOT

from dmjax import config as configuration
from dmjax import load_config
from dmjax.common.errors import UserError
from dmjax.config import Config, DataConfig
from dmjax.settings import experiment, fields

EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "def get_config" in p.read_text())


def test_all_named_experiments_are_there():
    named = {"tiny", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet"}
    assert named <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_valid_and_say_how_to_run_them(name):
    path = ROOT / "experiments" / f"{name}.py"
    config = load_config(path)
    experiment.validate(config)
    assert config.workdir == Path("runs") / name
    text = path.read_text()
    assert f"python -m dmjax.condense --config experiments/{name}.py" in text
    assert "Expected:" in text


def test_the_papers_settings():
    """Zhao & Bilen, section 3.1, and their code."""
    config = experiment.resolve(load_config(ROOT / "experiments" / "cifar10.py"))
    assert (config.iterations, config.batch_real, config.init) == (20_000, 256, "real")
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", 1.0)
    assert config.optimizer.options == (("momentum", 0.5),)
    evaluation = config.evaluation
    assert (evaluation.networks, evaluation.epochs, evaluation.batch_size) == (20, 1000, 256)
    assert (evaluation.learning_rate, evaluation.momentum, evaluation.weight_decay) == (0.01, 0.9, 5e-4)
    assert config.augment.strategy == "color_crop_cutout_flip_scale_rotate"
    for digits in ("mnist", "svhn", "tiny"):
        assert "flip" not in load_config(ROOT / "experiments" / f"{digits}.py").augment.strategy


def test_json_round_trip():
    config = load_config(ROOT / "experiments" / "tiny_imagenet.py")
    assert fields.from_dict(Config, fields.to_dict(config)) == config
    with pytest.raises(UserError, match="unknown field 'ipd'"):
        fields.from_dict(Config, {"ipd": 1})


def test_differences_name_fields_and_leave_out_what_is_not_part_of_the_run():
    old = Config()
    new = dataclasses.replace(old, ipc=1, workdir=Path("x"), progress=False, data=DataConfig(cache=Path("y")))
    assert fields.differences(old, new) == ["ipc: 10 -> 1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 0}, "ipc must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be below"),
        ({"augment": configuration.AugmentConfig("color_flap")}, "did you mean 'flip'"),
        ({"evaluation": configuration.EvaluationConfig(networks=0)}, "evaluation.networks must be at least 1"),
        ({"evaluation": configuration.EvaluationConfig(every=-5)}, "evaluation.every must be at least 0"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(UserError, match=message):
        experiment.validate(dataclasses.replace(Config(), **changes))
