"""ZCA: decorrelated pixels, undone for pictures, kept with the set."""

import dataclasses

import numpy as np
import pytest
from conftest import ROOT
from sklearn.datasets import load_digits

from dmjax import KIP, Config, Dataset, NetworkConfig, SyntheticSet, condense, data, evaluate
from dmjax.common.errors import UserError
from dmjax.config import DataConfig, EvaluationConfig
from dmjax.data import normalize
from dmjax.data.sampling import hold_out
from dmjax.data.whitening import fit
from dmjax.evaluation import judge
from dmjax.settings import experiment


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    return Dataset.from_arrays(images[:1400], labels[:1400], images[1400:], labels[1400:])


def test_whitened_pixels_have_the_covariance_that_numpy_says(digits):
    """Eigenvalues s become s / (s + r mean(s)); every image of the training set takes part."""
    white = digits.whitened(0.1)
    images, labels = digits.flat()
    flat = normalize(images, digits.mean, digits.std).reshape(len(images), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    wanted = (vectors * (values / (values + 0.1 * values.mean()))) @ vectors.T
    theirs, their_labels = white.flat()
    assert theirs.dtype == np.float32
    np.testing.assert_array_equal(labels, their_labels)
    theirs = theirs.reshape(len(theirs), -1).astype(np.float64)
    np.testing.assert_allclose(np.cov(theirs.T, bias=True), wanted, atol=1e-4)
    np.testing.assert_allclose(theirs.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_array_equal((white.mean, white.std), ([0], [1]))


def test_whitening_is_undone_to_the_pixel(digits):
    white = digits.whitened(0.1)
    pixels = np.round(white.whitening.undo(white.test_images) * 255)
    np.testing.assert_array_equal(pixels, digits.test_images)
    assert (white.images[5, digits.counts[5] :] == 0).all()  # padding stays what it was


def test_data_sets_that_were_whitened_otherwise_have_other_fingerprints(digits):
    names = {d.fingerprint() for d in (digits, digits.whitened(0.1), digits.whitened(0.2))}
    assert len(names) == 3
    assert digits.whitened(0.1).fingerprint() == digits.whitened(0.1).fingerprint()


def test_parts_of_a_whitened_data_set_have_fingerprints_of_their_own(digits):
    """Else networks that were trained on one part would be taken for another."""
    white = digits.whitened(0.1)
    rest, images, _ = hold_out(white, 0.1, 0)
    assert rest.images.dtype == images.dtype == np.float32
    parts = [white, white.of_classes([0, 1]), white.of_classes([2, 3]), white.tested_on([0]), rest]
    assert len({part.fingerprint() for part in parts}) == 5


def test_a_set_keeps_its_whitening_and_shows_pictures_without_it(digits, tmp_path):
    white = digits.whitened(0.1)
    config = Config(method=KIP(iterations=2), network=NetworkConfig(name="MLP"), ipc=1, progress=False)
    made = condense.condense(config, white)
    made.save(tmp_path / "set.npz")
    kept = SyntheticSet.load(tmp_path / "set.npz")
    np.testing.assert_array_equal(kept.pixels(), made.pixels())
    assert kept.digest() == made.digest()
    # Two iterations do not carry an image away from the real one that it was.
    nearest = [
        np.abs(digits.images[c, : digits.counts[c]] - 1.0 * kept.pixels()[c]).mean((1, 2, 3)).min() for c in range(10)
    ]
    assert np.median(nearest) < 25
    settings = {"networks": 1, "epochs": 1, "progress": False}
    assert evaluate.evaluate(kept, white, **settings).values
    with pytest.raises(UserError, match="the synthetic set is whitened, the data are not"):
        evaluate.evaluate(kept, digits, **settings)
    with pytest.raises(UserError, match="was whitened otherwise than the data"):
        evaluate.evaluate(kept, digits.whitened(0.5), **settings)
    with pytest.raises(UserError, match="the synthetic set is not whitened, the data are"):
        judge.check_fits(dataclasses.replace(kept, whitening=None), white)


def test_the_flag_whitens_what_a_source_reads():
    plain, white = (data.load(DataConfig(source="digits", zca=zca)) for zca in (False, True))
    np.testing.assert_allclose(white.images, plain.whitened(0.1).images, atol=1e-5)


def test_damaged_whitening_is_one_line(digits, tmp_path):
    white = digits.whitened(0.1)
    made = data.synthetic_set.from_pixels(
        white.images[:, :1], white.mean, white.std, white.class_names, whitening=white.whitening
    )
    made.save(tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz") as archive:
        arrays = dict(archive)
    for name, bad in (("centre", np.zeros(3, np.float32)), ("matrix", np.full((64, 64), np.nan, np.float32))):
        np.savez(tmp_path / "bad.npz", **{**arrays, f"whitening_{name}": bad})
        with pytest.raises(UserError, match=f"the whitening needs a finite float32 array {name}"):
            SyntheticSet.load(tmp_path / "bad.npz")


def test_what_cannot_be_whitened(digits):
    with pytest.raises(UserError, match="covariance of the pixels is singular"):
        digits.whitened(0.0)  # corners of these images are always black
    large = np.zeros((2, 3, 40, 40, 3), np.uint8)
    with pytest.raises(UserError, match="at most 4096 values, these have 4800"):
        fit(large, np.int32([3, 3]), np.zeros(3, np.float32), np.ones(3, np.float32), 0.1)


def test_condensing_whitened_images_from_the_command_line(tmp_path, monkeypatch):
    """Distribution matching, augmentation and evaluation go on as before, in whitened units."""
    monkeypatch.chdir(ROOT)
    config = experiment.load_config("experiments/tiny.py")
    evaluation = EvaluationConfig(networks=1, epochs=1)
    config = dataclasses.replace(config, data=DataConfig(source="digits", zca=True), evaluation=evaluation, chunk=2)
    config = dataclasses.replace(
        config, network=NetworkConfig(width=4, depth=1), workdir=tmp_path / "run", progress=False
    )
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, iterations=2, batch_real=8))
    made = condense.condense(config)
    assert (tmp_path / "run" / "images" / "000002.png").exists()
    assert SyntheticSet.load(tmp_path / "run" / "synthetic.npz").whitening is not None
    assert evaluate.evaluate(made, networks=1, epochs=1, progress=False).values
