"""Arrays in memory, as a notebook has them: checked, condensed without a file, judged."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import dmjax
from dmjax import DM, Dataset
from dmjax.common.errors import UserError
from dmjax.config import Config, DataConfig, EvaluationConfig, NetworkConfig
from dmjax.data import load


def arrays_of(rng, n=12, shape=(8, 8)):
    labels = np.arange(n, dtype=np.int64) % 3
    images = np.clip(rng.normal(60 + 60 * labels[:, None, None], 30, (n, *shape)), 0, 255).astype(np.uint8)
    return images, labels


def test_arrays_are_the_same_data_as_an_npz_of_them(rng, tmp_path):
    (train, labels), (test, test_labels) = arrays_of(rng), arrays_of(rng, 6)
    names = {"train_images": train, "train_labels": labels, "test_images": test, "test_labels": test_labels}
    np.savez(tmp_path / "set.npz", **names)
    from_file = load(DataConfig("npz", tmp_path / "set.npz"), False)
    for images, tests in (
        (train, test),
        (jnp.asarray(train)[..., None], jnp.asarray(test)[..., None]),
        (train / 255, test.astype(np.float32) / np.float32(255)),
    ):
        dataset = Dataset.from_arrays(images, labels, tests, test_labels)
        assert dataset.fingerprint() == from_file.fingerprint()
        np.testing.assert_array_equal(dataset.mean, from_file.mean)
        assert dataset.name == "arrays"
    named = Dataset.from_arrays(train, labels, test, test_labels, class_names=["a", "b", "c"], name="letters")
    assert (named.name, named.class_names) == ("letters", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((12, 8, 8), np.int32)}, "train_images must be uint8 pixels"),
        ({"train_images": np.full((12, 8, 8), 1.5)}, "train_images must be fractions between 0 and 1"),
        ({"train_images": np.full((12, 8, 8), np.nan)}, "train_images must be fractions between 0 and 1"),
        ({"train_images": np.zeros((12, 8, 8, 2), np.uint8)}, r"train_images must be \[n, H, W\]"),
        ({"train_images": np.zeros((12, 64), np.uint8)}, r"train_images must be \[n, H, W\]"),
        ({"test_images": np.zeros((6, 9, 9), np.uint8)}, "train_images are"),
        ({"train_labels": np.zeros(12)}, "train_labels must be a vector of integers"),
        ({"train_labels": np.zeros(11, int)}, "12 train_images but 11 train_labels"),
        ({"train_labels": np.full(12, -1)}, "train_labels holds -1, out of range"),
        ({"train_labels": np.arange(12) % 2}, "test_labels holds 2, out of range"),
        ({"class_names": ["a", "b"]}, "label 2 out of range, class_names has 2 names"),
        ({"class_names": ["a", "b", "c", "d"]}, "class 'd' of data set 'arrays' has no training images"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8), "train_labels": np.zeros(0, int)}, "train_images is empty"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, int)}, "has no test images"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(rng, changes, message):
    (train, labels), (test, test_labels) = arrays_of(rng), arrays_of(rng, 6)
    arrays = {"train_images": train, "train_labels": labels, "test_images": test, "test_labels": test_labels}
    with pytest.raises(UserError, match=message) as error:
        Dataset.from_arrays(**{**arrays, **changes})
    assert "\n" not in str(error.value)


def test_images_of_a_pixel_or_two_are_refused():
    tiny = np.zeros((6, 2, 2), np.uint8), np.arange(6) % 3
    with pytest.raises(UserError, match="are 2x2; at least 4 pixels a side are needed"):
        Dataset.from_arrays(*tiny, *tiny)


def test_condensing_in_memory_writes_nothing(rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = Dataset.from_arrays(*arrays_of(rng), *arrays_of(rng, 6))
    config = Config(
        method=DM(iterations=3, batch_real=4),
        network=NetworkConfig(width=4, depth=1),
        evaluation=EvaluationConfig(networks=1, epochs=1),
        ipc=2,
        progress=False,
    )
    synthetic = dmjax.condense(config, dataset=dataset)
    assert synthetic.images.shape == (6, 8, 8, 1)
    losses = synthetic.metadata["losses"]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert list(tmp_path.iterdir()) == []
    assert len(dmjax.evaluate(synthetic, dataset, progress=False).values) == 1
    with pytest.raises(UserError, match=r"hand over a dmjax\.Dataset"):
        dmjax.evaluate(synthetic, progress=False)
    sets = dmjax.condense_runs(dataclasses.replace(config, runs=2), dataset)
    np.testing.assert_array_equal(sets[0].images, synthetic.images)
    assert (sets[1].images != synthetic.images).any()
    written = dmjax.condense(dataclasses.replace(config, workdir=tmp_path / "run"), dataset)
    np.testing.assert_array_equal(written.images, synthetic.images)
    assert (tmp_path / "run" / "synthetic.npz").exists()
