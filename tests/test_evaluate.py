"""Evaluation: which recipe a method is judged by, and what an interrupted evaluation keeps."""

import dataclasses
import json
import time

import jax
import numpy as np
import pytest

from dmjax import Dataset, condense, evaluate
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, Config, DataConfig, EvaluationConfig, NetworkConfig
from dmjax.data import load
from dmjax.data.synthetic_set import SyntheticSet, from_pixels
from dmjax.evaluation import judge, measuring, testing, training
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
        ({"method": "dc", "network": NetworkConfig("AlexNetBN")}, ("none", 300)),
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
    monkeypatch.setattr(testing, "test", lambda *_: testing.Tested(0.5, 1.0))
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


def test_networks_that_are_trained_at_the_same_time_are_what_they_are_alone(small, digits, monkeypatch):
    together = evaluate.evaluate(small, digits, progress=False, **QUICK)
    monkeypatch.setattr(judge, "_AT_ONCE_ON_CPU", 1)
    assert together.values == evaluate.evaluate(small, digits, progress=False, **QUICK).values
    assert len(set(together.values)) > 1


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_interrupted_evaluation_goes_on_with_the_next_network(small, digits, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(judge, "_AT_ONCE_ON_CPU", at_once)
    whole = evaluate.evaluate(small, digits, progress=False, **QUICK)
    train, trained = training.train, []
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 3), i) for i in range(3)]

    def stop_at_the_second(network, recipe, key, *arguments):
        trained.append(next(i for i, known in enumerate(keys) if (known == key).all()))
        if trained.count(1) == 1 and trained[-1] == 1:
            raise KeyboardInterrupt
        return train(network, recipe, key, *arguments)

    monkeypatch.setattr(training, "train", stop_at_the_second)
    kept = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(small, digits, progress=False, resume_file=kept, **QUICK)
    first, second, _ = json.loads(kept.read_text())["networks"]
    assert first["accuracy"] == whole.values[0]  # even where the second failed before the first was measured
    assert second is None
    again = evaluate.evaluate(small, digits, progress=False, resume_file=kept, **QUICK)
    assert again.values == whole.values
    assert [trained.count(i) for i in (0, 1)] == [1, 2]  # what was measured is not measured again
    assert again.training_seconds > 0
    other = dataclasses.replace(small, images=small.images * np.float32(0.5))
    expected = evaluate.evaluate(other, digits, progress=False, **QUICK).values
    for content in (kept.read_text(), '{"digest": 3}', "[]", "{"):  # of another set, or damaged: measured again
        kept.write_text(content)
        assert evaluate.evaluate(other, digits, progress=False, resume_file=kept, **QUICK).values == expected


def test_after_one_has_failed_no_further_networks_are_begun_and_none_is_lost():
    """With more of them waiting than are measured at the same time."""
    begun = []

    def measure_one(i):
        begun.append(i)
        if i == 1:
            raise RuntimeError("out of memory")
        time.sleep(0.3)  # ends after the other has failed
        return i

    known = []
    with pytest.raises(RuntimeError, match="out of memory"):
        known.extend(measuring._as_measured(measure_one, range(9), 2))
    assert begun == [0, 1]
    assert known == [(0, 0)]


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


HOSTILE = "import pathlib\npathlib.Path({marker!r}).touch()\nraise SystemExit\n"


def test_a_set_is_not_trusted_with_code(small, digits, tmp_path, monkeypatch, capsys):
    """Its metadata may name a network and a method of someone's own: neither is imported unless the user names it."""
    from dmjax.settings import fields

    marker = tmp_path / "was_imported"
    (tmp_path / "hostile.py").write_text(HOSTILE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = fields.to_dict(experiment.resolve(Config(network=NetworkConfig(width=4, depth=1))))
    network = {**config, "network": {**config["network"], "name": "hostile:Net"}}
    method = {**config, "method": {"name": "hostile:Method", "gain": 3}}
    for metadata, message in (
        (network, "code that a file is not trusted with: name it with --network.name"),
        (method, None),
    ):
        path = tmp_path / "set.npz"
        dataclasses.replace(small, metadata={"config": metadata}).save(path)
        flags = ["--synthetic", str(path), "--evaluation.networks", "1", "--evaluation.epochs", "1"]
        flags += ["--progress", "false"]
        status = evaluate.main(flags)
        error = capsys.readouterr().err
        assert status == (2 if message else 0), error
        assert (message or "") in error
        if message:
            with pytest.raises(UserError, match="not trusted"):
                evaluate.evaluate(path, digits, progress=False)
            assert evaluate.main([*flags, "--network.name", "MLP"]) == 0
        else:
            evaluate.evaluate(path, digits, networks=1, epochs=1, progress=False)
        assert not marker.exists()
        capsys.readouterr()
    dataclasses.replace(small, metadata={"config": network}).save(path)
    assert evaluate.main([*flags, "--network.name", "hostile:Net"]) == 2  # now it is named, and imported
    assert "SystemExit" in capsys.readouterr().err
    assert marker.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {"source": "nowhere"}}, "data.source must be one of"),
        ({"data": {"path": 5}}, "data.path must be a path"),
        ({"network": {"width": "wide"}}, "network.width must be of type int"),
        ({"method": {"name": "dm", "iterations": "many"}}, "iterations must be of type int"),
        ({"method": {"name": "nothing"}}, "unknown method 'nothing'"),
        ({"method": {"name": ["dm"]}}, "unknown method"),
        ({"evaluation": []}, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({"ipd": 1}, "unknown field 'ipd'"),
    ],
)
def test_metadata_that_is_no_configuration_is_one_line(small, digits, config, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate.evaluate(dataclasses.replace(small, metadata={"config": config}), digits)
    assert "\n" not in str(error.value)


def test_a_set_of_other_images_is_judged_with_a_word(small, digits, capsys):
    other = dataclasses.replace(small, metadata={**small.metadata, "dataset": {"fingerprint": "0" * 16}})
    evaluate.evaluate(other, digits, networks=1, epochs=1, progress=False)
    assert "made from other images than those of 'digits'" in capsys.readouterr().err
    same = dataclasses.replace(small, metadata={**small.metadata, "dataset": {"fingerprint": digits.fingerprint()}})
    evaluate.evaluate(same, digits, networks=1, epochs=1, progress=False)
    assert capsys.readouterr().err == ""


def test_top_five_accuracy_where_there_are_many_classes():
    """In what Python gets, in JSON and on the screen; ten classes have none."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 3)
    images = rng.integers(0, 256, (180, 8, 8)).astype(np.uint8)
    many = Dataset.from_arrays(images, labels, images[::3], labels[::3])
    small = from_pixels(many.images[:, :1], many.mean, many.std, many.class_names)
    found = evaluate.evaluate(
        small, many, network=NetworkConfig(width=4, depth=1), networks=2, epochs=2, progress=False
    )
    assert len(found.top5) == 2
    assert all(five >= one for five, one in zip(found.top5, found.values, strict=True))
    assert f", top-5 {100 * np.mean(found.top5):.1f} +- " in str(found)
    assert found.to_dict()["top5"] == list(found.top5)
