"""How close a set is to its training images, against NumPy's correlation."""

import numpy as np
import pytest

from dmjax import Dataset
from dmjax.data import closeness, factor
from dmjax.data.closeness import closest, closest_of_test_images
from dmjax.data.synthetic_set import from_pixels


def a_dataset(rng, n, shape):
    images, labels = rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 2
    tests = rng.integers(0, 256, (6, *shape), dtype=np.uint8)
    tests[3] = images[7]
    return images, labels, Dataset.from_arrays(images, labels, tests, np.arange(6) % 2)


def correlation(a, b):
    return np.corrcoef(a.reshape(-1).astype(float), b.reshape(-1).astype(float))[0, 1]


def test_it_is_the_largest_correlation_within_the_class(rng, monkeypatch):
    monkeypatch.setattr(closeness, "_AT_ONCE", 3)  # several products, the last one shorter
    images, labels, dataset = a_dataset(rng, 17, (6, 5, 3))
    made = rng.integers(0, 256, (2, 4, 6, 5, 3), dtype=np.uint8)
    made[0, 1] = images[2]  # of this class
    made[0, 2] = images[3]  # of the other one
    made[1, 0] = 255 - images[5]
    made[1, 3] = 7
    found = closest(from_pixels(made, dataset.mean, dataset.std, dataset.class_names), dataset)
    for i, image in enumerate(made.reshape(8, 6, 5, 3)[:7]):
        expected = max(correlation(image, real) for real in images[labels == i // 4])
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    assert 1 - 1e-5 < found[1] <= 1
    assert max(found[2], found[4]) < 0.9
    assert abs(found[7]) < 1e-6
    tests = closest_of_test_images(dataset)
    for i, image in enumerate(dataset.test_images):
        expected = max(correlation(image, real) for real in images[labels == i % 2])
        np.testing.assert_allclose(tests[i], expected, atol=1e-5)
    assert tests[3] > 1 - 1e-5


@pytest.mark.parametrize("reduction", ["nearest", "mean"])
@pytest.mark.parametrize(("side", "by"), [(8, 2), (8, 4), (7, 2)])
def test_a_mosaic_of_training_images_is_seen_as_what_it_is(rng, reduction, side, by):
    images, labels, dataset = a_dataset(rng, 2 * by**2, (side, side, 3))
    mosaics = [factor.pack(images[labels == c], by, reduction) for c in (0, 1)]
    made = from_pixels(np.stack(mosaics), dataset.mean, dataset.std, dataset.class_names, factor=by)
    found = closest(made, dataset)
    assert found.shape == (2 * by**2,)
    if side % by:  # the last blocks are cut, so that only the first is whole
        found = found[:: by**2]
    np.testing.assert_allclose(found, 1, atol=1e-4)
    assert closest_of_test_images(dataset, by)[3] > 1 - 1e-4
