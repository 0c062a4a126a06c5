"""Configuration: experiment files, overrides, comparison."""

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
from conftest import ROOT

from dmjax import DM, DSA, load_config
from dmjax import config as configuration
from dmjax.common.errors import UserError
from dmjax.config import Config, DataConfig, NetworkConfig
from dmjax.methods.gradient import GradientConfig
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.settings import experiment, fields

EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "def get_config" in p.read_text())


def test_all_named_experiments_are_there():
    named = {"tiny", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet"}
    assert named <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_valid_and_say_how_to_run_them(name):
    path = ROOT / "experiments" / f"{name}.py"
    config = load_config(path)
    experiment.resolve(config)
    assert config.workdir == Path("runs") / name
    text = path.read_text()
    assert f"python -m dmjax.condense --config experiments/{name}.py" in text
    assert "Expected:" in text


def test_the_papers_settings():
    """Zhao & Bilen, section 3.1, and their code."""
    config = experiment.resolve(load_config(ROOT / "experiments" / "cifar10.py"))
    method = config.method
    assert (method.iterations, method.batch_real, method.init) == (20_000, 256, "real")
    assert (method.optimizer.name, method.optimizer.learning_rate) == ("sgd", 1.0)
    assert method.optimizer.options == (("momentum", 0.5),)
    evaluation = config.evaluation
    assert (evaluation.networks, evaluation.epochs, evaluation.batch_size) == (20, 1000, 256)
    assert (evaluation.learning_rate, evaluation.momentum, evaluation.weight_decay) == (0.01, 0.9, 5e-4)
    assert config.augment.strategy == "color_crop_cutout_flip_scale_rotate"
    for digits in ("mnist", "svhn", "tiny"):
        assert "flip" not in load_config(ROOT / "experiments" / f"{digits}.py").augment.strategy


def test_json_round_trip():
    config = load_config(ROOT / "experiments" / "tiny_imagenet.py")
    assert fields.config_from_dict(fields.to_dict(config)) == config
    with pytest.raises(UserError, match="unknown field 'ipd'"):
        fields.from_dict(Config, {"ipd": 1})


def test_a_name_that_is_no_setting_is_one_line(tmp_path):
    class Undecorated(DM):
        scale: float = 1.0

    class Own(DM):
        """Another distance alone: it has no settings of its own, and needs nothing above its class."""

    for make, message in (
        (lambda: Config(ipd=3), "Config has no setting 'ipd'; did you mean 'ipc'?"),
        (lambda: dataclasses.replace(Config(), ipd=3), "Config has no setting 'ipd'; did you mean 'ipc'?"),
        (lambda: NetworkConfig(widht=3), "NetworkConfig has no setting 'widht'; did you mean 'width'"),
        (lambda: DM(iteration=3), "DM has no setting 'iteration'; did you mean 'iterations'?"),
        (lambda: Own(iteration=3), "Own has no setting 'iteration'; did you mean 'iterations'?"),
        (
            lambda: Undecorated(scale=2.0),
            r"no setting 'scale'; put @dataclasses.dataclass\(frozen=True\) above its class",
        ),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            make()
    assert Own(iterations=3).iterations == 3
    assert copy.copy(pickle.loads(pickle.dumps(Config(ipc=3)))) == Config(ipc=3)
    path = tmp_path / "wrong.py"
    path.write_text("from dmjax import Config\n\ndef get_config():\n    return Config(ipd=3)\n")
    with pytest.raises(UserError, match=r"wrong\.py' does not run: .*'ipd'; did you mean 'ipc'\? \(.*wrong\.py:4\)"):
        load_config(path)


def test_differences_name_fields_and_leave_out_what_is_not_part_of_the_run():
    old = experiment.resolve(Config())
    new = dataclasses.replace(old, ipc=1, workdir=Path("x"), progress=False, data=DataConfig(cache=Path("y")))
    new = dataclasses.replace(new, method=dataclasses.replace(new.method, iterations=3))
    assert fields.differences(fields.to_dict(old), new) == ["iterations: 20000 -> 3", "ipc: 10 -> 1"]
    stored = fields.to_dict(new)
    stored["method"]["queue"]["every"] = 5  # as it was recorded once, also where there is no queue
    assert fields.differences(stored, new) == []


@pytest.mark.parametrize(("labels", "matters"), [("stored", False), ("teacher", True), ("teacher-views", True)])
def test_the_pool_is_part_of_a_run_where_it_labels(labels, matters):
    old = experiment.resolve(Config(evaluation=configuration.EvaluationConfig(labels=labels)))
    new = dataclasses.replace(old, pretrained=dataclasses.replace(old.pretrained, learning_rate=0.5, path=Path("x")))
    expected = ["pretrained.learning_rate: 0.01 -> 0.5"] if matters else []
    assert fields.differences(fields.to_dict(old), new) == expected


def test_a_configuration_from_before_methods_had_settings_of_their_own():
    old = {"method": "dsa", "iterations": 7, "init": None, "gradient": {"outer": 3}, "embedding": {}, "ipc": 2}
    config = fields.config_from_dict(old)
    assert config.ipc == 2
    assert config.method == DSA(iterations=7, gradient=GradientConfig(outer=3))
    pool = {"embedding": {"distribution": "pool", "accuracy": [0.5, 0.6]}}
    for old in ({"method": "dm", **pool}, {"method": {"name": "dm", **pool}}):
        assert fields.config_from_dict(old).method.match == MatchConfig(networks="pool", accuracy=(0.5, 0.6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipc": 0}, "ipc must be at least 1"),
        ({"method": DM(iterations=0)}, "iterations must be at least 1"),
        ({"method": DM(init="noize")}, "init must be one of real, noise, not 'noize'; did you mean 'noise'"),
        (
            {"method": DM(match=MatchConfig(networks="pool", accuracy=(0.5, 2.0)))},
            "match.accuracy must be between 0 and 1",
        ),
        ({"method": DSA(gradient=GradientConfig(distance="l2"))}, "gradient.distance must be one of ours, mse, cos"),
        ({"method": OptimizerConfig()}, "method must be a name, module:Class or a dmjax.Method"),
        ({"method": "dmm"}, "unknown method 'dmm'"),
        ({"class_chunk": 0}, "class_chunk must be at least 1"),
        ({"class_chunk": "all"}, "class_chunk must be a number or auto"),
        ({"runs": 10**7}, "runs must be between 1 and 1000"),
        ({"ipc": 10**11}, "ipc must be below"),
        ({"ipc": True}, "ipc must be of type int"),
        ({"memory_gb": float("nan")}, "memory_gb must be finite"),
        ({"network": configuration.NetworkConfig(norm="foo")}, "network.norm must be one of instance, batch"),
        ({"network": configuration.NetworkConfig(precision="float16")}, "network.precision must be one of"),
        ({"data": configuration.DataConfig("foo")}, "data.source must be one of"),
        ({"data": configuration.DataConfig(path=5)}, "data.path must be a path, not 5"),
        ({"data": configuration.DataConfig(image_size="32")}, "data.image_size must be of type int"),
        ({"workdir": ""}, "workdir must be a path"),
        ({"evaluation": configuration.EvaluationConfig(epochs=1.5)}, "evaluation.epochs must be of type int"),
        ({"evaluation": configuration.EvaluationConfig(learning_rate=True)}, "learning_rate must be of type float"),
        ({"evaluation": configuration.EvaluationConfig(momentum=1)}, "evaluation.momentum must be below 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be below"),
        (
            {"augment": configuration.AugmentConfig("color_flap")},
            "augment.strategy must be 'none', or some of 'color', .* not 'color_flap'",
        ),
        ({"evaluation": configuration.EvaluationConfig(networks=0)}, "evaluation.networks must be at least 1"),
        ({"evaluation": configuration.EvaluationConfig(every=-5)}, "evaluation.every must be at least 0"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(UserError, match=message):
        experiment.resolve(dataclasses.replace(Config(), **changes))
