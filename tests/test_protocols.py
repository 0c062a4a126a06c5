"""Evaluation protocols: their table, mixing of batches, a teacher's labels, and the best over epochs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmjax import Config, EvaluationConfig, NetworkConfig, evaluate, networks
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, DataConfig, PretrainedConfig
from dmjax.data import augment, load, synthetic_set
from dmjax.evaluation import on_device, pretrained, protocols, testing, training
from dmjax.evaluation.accuracy import BEST, Accuracy
from dmjax.evaluation.judge import judge, judge_random_real, teachers_digest
from dmjax.settings import experiment

SMALL = NetworkConfig(width=4, depth=1)
NONE = AugmentConfig("none")


@pytest.fixture(scope="module")
def dataset():
    return load(DataConfig())


def evaluation_of(**fields):
    rest = {name: fields.pop(name) for name in ("method", "data", "augment", "network") if name in fields}
    return experiment.resolve(Config(evaluation=EvaluationConfig(**fields), **rest)).evaluation


ALL = "color_crop_cutout_flip_scale_rotate"
IDC = "color_crop_flip_scale_rotate"
THIRDS, FIFTHS = (2 / 3, 5 / 6), (0.2, 0.4, 0.6, 0.8)
# optimizer, rate, decay, batch, epochs, schedule, factor, restart, strategy, composite, cutmix, labels, networks
TABLE = {
    "dm": ("sgd", 0.01, 5e-4, 256, 1000, (0.5,), 0.1, True, ALL, False, 0.0, "stored", 20),
    "dc": ("sgd", 0.01, 5e-4, 256, 300, (0.5,), 0.1, True, "none", False, 0.0, "stored", 20),
    "idc": ("sgd", 0.01, 5e-4, 64, 1000, THIRDS, 0.2, False, IDC, True, 0.5, "stored", 20),
    "datadam": ("sgd", 0.01, 5e-4, 64, 1800, (0.5,), 0.1, True, ALL, False, 0.0, "stored", 20),
    "ncfm": ("adamw", 1e-3, 0.01, 128, 2000, FIFTHS, 0.5, False, IDC, True, 0.5, "stored", 20),
    "ddranking": ("sgd", 0.01, 5e-4, 128, 1000, (0.5,), 0.1, False, ALL, False, 0.0, "hard", 5),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_protocols(name):
    found = evaluation_of(protocol=name)
    assert set(TABLE) == set(protocols.PROTOCOLS)
    assert TABLE[name] == (
        *(found.optimizer, found.learning_rate, found.weight_decay, found.batch_size, found.epochs, found.schedule),
        *(found.rate_factor, found.restart, found.strategy, found.composite, found.cutmix, found.labels),
        found.networks,
    )
    assert (found.momentum, found.mixup, found.resized_crop, found.temperature) == (0.9, 0, 0, 1)


def test_digits_are_not_flipped_and_mnist_is_not_mixed():
    no_flip = AugmentConfig("color_crop_cutout_scale_rotate")
    found = evaluation_of(protocol="idc", augment=no_flip, data=DataConfig(name="mnist"))
    assert (found.strategy, found.cutmix) == ("color_crop_scale_rotate", 0)
    assert evaluation_of(protocol="idc", augment=no_flip).cutmix == 0.5


def test_flags_come_before_the_protocol_and_it_before_the_methods_authors():
    assert evaluation_of(method="dc").epochs == 300
    assert evaluation_of(method="dc", protocol="ncfm").epochs == 2000
    found = evaluation_of(method="dc", protocol="ncfm", epochs=7, cutmix=0.0)
    assert (found.epochs, found.cutmix, found.batch_size) == (7, 0.0, 128)
    plain = evaluation_of()
    assert dataclasses.replace(plain, protocol="dm") == evaluation_of(protocol="dm")


def test_what_a_protocol_decided_is_open_again_for_another_one():
    decided = experiment.resolve(Config(evaluation=EvaluationConfig(protocol="ncfm", batch_size=32)))
    open_again = experiment.left_open(decided)
    assert open_again == EvaluationConfig(protocol="ncfm", batch_size=32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "idm"}, "evaluation.protocol must be one of dm, dc, idc, datadam, ncfm, ddranking"),
        ({"cutmix": 0.6, "mixup": 0.5}, "must be at most 1 together, not 0.6 and 0.5"),
        ({"schedule": (0.5, 0.2)}, "evaluation.schedule must be ascending, not 0.5 0.2"),
        ({"labels": "soft"}, "evaluation.labels must be one of stored, hard, teacher, teacher-views"),
        ({"optimizer": "adam"}, "evaluation.optimizer must be one of sgd, adamw"),
    ],
)
def test_values_that_cannot_be_right_are_one_line(fields, message):
    with pytest.raises(UserError) as error:
        evaluation_of(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def recipe_of(**fields):
    return training.Recipe(0.1, 0.0, 0.0, 8, NONE)._replace(**fields)


def config_of(tmp_path, **evaluation):
    given = EvaluationConfig(**{"networks": 2, "epochs": 3, "strategy": "none", "batch_size": 8, **evaluation})
    pool = PretrainedConfig(path=tmp_path / "pool", networks=2, epochs=1, states=1)
    return experiment.resolve(Config(network=SMALL, augment=NONE, evaluation=given, pretrained=pool, progress=False))


def set_of(dataset, labels=None, ipc=2):
    images = np.stack([dataset.images[c, :ipc] for c in range(10)])
    made = synthetic_set.from_pixels(images, dataset.mean, dataset.std, dataset.class_names)
    return made if labels is None else dataclasses.replace(made, labels=labels)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def examples_seen(monkeypatch, config, dataset, small):
    """What `judge` trains on, and the teachers that it hands to the training."""
    seen = []
    train = training.train

    def spy(network, recipe, key, examples, epochs, each, teachers):
        seen.append((examples, teachers))
        return train(network, recipe, key, examples, epochs, each, teachers)

    monkeypatch.setattr(training, "train", spy)
    judge(config, dataset, small)
    return seen[-1]


def test_labels_are_stored_hard_or_those_of_a_teacher(tmp_path, dataset, rng, monkeypatch):
    soft = rng.dirichlet(np.ones(10), 20).astype(np.float32)
    small = set_of(dataset, soft)
    examples, teachers = examples_seen(monkeypatch, config_of(tmp_path), dataset, small)
    np.testing.assert_array_equal(examples.labels, soft)
    assert teachers is None
    examples, _ = examples_seen(monkeypatch, config_of(tmp_path, labels="hard"), dataset, small)
    np.testing.assert_array_equal(examples.labels, soft.argmax(1))
    config = config_of(tmp_path, labels="teacher", temperature=2.0)
    examples, teachers = examples_seen(monkeypatch, config, dataset, small)
    assert teachers is None
    network = networks.create(config.network, 10, dataset.image_shape)
    pool = [of_one[-1].load() for of_one in pretrained.states(config, dataset)]
    x = (small.images - small.mean) / small.std
    expected = np.mean([softmax(np.asarray(network.apply(v, x)) / 2) for v in pool], axis=0)
    np.testing.assert_allclose(examples.labels, expected, rtol=1e-4, atol=1e-6)
    assert len(pool) == 2
    examples, teachers = examples_seen(
        monkeypatch,
        dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, labels="teacher-views")),
        dataset,
        small,
    )
    jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.stack(b)), teachers, *pool)


def test_one_set_is_labelled_once_and_a_new_draw_each_time(tmp_path, dataset, monkeypatch):
    config, labelled, learned = config_of(tmp_path, labels="teacher", networks=3, epochs=1), [], []
    teach, train = testing.teach, training.train
    monkeypatch.setattr(testing, "teach", lambda *arguments: labelled.append(teach(*arguments)) or labelled[-1])
    monkeypatch.setattr(training, "train", lambda *arguments: learned.append(arguments[3]) or train(*arguments))
    judge(config, dataset, set_of(dataset))
    assert len(labelled) == 1
    assert [examples.labels is labelled[0] for examples in learned] == [True] * 3
    judge_random_real(config, dataset, 1)
    assert len(labelled) == 4
    # In whichever order two at a time come.
    assert {id(examples.labels) for examples in learned[3:]} == {id(labels) for labels in labelled[1:]}
    assert not np.array_equal(learned[3].images, learned[4].images)


@pytest.mark.parametrize("labels", ["teacher", "teacher-views"])
def test_accuracies_under_one_teacher_are_not_those_under_another(tmp_path, dataset, monkeypatch, labels):
    """Neither those of an interrupted evaluation nor those of a study; the folder of the pool makes no difference."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, small, trained = config_of(tmp_path, labels=labels, networks=1), set_of(dataset), []
    train = training.train
    monkeypatch.setattr(training, "train", lambda *arguments: trained.append(1) or train(*arguments))

    def with_pool(**settings):
        pool = dataclasses.replace(config.pretrained, path=None, **settings)
        return dataclasses.replace(config, pretrained=pool)

    def measure(config):
        before = len(trained)
        judge(config, dataset, small, resume_file=tmp_path / "partial.json")
        return len(trained) - before

    assert [measure(c) for c in (config, with_pool())] == [1, 0]
    others = with_pool(networks=1), with_pool(epochs=2), with_pool(seed=1), with_pool(learning_rate=0.02)
    assert [measure(other) for other in others] == [1, 1, 1, 1]
    digests = [teachers_digest(c, dataset) for c in (config, with_pool(), *others)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5
    hard = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, labels="hard"))
    assert teachers_digest(hard, dataset) == ""


def test_a_teacher_of_views_labels_what_is_augmented_and_mixed(rng):
    """One step of SGD against the same step on the labels that NumPy makes of the images as the network sees them."""
    n, classes = 6, 3
    images = rng.normal(size=(n, 8, 8, 1)).astype(np.float32)
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    network = networks.create(NetworkConfig(name="MLP"), classes, (8, 8, 1))
    teachers = [networks.init(network, jax.random.key(i), (8, 8, 1)) for i in (10, 11, 12)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *teachers)
    key = jax.random.key(0)
    recipe = recipe_of(augment=AugmentConfig("crop_flip", composite=True), labels="teacher-views", temperature=0.5)
    plan = training.make_plan(recipe, n, 4)
    hard = on_device.Examples(images, np.zeros(n, np.int32), zero, one)
    state = training.advance(
        network, recipe, plan, training.start(network, plan, key, hard), key, hard, 1, teachers=stacked
    )
    order = np.asarray(state.order)
    augment_key = jax.random.split(jax.random.fold_in(key, 1))[1]
    draws = augment.sample_each(jax.random.fold_in(augment_key, 0), recipe.augment, (8, 8, 1), n)
    views = np.asarray(augment.apply_each(draws, images[order]))
    labels = np.mean([softmax(np.asarray(network.apply(v, views)) / 0.5) for v in teachers], axis=0)
    before = networks.init(network, jax.random.fold_in(key, 0), (8, 8, 1))["params"]

    def loss(params):
        return -(labels * jax.nn.log_softmax(network.apply({"params": params}, views))).sum(axis=1).mean()

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, jax.grad(loss)(before))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state.variables["params"], expected
    )


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_the_teachers_are_the_same_whatever_a_set_is_judged_by(tmp_path, dataset, protocol):
    config = config_of(tmp_path)
    teachers = pretrained.states(config, dataset)
    judged = config_of(tmp_path, protocol=protocol, strategy=None, batch_size=None, learning_rate=0.5)
    assert pretrained.states(judged, dataset) == teachers


def test_the_best_over_epochs_is_beside_the_last_and_labelled(tmp_path, dataset, monkeypatch):
    config = config_of(tmp_path, networks=1, epochs=20)
    last = judge(config, dataset, set_of(dataset))
    asked = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, best=True))
    values = []
    tested = testing.test
    monkeypatch.setattr(testing, "test", lambda *args: values.append(tested(*args)) or values[-1])
    found = judge(asked, dataset, set_of(dataset), resume_file=tmp_path / "partial.json")
    assert found.values == last.values
    assert len(values) == 10
    assert found.best == (max(value.accuracy for value in values),)
    assert found.best[0] >= found.values[0] == values[-1].accuracy
    assert f", {BEST} {100 * found.best[0]:.1f} +- 0.0 %" in str(found)
    assert BEST not in str(last)
    assert judge(asked, dataset, set_of(dataset), resume_file=tmp_path / "partial.json").best == found.best
    assert len(values) == 10
    assert Accuracy.pooled([found.to_dict(), found.to_dict()]).best == found.best * 2
    assert "best" not in last.to_dict()


def test_a_protocol_trains_and_is_a_function_of_its_seed(tmp_path, dataset):
    """AdamW, CutMix, composite augmentation and several drops, in few epochs."""
    config = config_of(tmp_path, protocol="ncfm", epochs=30, networks=1, strategy=None, batch_size=None)
    first, again = (judge(config, dataset, set_of(dataset)) for _ in range(2))
    assert first.values == again.values
    assert first.mean > 0.2
    packed = judge_random_real(config, dataset, 1, factor=2)
    assert packed.mean > 0.1


def one_line(run, capsys, *arguments):
    assert run([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_evaluate_takes_protocols_and_says_what_cannot_work(tmp_path, dataset, capsys):
    path = tmp_path / "set.npz"
    set_of(dataset).save(path)
    small = ("--network.width", 4, "--network.depth", 1, "--progress", "false")
    quick = (*small, "--evaluation.networks", 1, "--evaluation.epochs", 2)
    flags = [str(f) for f in ("--synthetic", path, *quick, "--evaluation.protocol", "idc", "--evaluation.best", "true")]
    assert evaluate.main(flags) == 0
    out = capsys.readouterr().out
    assert "protocol idc, 2 epochs" in out
    assert BEST in out
    flags = [str(f) for f in ("--random-real", 1, "--factor", 2, *quick)]
    assert evaluate.main(flags) == 0
    assert "1 random real images per class of factor 2" in capsys.readouterr().out
    error = one_line(evaluate.main, capsys, "--synthetic", path, *quick, "--evaluation.protocol", "idd")
    assert "'idd' is not one of dm, dc, idc, datadam, ncfm, ddranking" in error
    assert "--factor is for --random-real" in one_line(
        evaluate.main, capsys, "--synthetic", path, *quick, "--factor", 2
    )
    teacher = ("--evaluation.labels", "teacher")
    error = one_line(evaluate.main, capsys, "--synthetic", path, "--pool", "cross", *teacher)
    assert "leave out --pool cross" in error
    error = one_line(evaluate.main, capsys, "--random-real", 100, "--factor", 3, *quick)
    assert "lower --random-real or --factor" in error
    soft = np.full((20, 10), 0.2, np.float32)
    set_of(dataset, soft).save(path)
    assert "sum to" in one_line(evaluate.main, capsys, "--synthetic", path, *quick)


def test_a_teacher_needs_a_configuration_with_a_pool(tmp_path, dataset):
    config = config_of(tmp_path, labels="teacher", networks=1)

    @dataclasses.dataclass(frozen=True)
    class Bare:
        network: NetworkConfig
        augment: AugmentConfig
        evaluation: EvaluationConfig
        seed: int = 0
        progress: bool = False

    with pytest.raises(
        UserError, match="a teacher's labels need the networks of a configuration that has --pretrained"
    ):
        judge(Bare(config.network, config.augment, config.evaluation), dataset, set_of(dataset))
