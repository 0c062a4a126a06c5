"""Continual learning: the orders, the parts that memories are made of, and the study on scikit-learn's digits."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from dmjax import condense, methods
from dmjax.config import Config, NetworkConfig
from dmjax.data import digits, sampling, synthetic_set
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.evaluation.judge import judge
from dmjax.methods.distribution import DM
from dmjax.methods.match_config import MatchConfig
from dmjax.settings import experiment

SMALL = {
    "--config": "experiments/tiny.py",
    "--memory": 2,
    "--orders": 2,
    "--images-every": 0,
    "--chunk": 2,
    "--network.width": 4,
    "--network.depth": 1,
    "--progress": "false",
    "--checkpoint.every": 2,
    "--evaluation.networks": 2,
    "--evaluation.epochs": 3,
    "--pretrained.epochs": 1,
    "--pretrained.states": 1,
}
DM_SMALL = ("--iterations", "4", "--batch-real", "8")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import continual_learning

    return continual_learning


def flags_of(*arguments):
    """All flags of a start: the small ones, but for those that are given."""
    small = (text for flag, value in SMALL.items() if flag not in arguments for text in (flag, value))
    return [str(argument) for argument in (*small, *arguments)]


def run(study, *arguments):
    return study.main(flags_of(*arguments))


def results_of(folder):
    results = json.loads((folder / "results.json").read_text())
    return {name: results[name] for name in ("classes_seen", "accuracy", "orders")}


@pytest.mark.parametrize(
    ("seed", "first"),
    [
        (0, [26, 86, 2, 55, 75, 93, 16, 73, 54, 95, 53, 92]),
        (1, [80, 84, 33, 81, 93, 17]),
        (2, [83, 30, 56, 24, 16, 23]),
        (3, [93, 67, 6, 64, 96, 83]),
        (4, [20, 10, 96, 16, 63, 24]),
    ],
)
def test_the_orders_are_those_of_the_paper(study, seed, first):
    order = study.class_order(seed, 100)
    assert order[: len(first)].tolist() == first
    assert sorted(order) == list(range(100))


def test_a_data_set_of_some_classes():
    """Image by image: those of the classes, in their order, under new numbers."""
    dataset = digits.load(Config().data)
    classes = [7, 2, 4]
    some = dataset.of_classes(classes)
    images, labels = dataset.flat()
    mine, numbers = some.flat()
    assert some.class_names == ("7", "2", "4")
    np.testing.assert_array_equal(mine, np.concatenate([images[labels == c] for c in classes]))
    np.testing.assert_array_equal(numbers, np.repeat([0, 1, 2], [(labels == c).sum() for c in classes]))
    for number, c in enumerate(classes):
        of_class = some.test_images[some.test_labels == number]
        np.testing.assert_array_equal(of_class, dataset.test_images[dataset.test_labels == c])
    assert set(some.test_labels) == {0, 1, 2}
    assert some.test_labels.dtype == dataset.test_labels.dtype
    assert (some.name, *some.mean, *some.std) == (dataset.name, *dataset.mean, *dataset.std)
    everything = dataset.of_classes(range(10))
    assert everything.fingerprint() == dataset.fingerprint() != some.fingerprint()
    tested = dataset.tested_on([7, 2, 4])
    assert tested.class_names == dataset.class_names
    assert len(tested.test_images) == len(some.test_images)
    assert set(tested.test_labels) == {2, 4, 7}


def small_set(classes, labels=None):
    """Two images of every class, each filled with its class and a fraction."""
    pixels = np.array([[[c], [c + 0.5]] for c in classes], np.float32)[..., None, None] * np.ones((1, 1, 1, 4, 4, 1))
    names, one = [str(c) for c in classes], np.ones(1, np.float32)
    return synthetic_set.from_pixels(pixels.reshape(-1, 2, 4, 4, 1).astype(np.float32), one, one, names, None, labels)


def test_parts_of_a_set_join_to_the_set():
    whole = small_set(range(6))
    parts = [whole.of_classes(classes) for classes in ([4, 1], [0, 5], [3, 2])]
    assert [sorted(set(part.labels)) for part in parts] == [[1, 4], [0, 5], [2, 3]]
    assert synthetic_set.join(parts).digest() == synthetic_set.join([whole]).digest() == whole.digest()
    assert synthetic_set.join(parts[:2]).labels.tolist() == [0, 0, 1, 1, 4, 4, 5, 5]


@pytest.mark.parametrize("soft", [False, True])
def test_sets_of_a_step_become_some_classes_of_all(soft):
    """Every image is filled with the class that it has among all, which its label must say afterwards."""
    names = [str(c) for c in range(6)]

    def of_step(classes):
        labels = np.repeat(np.eye(2, dtype=np.float32) * 0.75 + 0.125, 2, axis=0).reshape(2, 2, 2) if soft else None
        return small_set(classes, labels).among(classes, names)

    joined = synthetic_set.join([of_step([4, 1]), of_step([5, 0])])
    assert joined.class_names == tuple(names)
    assert joined.hard_labels.tolist() == [0, 0, 1, 1, 4, 4, 5, 5]
    np.testing.assert_array_equal(joined.images[:, 0, 0, 0], [0, 0.5, 1, 1.5, 4, 4.5, 5, 5.5])
    if soft:
        np.testing.assert_allclose(joined.labels[0], [0.875, 0, 0, 0, 0, 0.125])
        np.testing.assert_allclose(joined.labels.sum(axis=1), 1)


def test_sets_that_do_not_belong_together_are_not_joined():
    with pytest.raises(ValueError, match="need the same classes"):
        synthetic_set.join([small_set([0, 1]), small_set([0, 1, 2])])


@pytest.mark.parametrize(
    ("method", "network", "separate"),
    [
        ("random", NetworkConfig(), True),
        (DM(), NetworkConfig(), True),
        (DM(), NetworkConfig(name="ConvNetBN"), False),
        (DM(match=MatchConfig(networks="pool")), NetworkConfig(), False),
        *((name, NetworkConfig(), False) for name in ("herding", "kcenter", "forgetting", "dsa", "dc")),
    ],
)
def test_which_methods_make_classes_one_by_one(method, network, separate):
    config = experiment.resolve(Config(method=methods.create(method), network=network))
    assert config.method.separates_classes(config) == separate


def test_what_dm_makes_of_a_class_depends_on_the_images_of_that_class_alone():
    """The other classes become noise, and the images of this one stay the same to the bit."""
    dataset = digits.load(Config().data)
    config = Config(method=DM(iterations=2, batch_real=8), network=NetworkConfig(width=4, depth=1), ipc=2)
    config = dataclasses.replace(config, progress=False)
    images = np.random.default_rng(0).integers(0, 256, dataset.images.shape, dtype=np.uint8)
    images[3] = dataset.images[3]
    one = condense(config, dataset).of_classes([3])
    other = condense(config, dataclasses.replace(dataset, images=images))
    np.testing.assert_array_equal(one.images, other.of_classes([3]).images)
    assert np.abs(one.images).max() > 0


def test_the_study_on_digits(study, tmp_path, capsys):
    """Table, curve, what each set is made of, and a second start that measures nothing anew."""
    flags = ("--workdir", tmp_path / "cl", "--methods", "random", "dm", "herding", *DM_SMALL)
    assert run(study, *flags, "--steps", 5) == 0
    first, table = results_of(tmp_path / "cl"), (tmp_path / "cl" / "table.md").read_text()
    out = capsys.readouterr().out
    assert table in out
    assert "| dm | one for all | " in table
    assert "| herding | one a step | " in table
    assert first["classes_seen"] == [2, 4, 6, 8, 10]
    assert first["orders"] == [study.class_order(seed, 10).tolist() for seed in (0, 1)]
    for curve in first["accuracy"].values():
        assert [len(point["values"]) for point in curve] == [4] * 5  # orders x networks
    assert sorted(path.name for path in (tmp_path / "cl/runs/dm").iterdir()) == ["all"]
    written = json.loads((tmp_path / "cl" / "results.json").read_text())
    assert "--iterations 4" in written["about"]["command"]  # flags of methods too
    assert written["methods"]["dm"]["iterations"] == 4
    with Image.open(tmp_path / "cl" / "continual_learning.png") as picture:
        picture.load()
        assert picture.width > 300

    # Herding's set of a step is of images of its two classes, and made with a network of two outputs.
    second = SyntheticSet.load(tmp_path / "cl/runs/herding/steps_5/order_1/step_2/synthetic.npz")
    classes, dataset = first["orders"][1][2:4], digits.load(Config().data)
    assert second.class_names == tuple(str(c) for c in classes)
    for number, c in enumerate(classes):
        real = dataset.images[c].astype(np.float32) / 255
        assert all(
            (np.abs(real - image).max(axis=(1, 2, 3)) == 0).any() for image in second.images[second.labels == number]
        )

    # The last point is the plain evaluation of the joined set, to the digit.
    settings = experiment.resolve(_config_of(tmp_path / "cl"))
    for order in (0, 1):
        whole = SyntheticSet.load(tmp_path / "cl/runs/dm/all/synthetic.npz")
        plain = judge(dataclasses.replace(settings, seed=order), dataset, whole)
        assert list(plain.values) == first["accuracy"]["dm"][-1]["values"][2 * order : 2 * order + 2]

    # A second start makes nothing; with other steps, dm is not made anew, and ends at the same point.
    assert run(study, *flags, "--steps", 5) == 0
    assert " s compiling" not in capsys.readouterr().out
    assert results_of(tmp_path / "cl") == first
    assert (tmp_path / "cl" / "table.md").read_text() == table
    assert run(study, "--workdir", tmp_path / "cl", "--methods", "dm", *DM_SMALL, "--steps", 1) == 0
    out = capsys.readouterr().out
    assert "condense" not in out
    assert out.count("after_") == 2
    assert results_of(tmp_path / "cl")["accuracy"]["dm"][-1]["values"] == first["accuracy"]["dm"][-1]["values"]


def _config_of(folder):
    from dmjax.settings import fields

    stored = json.loads((folder / "config.json").read_text())
    return dataclasses.replace(fields.config_from_dict(stored["config"]), progress=False)


def test_a_networks_outputs_are_all_classes_and_only_seen_ones_are_tested(study, tmp_path, monkeypatch):
    judged = []

    def spy(settings, dataset, synthetic, *_, **__):
        judged.append((dataset.num_classes, set(dataset.test_labels.tolist()), set(synthetic.labels.tolist())))
        return study.Accuracy.of([0.5])

    monkeypatch.setattr("dmjax.run.study.judge", spy)
    assert run(study, "--workdir", tmp_path / "cl", "--methods", "random", "--steps", 5, "--orders", 1) == 0
    order = study.class_order(0, 10)
    assert judged == [(10, set(order[:n].tolist()), set(order[:n].tolist())) for n in (2, 4, 6, 8, 10)]


def test_random_memories_are_images_of_their_classes(study, tmp_path):
    """Those that `random_images` draws from the whole data set with the seed of the study."""
    assert run(study, "--workdir", tmp_path / "cl", "--methods", "random", "--steps", 2, "--orders", 1) == 0
    dataset = digits.load(Config().data)
    drawn = sampling.random_images(dataset, 2, jax.random.fold_in(jax.random.key(0), 0))
    made = SyntheticSet.load(tmp_path / "cl/runs/random/all/synthetic.npz")
    np.testing.assert_array_equal(made.images, drawn.reshape(20, 8, 8, 1).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", 11), "digits has 10 classes, which do not split evenly into 11 steps; --steps may be 1, 2, 5, 10"),
        (("--steps", 3), "do not split evenly into 3 steps; --steps may be 1, 2, 5, 10"),
        (("--memory", 1000), "1000 asks for more images than class"),
        (("--methods", "randon"), "unknown method 'randon'"),
        (("--methods", "whole"), "whole makes no set to remember; leave it out of --methods"),
        (("--methods",), "--methods takes at least one value"),
        (("--methods", "herding", "--steps", 10), "herding cannot learn from steps of one class"),
        (("--methods", "herding", "--pretrained.path", "trained"), "leave it out"),
        (("--methods", "random", "--iterations-of", "dm", 3), "iterations_of: 'dm' is not among the methods"),
        (("--methods", "random", "--iterations-of", "random", 3), "iterations_of: random has no iterations"),
        (("--methods", "random", "--seed", 2**32 - 1), "lower --seed"),
        (("--runs", 2), "a study makes one set of each"),
        (("--methods", "dm", "--network.norm", "batch", "--class-chunk", 1), "class_chunk cannot be 1 with batch norm"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(study, tmp_path, capsys, flags, message):
    assert run(study, *flags, "--workdir", tmp_path / "cl") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "cl").exists()


def test_a_method_is_tuned_on_its_own_and_other_settings_are_refused_afterwards(study, tmp_path, capsys):
    flags = ("--workdir", tmp_path / "cl", "--methods", "random", "dm", "--batch-real", 8, "--steps", 1, "--orders", 1)
    assert run(study, *flags, "--iterations-of", "dm", 2, "--learning-rates-of", "dm", 0.25) == 0
    made = json.loads((tmp_path / "cl/runs/dm/all/config.json").read_text())["config"]["method"]
    assert (made["iterations"], made["optimizer"]["learning_rate"]) == (2, 0.25)
    assert run(study, *flags, "--iterations-of", "dm", 4, "--learning-rates-of", "dm", 0.25) == 2
    assert "iterations: 2 -> 4" in capsys.readouterr().err


@pytest.mark.slow
def test_dsa_condenses_every_step_from_its_classes_alone(study, tmp_path):
    """Other images of the other classes leave the set of a step as it is, to the bit."""
    flags = ("--methods", "dsa", "--steps", 5, "--orders", 1, "--iterations", 1, "--batch-real", 8)
    flags = (*flags, "--gradient.outer", 2, "--gradient.inner", 1, "--workdir", tmp_path / "cl")
    assert run(study, *flags) == 0
    dataset, classes = digits.load(Config().data), study.class_order(0, 10)[2:4]
    images = np.zeros_like(dataset.images)
    images[classes] = dataset.images[classes]
    config = _config_of(tmp_path / "cl/runs/dsa/steps_5/order_0/step_2")
    alone = condense(config, dataclasses.replace(dataset, images=images).of_classes(classes))
    made = SyntheticSet.load(tmp_path / "cl/runs/dsa/steps_5/order_0/step_2/synthetic.npz")
    np.testing.assert_array_equal(made.images, alone.images)
    assert made.class_names == tuple(str(c) for c in classes)


@pytest.mark.slow
def test_a_study_that_is_killed_ends_in_the_same_table(study, run_command, tmp_path):
    """SIGKILL in the middle of the sets and in the middle of the accuracies; then the same command once more."""
    flags = flags_of("--methods", "herding", "dm", *DM_SMALL, "--steps", 2, "--orders", 1)
    assert study.main([*flags, "--workdir", str(tmp_path / "whole")]) == 0
    for last in ("herding/steps_2/order_0/step_1/condense", "herding/steps_2/order_0/after_1"):
        process = run_command.start("experiments.continual_learning", *flags, "--workdir", tmp_path / "killed")
        for line in process.stdout:
            if line.startswith(last):
                break
        process.kill()
        process.communicate()
        assert not (tmp_path / "killed" / "table.md").exists()
    done = run_command("experiments.continual_learning", *flags, "--workdir", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert "step_1/condense" not in done.stdout
    assert (tmp_path / "killed/table.md").read_text() == (tmp_path / "whole/table.md").read_text()
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
