"""What the methods of the family of distribution matching are composed of: terms, units, factor, averages."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import make_dataset
from matched import FAMILY, PLAIN, config_of, problem_of, run, small

from dmjax import condense, methods, networks
from dmjax.common.errors import UserError
from dmjax.config import AugmentConfig, CheckpointConfig, NetworkConfig
from dmjax.data import factor, normalize
from dmjax.data.sampling import random_images
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.methods.base import Chunks
from dmjax.methods.cloud import Cloud
from dmjax.methods.match_config import MatchConfig
from dmjax.methods.matching import Matching
from dmjax.methods.optimizer import OptimizerConfig
from dmjax.run.devices import ClassSharding
from dmjax.settings import fields


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(np.random.default_rng(0))


@pytest.mark.parametrize("name", FAMILY)
def test_every_method_moves_its_images_alike_on_any_number_of_devices(dataset, name):
    """Three classes on one device, and on two, of which one has a class that only pads; and in chunks."""
    config = config_of(small(name))
    one, losses = run(config, dataset)
    assert np.isfinite(losses).all()
    start = jax.device_get(config.method.start(problem_of(config, dataset), config.seed))
    assert np.abs(one.images - start.images).max() > 0
    two, again = run(config, dataset, devices=2, length=1, times=2)
    for ours, theirs in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again, losses, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_rows_that_a_tpu_wants_longer_change_nothing(dataset, monkeypatch, devices):
    """Images of 8x8x1, as rows of 64 numbers and of 128."""
    config = config_of(small("dm"))
    one, losses = run(config, dataset, devices=devices)
    real = placed_rows(dataset, devices)
    monkeypatch.setattr("dmjax.run.devices._lanes", lambda device: 128)
    longer, again = run(config, dataset, devices=devices)
    assert (real.shape[-1], placed_rows(dataset, devices).shape[-1]) == (dataset.images[0, 0].size, 128)
    assert np.array_equal(placed_rows(dataset, devices)[..., : real.shape[-1]], real)
    assert np.array_equal(longer.images, one.images)
    assert np.array_equal(again, losses)


def placed_rows(dataset, devices):
    sharding = ClassSharding(dataset.num_classes, jax.local_devices()[:devices])
    return np.asarray(sharding.put_data(dataset.images, dataset.counts).images)


@pytest.mark.parametrize(
    ("name", "recompute"), [("iid", False), ("datadam", True), ("m3d", False), ("dance", True), ("blend", False)]
)
def test_chunks_of_images_change_nothing(dataset, name, recompute):
    config = config_of(small(name))
    whole, losses = run(config, dataset)
    parts, chunked = run(config, dataset, chunks=Chunks(1, 3, 2, recompute=recompute))
    np.testing.assert_allclose(chunked, losses, rtol=1e-4)
    np.testing.assert_allclose(parts.images, whole.images, rtol=1e-4, atol=1e-5)


def test_a_start_is_a_mosaic_of_real_images_and_unpacks(dataset):
    method = Matching(factor=2, pixels=True, batch_real=4)
    config = config_of(method, ipc=1)
    problem = problem_of(config, dataset)
    state = config.method.start(problem, 3)
    key = jax.random.fold_in(jax.random.key(3), 0)
    real = random_images(dataset, 4, key)
    np.testing.assert_allclose(state.images[1, 0], factor.pack(real[1], 2)[0] / 255, atol=1e-6)
    shown = config.method._shown(problem, key, jnp.asarray(state.images[1]))
    expected = normalize(factor.unpack(jnp.asarray(state.images[1]), 2), dataset.mean, dataset.std)
    np.testing.assert_allclose(shown, expected, rtol=1e-5, atol=1e-6)
    assert config.method.finish(problem, state).factor == 2


def test_no_more_training_images_are_taken_than_asked_for(dataset):
    """Those that are not drawn stand still."""
    config = config_of(Matching(factor=2, batch_synthetic=3, batch_real=4, optimizer=PLAIN))
    problem = problem_of(config, dataset)
    assert config.method.synthetic_images(config, dataset.image_shape) == 3
    images = jnp.asarray(config.method.start(problem, 0).images[0])
    shown = config.method._shown(problem, jax.random.key(0), images)
    every = dataclasses.replace(config.method, batch_synthetic=None)._shown(problem, jax.random.key(0), images)
    assert shown.shape == (3, *dataset.image_shape)
    found = [int(np.argmin([np.abs(a - b).max() for b in every])) for a in shown]
    assert len(set(found)) == 3
    np.testing.assert_allclose(shown, np.asarray(every)[found], atol=1e-6)


def test_a_rate_in_pixels_is_that_of_normalised_images_over_the_variance(dataset):
    """One step of the same gradient: p -= l dL/dp is n -= l / std^2 dL/dn, where no pixel leaves [0, 1]."""
    rate, std = 1e-3, float(dataset.std[0])
    shared = {"batch_real": 4, "iterations": 1}
    pixels = config_of(Matching(**shared, pixels=True, optimizer=OptimizerConfig("sgd", rate, ())))
    plain = config_of(Matching(**shared, optimizer=OptimizerConfig("sgd", rate / std**2, ())))
    ours, _ = run(pixels, dataset, length=1)
    theirs, _ = run(plain, dataset, length=1)
    expected = theirs.images * std + float(dataset.mean[0])
    inside = (expected > 0.001) & (expected < 0.999)
    np.testing.assert_allclose(ours.images[inside], expected[inside], atol=1e-5)
    assert ours.images.min() >= 0
    assert ours.images.max() <= 1


def test_the_average_is_that_of_the_images_along_the_way(dataset):
    """With a share of one half the weights of new images are 1, 1, 2/3 and 1/2."""
    config = config_of(Matching(batch_real=4, average=0.5))
    problem = problem_of(config, dataset)
    expected = 0.0
    for length, weight in ((1, 1), (2, 1), (3, 2 / 3), (4, 1 / 2)):
        after, _ = run(config, dataset, length=length)
        expected = (1 - weight) * expected + weight * after.images
        np.testing.assert_allclose(after.average, expected, rtol=1e-5, atol=1e-5)
    made = config.method.finish(problem, after).images
    np.testing.assert_allclose(made, after.average * dataset.std + dataset.mean, rtol=1e-5, atol=1e-6)
    everything, _ = run(config_of(Matching(batch_real=4, average=1.0)), dataset, length=4)
    each = [run(config_of(Matching(batch_real=4, average=1.0)), dataset, length=n)[0].images for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(everything.average, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)


def test_a_network_that_is_its_own_expert_is_passed_once(dataset):
    """With the features and the cross entropy of one pass, images move as with those of two."""
    method = Matching(batch_real=4, match=MatchConfig(networks="pool", calibration=2.0, expert="same"))
    once, losses = run(config_of(method), dataset)
    two = dataclasses.replace(method, match=dataclasses.replace(method.match, fresh=1e-30))
    twice, again = run(config_of(two), dataset)
    np.testing.assert_allclose(losses, again, rtol=1e-5)
    np.testing.assert_allclose(once.images, twice.images, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_sum_of_its_terms(dataset, rng):
    clouds = [
        Cloud(rng.normal(size=(n, 6)).astype(np.float32), np.ones(n, np.float32), (), rng.normal(size=(n, 2, 2, 3)))
        for n in (5, 3)
    ]
    clouds = [cloud._replace(last_map=cloud.last_map.astype(np.float32)) for cloud in clouds]
    key, mean = jax.random.key(0), clouds[1].features.mean(axis=0)
    past = np.zeros(6, np.float32)

    def terms(settled=1.0, **match):
        method = Matching(match=MatchConfig(**match))
        return float(method._terms(*clouds, mean, (past, settled) if method.match.history else None))

    alone = [
        terms(local_covariance=0.5),
        terms(centralization=2.0),
        terms(history=3.0),
    ]
    assert min(alone) > 0
    assert terms(0.0, history=3.0) == 0
    np.testing.assert_allclose(alone[2], 3 * (mean**2).mean(), rtol=1e-5)
    together = terms(local_covariance=0.5, centralization=2.0, history=3.0)
    np.testing.assert_allclose(together, sum(alone), rtol=1e-5)
    kinds = {kind: Matching(match=MatchConfig(distance=kind)).distance(key, *clouds) for kind in ("mean", "covariance")}
    assert kinds["covariance"] > kinds["mean"]


def test_history_is_a_running_mean_of_the_embedding(dataset):
    config = config_of(small("dsdm", **{"match.history": 1.0}))
    state, _ = run(config, dataset, length=1)
    assert state.moves == 1
    assert np.abs(state.history).max() > 0
    later, _ = run(config, dataset, length=2)
    difference = np.abs(later.history - state.history).max()
    assert 0 < difference < 0.05 * np.abs(state.history).max()  # a hundredth of the way


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"match.accuracy": (0.1, 0.2)}, "match.accuracy chooses among trained networks; give --match.networks pool"),
        ({"match.fresh": 0.5}, "match.fresh replaces trained networks; give --match.networks pool or trained or"),
        ({"match.calibration": 1.0}, "match.calibration needs trained networks"),
        (
            {"match.calibration": 1.0, "match.networks": "trained", "match.expert": "later"},
            "match.expert later chooses among the states of a pool",
        ),
        ({"match.layers": (1, 1), "match.distance": "attention"}, "match.layers names an activation twice"),
        ({"queue.start": 5, "queue.size": 2}, "queue.start 5 is more than fit in a queue of --queue.size 2"),
        (
            {"match.networks": "queue", "match.calibration": 1.0, "match.expert": "later"},
            "match.expert later chooses among the states of a pool",
        ),
        ({"match.exponent": 0.5}, "match.exponent must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        config_of(fields.replace(Matching(), changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 3}, "factor 3 does not divide images of 8x8; choose another one"),
        ({"factor": 2, "ipc": 2}, "8 images of each class are needed to fill 2 with 4 each, and class '2' has 5"),
        ({"match.layers": (3,), "match.distance": "attention"}, "match.layers 3: the network has activations 1 to 2"),
    ],
)
def test_settings_that_do_not_fit_the_images(dataset, changes, message):
    config = config_of(fields.replace(Matching(), {k: v for k, v in changes.items() if k != "ipc"}))
    config = dataclasses.replace(config, ipc=changes.get("ipc", 1))
    with pytest.raises(UserError, match=message):
        config.method.check(config, dataset)


def test_a_network_without_maps_has_no_local_covariance(dataset):
    config = dataclasses.replace(config_of(small("iid")), network=networks.resolve(NetworkConfig(name="MLP")))
    with pytest.raises(UserError, match=r"match\.local_covariance needs feature maps, which MLP does not give"):
        config.method.check(config, dataset)


def test_defaults_follow_the_images_per_class():
    """The authors' settings, as numbers."""

    def of(name, ipc):
        return config_of(methods.create(name), ipc=ipc).method

    assert (of("idm", 1).batch_real, of("idm", 10).batch_real) == (5000, 256)
    assert (of("idm", 1).queue.every, of("idm", 10).queue.every) == (5, 30)
    assert (of("idm", 10).match.calibration, of("idm", 50).match.calibration) == (0.5, 0.1)
    assert (of("dance", 1).optimizer.learning_rate, of("dance", 50).optimizer.learning_rate) == (0.02, 1.0)
    assert of("dsdm", 10).optimizer.learning_rate == pytest.approx(0.2)  # theirs is 0.1 at ten, in proportion
    assert of("dance", 1).match.calibration == 1
    assert of("dm", 1).match.calibration == 0
    assert of("ncfm", 1).optimizer.learning_rate == 1e-3
    assert (of("datadam", 50).optimizer.learning_rate, of("datadam", 100).optimizer.learning_rate) == (1, 10)
    assert [of(name, 1).factor for name in FAMILY] == [1, 1, None, 2, 2, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("shape", "ipc", "factor"),
    [
        ((32, 32, 3), 1, 4),
        ((32, 32, 3), 10, 2),
        ((28, 28, 1), 1, 2),  # a quarter of it would be 7 pixels
        ((64, 64, 3), 9, 4),
        ((30, 30, 3), 1, 3),
        ((31, 31, 3), 1, 1),
        ((32, 20, 3), 1, 2),
        ((8, 8, 1), 1, 1),
    ],
)
def test_the_factor_of_blend_suits_the_images(shape, ipc, factor):
    config = config_of(methods.create("blend"), ipc=ipc)
    assert config.method.factor_of(config, shape) == factor
    assert dataclasses.replace(config.method, factor=5).factor_of(config, shape) == 5


def test_matching_has_augmentations_of_its_own():
    config = config_of(methods.create("dance"), augment=AugmentConfig(strategy="flip_scale"))
    assert config.method.augmentation(config) == AugmentConfig("color_crop_cutout", composite=True)
    config = config_of(methods.create("dm"), augment=AugmentConfig(strategy="flip_scale"))
    assert config.method.augmentation(config) == config.augment


@pytest.mark.parametrize("name", ["idm", "dsdm", "blend"])
def test_a_run_that_was_killed_ends_in_the_same_bytes(dataset, tmp_path, name):
    """Queue, history, average and trained networks are taken up again after the second of four iterations."""
    plain = config_of(small(name), checkpoint=CheckpointConfig(every=2), chunk=2, images_every=0)
    config = dataclasses.replace(plain, pretrained=dataclasses.replace(plain.pretrained, path=tmp_path / "pool"))
    evaluation = dataclasses.replace(config.evaluation, networks=1, epochs=1, random_real=False)
    config = dataclasses.replace(config, evaluation=evaluation)
    whole, killed = (dataclasses.replace(config, workdir=tmp_path / folder) for folder in ("whole", "killed"))
    expected = condense.condense(whole, dataset)
    condense.condense(killed, dataset)
    (killed.workdir / "synthetic.npz").unlink()
    shutil.rmtree(killed.workdir / "checkpoints" / "4")
    np.testing.assert_array_equal(condense.condense(killed, dataset).images, expected.images)


def test_any_combination_from_the_command_line(capsys, tmp_path):
    flags = (
        *("--config", "experiments/tiny.py", "--workdir", tmp_path, "--method", "match", "--progress", "false"),
        *("--match.distance", "ncf", "--match.networks", "interpolated", "--match.calibration", 1, "--factor", 2),
        *("--network.width", 4, "--network.depth", 1, "--iterations", 2, "--pretrained.networks", 1),
        *("--batch-real", 8, "--match.frequencies", 16),
        *("--pretrained.epochs", 1, "--pretrained.path", tmp_path / "pool", "--evaluation.networks", 1),
        *("--evaluation.epochs", 1, "--evaluation.whole-dataset", "false"),
    )
    assert condense.main([str(flag) for flag in flags]) == 0
    made = SyntheticSet.load(tmp_path / "synthetic.npz")
    assert made.factor == 2
    assert made.metadata["config"]["method"]["match"]["distance"] == "ncf"
    capsys.readouterr()
    bad = ["--config", "experiments/tiny.py", "--factor", "3", "--workdir", str(tmp_path / "b")]
    assert condense.main(bad) == 2
    assert capsys.readouterr().err == "error: factor 3 does not divide images of 8x8; choose another one\n"
