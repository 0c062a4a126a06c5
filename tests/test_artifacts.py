"""The synthetic set on disk, in folders and as a picture."""

import json

import numpy as np
import pytest
from PIL import Image

from dmjax import SyntheticSet, UserError
from dmjax.data import synthetic_set


@pytest.fixture
def small(rng):
    images = rng.normal(0.5, 0.4, (3, 2, 8, 6, 3)).astype(np.float32)
    mean, std = np.full(3, 0.4, np.float32), np.full(3, 0.2, np.float32)
    return synthetic_set.from_pixels(images, mean, std, ["cat", "dog/wolf", "\u00e9lan"], {"config": {"seed": 3}})


def test_round_trip_without_pickle(small, tmp_path):
    small.save(tmp_path / "s.npz")
    loaded = SyntheticSet.load(tmp_path / "s.npz")
    for name in ("images", "labels", "mean", "std"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(small, name))
    assert loaded.class_names == small.class_names
    assert loaded.metadata == small.metadata
    assert loaded.ipc == 2
    assert loaded.images.max() > 1  # not clipped
    with np.load(tmp_path / "s.npz", allow_pickle=False) as raw:
        assert raw["images"].shape == (6, 8, 6, 3)
        assert raw["images"].dtype == np.float32
        assert raw["labels"].dtype == np.int32
        assert raw["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        assert json.loads(str(raw["metadata"])) == {"config": {"seed": 3}}
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_export_is_an_image_folder(small, tmp_path):
    assert small.export(tmp_path / "out") == 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cat", "dog_wolf", "\u00e9lan"]
    pixels = np.asarray(Image.open(tmp_path / "out" / "cat" / "0001.png"))
    np.testing.assert_array_equal(pixels, np.round(np.clip(small.images[1], 0, 1) * 255).astype(np.uint8))


def test_export_keeps_classes_apart_whose_names_look_alike_in_a_file_system(small, tmp_path):
    import dataclasses

    dataclasses.replace(small, class_names=("a/b", "a_b", "A_B")).export(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_picture_has_a_row_per_class(small):
    picture = np.asarray(small.picture())
    zoom = 64 // 8
    assert picture.shape == ((2 + 3 * 10) * zoom, (2 + 2 * 8) * zoom, 3)
    second_of_third_class = picture[(2 + 2 * 10) * zoom : (2 + 2 * 10 + 8) * zoom : zoom, 10 * zoom : 16 * zoom : zoom]
    np.testing.assert_array_equal(second_of_third_class, small.pixels()[5])


def test_broken_files(small, tmp_path):
    path = tmp_path / "s.npz"

    def fails(match):
        with pytest.raises(UserError, match=match) as error:
            SyntheticSet.load(path)
        assert "\n" not in str(error.value)

    fails("no file")
    small.save(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        fails("damaged or not an .npz")
    flipped = bytearray(whole)
    flipped[300] ^= 0xFF
    path.write_bytes(flipped)
    fails("damaged or not an .npz")
    np.savez(path, images=small.images)
    fails("no array 'labels'")
    import dataclasses

    dataclasses.replace(small, labels=small.labels + 1).save(path)
    fails("labels out of range")
    dataclasses.replace(small, images=small.images * np.nan).save(path)
    fails("not finite")
