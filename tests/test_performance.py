"""Performance matching: what dd, ld and kip have in common, on any number of devices and from files."""

import dataclasses
import json
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import CLASSES, METHODS, config_of, make_dataset, run

import dmjax
from dmjax import Config, NetworkConfig, condense, evaluate
from dmjax.common.errors import UserError
from dmjax.config import EvaluationConfig
from dmjax.methods import performance
from dmjax.methods.base import Chunks
from dmjax.methods.kernel import KIP, KernelConfig
from dmjax.methods.labels import LD
from dmjax.methods.unrolled import DD
from dmjax.run.devices import ClassSharding
from dmjax.run.own_evaluation import judge_own
from dmjax.run.program import make_problem
from dmjax.settings import experiment

SMALL = (
    *("--config", "experiments/tiny.py", "--network.width", "4", "--network.depth", "1", "--images-every", "0"),
    *("--evaluation.networks", "2", "--evaluation.epochs", "2", "--evaluation.whole-dataset", "false"),
    *("--evaluation.random-real", "false", "--progress", "false"),
)


@pytest.fixture
def dataset(rng):
    return make_dataset(rng)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_devices_agree_and_need_not_divide_the_classes(dataset, name, devices):
    config = config_of(METHODS[name])
    (_, alone, losses), (_, spread, others) = (run(config, dataset, n, length=2) for n in (1, devices))
    np.testing.assert_allclose(losses, others, rtol=1e-4)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, alone, spread)


@pytest.mark.parametrize("name", ["dd", "ld second order"])
def test_chunks_of_real_images_change_nothing(dataset, name):
    config = config_of(METHODS[name])
    whole, parts = run(config, dataset)[1], run(config, dataset, chunks=Chunks(None, 5, None))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole, parts)


def test_a_class_weighs_as_much_as_it_has_images(dataset):
    """12 targets of 3 classes are 4 of each, which stand for 9, 7 and 5 of 21 images."""
    data = ClassSharding(CLASSES, jax.local_devices()[:1]).put_data(dataset.images, dataset.counts)
    data = jax.tree.map(lambda leaf: leaf[0], data)
    problem = make_problem(config_of(DD()), dataset)
    draw = jax.vmap(lambda _: performance.draw_targets(problem, jax.random.key(0), data, 12), axis_name="devices")
    targets = jax.tree.map(lambda leaf: leaf[0], draw(jnp.zeros(1)))
    np.testing.assert_array_equal(targets.labels, np.repeat([0, 1, 2], 4))
    np.testing.assert_allclose(targets.weights, np.repeat(np.array([9, 7, 5]) / 21 / 4, 4), rtol=1e-6)
    for c in range(CLASSES):
        drawn = np.asarray(targets.images[4 * c : 4 * c + 4])
        real = (dataset.images[c, : dataset.counts[c]] / 255 - dataset.mean) / dataset.std
        apart = np.abs(drawn[:, None] - real[None]).max(axis=(2, 3, 4))
        assert (apart.min(axis=1) < 1e-5).all()  # images of the class,
        assert len(set(apart.argmin(axis=1))) == 4  # none of them twice


@pytest.mark.parametrize(
    ("method", "changed", "message"),
    [
        (DD(iterations=2), {"step_sizes": np.zeros((3, 0), np.float32)}, "step_sizes of the set is damaged"),
        (DD(iterations=2), {"step_sizes": np.full((3, 2), -1, np.float32)}, "they must be above 0"),
        (DD(iterations=2), {"step_sizes": np.ones((3, 3), np.float32)}, "equally many of each class in each of 3"),
        (DD(iterations=2), {"known_key": np.ones(2, np.float32)}, "known_key of the set is damaged"),
        (LD(iterations=2), {"steps": np.int32([3, 4])}, "steps of the set is damaged: it is int32 .2., and should be"),
        (LD(iterations=2), {"steps": np.int32(-5)}, "they must be above 0, not -5"),
        (KIP(iterations=2), {"regression_labels": np.zeros((6, 2), np.float32)}, "regression_labels of the set is"),
    ],
)
def test_damaged_arrays_of_a_set_are_one_line(dataset, method, changed, message):
    config = Config(method=method, network=NetworkConfig(name="MLP"), ipc=2, progress=False)
    made = condense.condense(config, dataset)
    damaged = dataclasses.replace(made, extra={**made.extra, **changed})
    with pytest.raises(UserError, match=message):
        judge_own(experiment.resolve(config), dataset, damaged)


def test_images_that_are_all_alike_or_in_another_order_are_one_line(dataset):
    method = KIP(iterations=2, kernel=KernelConfig(ridge=0.0))
    config = Config(method=method, network=NetworkConfig(name="MLP"), ipc=2, progress=False)
    made = condense.condense(config, dataset)
    alike = dataclasses.replace(made, images=np.repeat(made.images[:1], 6, axis=0))
    with pytest.raises(UserError, match="kernel of these 6 images is singular"):
        judge_own(experiment.resolve(config), dataset, alike)
    config = dataclasses.replace(config, method=DD(iterations=2))
    made = condense.condense(config, dataset)
    with pytest.raises(UserError, match="in the order of their classes"):
        judge_own(experiment.resolve(config), dataset, dataclasses.replace(made, labels=made.labels[::-1]))


@pytest.mark.parametrize("method", [DD(iterations=3), LD(iterations=3), KIP(iterations=3, learn_labels=True)])
def test_a_set_is_judged_in_both_ways_from_its_file_alone(dataset, tmp_path, method):
    config = Config(method=method, network=NetworkConfig(name="MLP"), ipc=2, progress=False)
    config = dataclasses.replace(config, evaluation=EvaluationConfig(networks=2, epochs=2))
    made = condense.condense(config, dataset)
    made.save(tmp_path / "set.npz")
    kept = dmjax.SyntheticSet.load(tmp_path / "set.npz")
    assert kept.digest() == made.digest()
    assert set(kept.extra) == set(made.extra) != set()
    resolved = experiment.resolve(config)
    own = judge_own(resolved, dataset, kept)
    assert own == dataclasses.replace(judge_own(resolved, dataset, made), training_seconds=own.training_seconds)
    assert len(own.values) == (2 if method.own_evaluation_is_random else 1)
    assert len(evaluate.evaluate(kept, dataset, networks=1, epochs=1, progress=False).values) == 1
    bare = dataclasses.replace(kept, extra={})
    with pytest.raises(UserError, match=f"the set has no '.*', which {method.name} leaves in it"):
        judge_own(resolved, dataset, bare)


@pytest.mark.parametrize(
    ("method", "network", "message"),
    [
        (DD(distill_steps=3), "MLP", "distill_steps 3 must divide the 2 images per class"),
        (LD(), "ConvNetBN", "ld does not train networks with batch norm"),
        (KIP(kernel=KernelConfig(hidden_layers=4)), "MLP", "kernel.hidden_layers must be between 1 and 3, not 4"),
        (KIP(kernel=KernelConfig(name="cntk")), "MLP", "kernel.name must be one of ntk, rbf, not 'cntk'"),
        (KIP(kernel=KernelConfig(ridge=-1.0)), "MLP", "kernel.ridge must be at least 0"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(method, network, message):
    with pytest.raises(UserError, match=message):
        config_of(method, network=network)


@pytest.mark.slow  # what is killed and goes on is in tests/test_resume.py, whatever the method is
@pytest.mark.parametrize("method", ["kip", "dd", "ld"])
def test_a_killed_run_ends_in_the_same_bytes(run_command, tmp_path, method):
    flags = (*SMALL, "--method", method, "--chunk", "2", "--checkpoint.every", "4", "--ipc", "2")
    whole = run_command("dmjax.condense", *flags, "--iterations", "12", "--workdir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    process = run_command.start("dmjax.condense", *flags, "--iterations", "12", "--workdir", tmp_path / "killed")
    while process.poll() is None:
        if (tmp_path / "killed" / "checkpoints" / "4").exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)  # without a pause the loop would take a core
    process.communicate()
    again = run_command("dmjax.condense", *flags, "--iterations", "12", "--workdir", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    first, second = (np.load(tmp_path / name / "synthetic.npz") for name in ("whole", "killed"))
    for name in first.files:
        if name != "metadata":
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    accuracy = json.loads((tmp_path / "killed" / "results.json").read_text())["accuracy"]
    assert set(accuracy["own"]) >= {"mean", "std", "values"}
