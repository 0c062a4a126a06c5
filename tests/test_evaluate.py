"""Evaluation: which recipe a method is judged by, and what an interrupted evaluation keeps."""

import dataclasses
import json

import numpy as np
import pytest

from dmjax import condense, evaluate
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, Config, DataConfig, EvaluationConfig, NetworkConfig
from dmjax.data import load
from dmjax.data.synthetic_set import SyntheticSet, from_pixels
from dmjax.evaluation import training
from dmjax.settings import experiment

QUICK = {"networks": 3, "epochs": 2}


@pytest.fixture(scope="module")
def digits():
    return load(DataConfig(source="digits"), False)


@pytest.fixture
def small(digits):
    config = Config(network=experiment.resolve(Config(network=NetworkConfig(width=4, depth=1))).network)
    from dmjax.settings import fields

    return from_pixels(
        digits.images[:, :2], digits.mean, digits.std, digits.class_names, {"config": fields.to_dict(config)}
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "dm"}, ("color_crop", 1000)),
        ({"method": "dsa"}, ("color_crop", 1000)),
        ({"method": "herding"}, ("color_crop", 1000)),
        ({"method": "dc"}, ("none", 300)),
        ({"method": "dc", "network": NetworkConfig("ConvNetBN")}, ("crop_noise", 1000)),
        ({"method": "dc", "data": DataConfig("tfds", name="mnist")}, ("crop_scale_rotate", 1000)),
        (
            {"method": "dc", "data": DataConfig("tfds", name="mnist"), "network": NetworkConfig("ConvNetBN")},
            ("crop_noise", 1000),
        ),
        ({"method": "dc", "evaluation": EvaluationConfig(strategy="flip", epochs=7)}, ("flip", 7)),
        ({"method": "dm", "evaluation": EvaluationConfig(strategy="none")}, ("none", 1000)),
    ],
)
def test_the_recipe_by_which_a_method_is_judged(changes, expected):
    config = experiment.resolve(Config(augment=AugmentConfig("color_crop"), **changes))
    assert (config.evaluation.strategy, config.evaluation.epochs) == expected
    recipe = training.make_recipe(config.evaluation, config.augment)
    assert recipe.augment.strategy == expected[0]
    assert experiment.resolve(config) == config


def test_augmentation_that_is_given_replaces_that_of_the_run(small, digits, monkeypatch):
    seen = []
    train = training.train
    monkeypatch.setattr(
        training, "train", lambda network, recipe, *rest: seen.append(recipe) or train(network, recipe, *rest)
    )
    settings = {"networks": 1, "epochs": 1, "progress": False}
    evaluate.evaluate(small, digits, **settings)
    evaluate.evaluate(small, digits, augment=AugmentConfig("none"), **settings)
    evaluate.evaluate(small, digits, augment=AugmentConfig("none"), strategy="crop", **settings)
    assert [recipe.augment.strategy for recipe in seen] == [AugmentConfig().strategy, "none", "crop"]


def test_what_a_method_decides_is_decided_for_the_network_that_is_trained(small, digits, monkeypatch):
    """A set of dc was judged without augmentation; with batch norm its authors crop and add noise, for longer."""
    from dmjax.settings import fields

    seen = []
    monkeypatch.setattr(
        training, "train", lambda network, recipe, key, examples, epochs, *_: seen.append((recipe, epochs))
    )
    monkeypatch.setattr(training, "accuracy", lambda *_: 0.5)
    dc = experiment.resolve(Config(method="dc", network=NetworkConfig(width=4, depth=1)))
    made = dataclasses.replace(small, metadata={"config": fields.to_dict(dc)})
    settings = {"networks": 1, "progress": False}
    batch_norm = NetworkConfig(width=4, depth=1, norm="batch")
    evaluate.evaluate(made, digits, **settings)
    evaluate.evaluate(made, digits, network=batch_norm, **settings)
    evaluate.evaluate(made, digits, strategy="crop", **settings)
    evaluate.evaluate(made, digits, network=batch_norm, strategy="none", epochs=5, **settings)
    found = [(recipe.augment.strategy, epochs) for recipe, epochs in seen]
    assert found == [("none", 300), ("crop_noise", 1000), ("crop", 1000), ("none", 5)]


def test_an_interrupted_evaluation_goes_on_with_the_next_network(small, digits, tmp_path, monkeypatch):
    whole = evaluate.evaluate(small, digits, progress=False, **QUICK)
    train, trained = training.train, []

    def stop_at_the_second(*arguments):
        trained.append(1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(training, "train", stop_at_the_second)
    kept = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(small, digits, progress=False, resume_file=kept, **QUICK)
    assert [entry["accuracy"] for entry in json.loads(kept.read_text())["networks"]] == [whole.values[0]]
    again = evaluate.evaluate(small, digits, progress=False, resume_file=kept, **QUICK)
    assert again.values == whole.values
    assert len(trained) == 4
    assert again.training_seconds > 0
    other = dataclasses.replace(small, images=small.images * np.float32(0.5))
    expected = evaluate.evaluate(other, digits, progress=False, **QUICK).values
    for content in (kept.read_text(), '{"digest": 3}', "[]", "{"):  # of another set, or damaged: measured again
        kept.write_text(content)
        assert evaluate.evaluate(other, digits, progress=False, resume_file=kept, **QUICK).values == expected


def test_the_whole_set_as_a_method(tmp_path, capsys):
    command = ["--config", "experiments/tiny.py", "--method", "whole", "--network.width", "4", "--network.depth", "1"]
    command += ["--evaluation.networks", "2", "--evaluation.whole-epochs", "2", "--progress", "false"]
    assert condense.main([*command, "--workdir", str(tmp_path / "whole")]) == 0
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert [name for name, accuracy in results["accuracy"].items() if accuracy] == ["whole_dataset"]
    assert len(results["accuracy"]["whole_dataset"]["values"]) == 2
    assert results["ipc"] is None
    assert results["accuracy"]["whole_dataset"]["mean"] > 0.15
    assert not (tmp_path / "whole" / "synthetic.npz").exists()
    assert not (tmp_path / "whole" / "evaluations").exists()
    assert condense.main([*command, "--workdir", str(tmp_path / "whole")]) == 0
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="makes no set"):
        condense.condense(Config(method="whole", workdir=tmp_path / "none"))


def test_a_set_without_metadata_is_judged_like_dm(small, digits):
    bare = dataclasses.replace(small, metadata={})
    assert isinstance(bare, SyntheticSet)
    accuracy = evaluate.evaluate(
        bare, digits, network=NetworkConfig(width=4, depth=1), progress=False, networks=1, epochs=1
    )
    assert 0 <= accuracy.mean <= 1
    assert np.isscalar(accuracy.mean)
