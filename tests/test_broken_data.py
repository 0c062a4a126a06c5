"""Every kind of broken data source: one line that names the thing and the mend."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from test_data import load, pack

from dmjax.common.errors import UserError


def test_folder_errors_name_the_thing_and_the_mend(make_folder, tmp_path):
    def fails(match, path, **options):
        with pytest.raises(UserError, match=match) as error:
            load("folder", path, **options)
        assert "\n" not in str(error.value)

    fails("no such file or folder", tmp_path / "nowhere")
    fails("needs --data.path", None)
    fails("one class only", make_folder(train=(3,), root="one"))
    empty = make_folder(root="empty")
    (empty / "train" / "class9").mkdir()
    fails("'train/class9' of .* has no images", empty)
    untested = make_folder(root="untested")
    (untested / "test").rename(untested / "elsewhere")
    fails(r"no images in test/CLASS/ or val/CLASS/ .*--data\.test-path", untested)
    fails("no images in train/CLASS/", untested / "elsewhere")
    stranger = make_folder(root="stranger")
    (stranger / "test" / "class0").rename(stranger / "test" / "dog")
    fails("class 'dog' has test images but no folder in train/", stranger)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    fails("neither a folder nor a .tar", text)
    fake = tmp_path / "fake.tar"
    fake.write_text("hello")
    fails("damaged or not a tar file", fake)
    good = pack(make_folder(root="good"), "good.tar.xz", "w:xz")
    good.write_bytes(good.read_bytes()[:-200])
    fails("damaged or not a tar file", good)


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "train/../../x.png"])
def test_tars_with_unsafe_names_are_refused(tmp_path, name):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match="unsafe name"):
        load("folder", path)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_unreadable_images_are_named_or_skipped(make_folder, damage, capsys):
    folder = make_folder()
    image = folder / "train" / "class0" / "2.png"
    content = {"truncated": image.read_bytes()[:90], "text": b"no image", "empty": b""}[damage]
    image.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot decode train/class0/2\.png .*--data\.skip-unreadable true"):
        load("folder", folder)
    assert load("folder", folder, skip_unreadable=True).counts.tolist() == [4, 3, 4]
    assert "left out 1 unreadable" in capsys.readouterr().err


def test_a_decompression_bomb_is_not_decoded(make_folder, monkeypatch):
    folder = make_folder()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 8)
    Image.new("RGB", (9, 9)).save(folder / "train" / "class0" / "2.png")
    with pytest.raises(UserError, match=r"train/class0/2\.png .*decompression bomb"):
        load("folder", folder)


def test_npz_errors(tmp_path):
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])

    def fails(match, **changes):
        arrays = {
            "train_images": images,
            "train_labels": labels,
            "test_images": images,
            "test_labels": labels,
        } | changes
        path = tmp_path / "set.npz"
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        with pytest.raises(UserError, match=match) as error:
            load("npz", path)
        assert "\n" not in str(error.value)

    fails("no array 'test_labels'", test_labels=None)
    fails("must be uint8", train_images=images.astype(np.int64))
    fails("must be fractions between 0 and 1", train_images=images.astype(np.float32) + 2)
    fails("out of range", train_labels=np.array([0, -1, 0, 1]))
    fails("out of range", train_labels=np.array([0, 1, 0, 10**9]))
    fails("test_labels holds 2, out of range", test_labels=np.array([0, 1, 2, 1]))
    fails("4 train_images but 3 train_labels", train_labels=labels[:3])
    fails("pickled objects", train_labels=np.array([{}, 1, 2, 3], object))
    fails("one class only", train_labels=labels * 0, test_labels=labels * 0)
    fails("no training images", train_labels=np.array([0, 2, 0, 2]), test_labels=labels * 0)
    fails("train_images are", test_images=np.zeros((4, 9, 8), np.uint8))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"damaged or not an \.npz"):
        load("npz", tmp_path / "broken.npz")
    with pytest.raises(UserError, match="no file"):
        load("npz", tmp_path / "missing.npz")
    np.save(tmp_path / "single.npy", images)
    with pytest.raises(UserError, match=r"not an \.npz"):
        load("npz", tmp_path / "single.npy")


def test_tfds_errors(shared, tmp_path):
    folder = shared("tfds")
    with pytest.raises(UserError, match=r"no data set 'mnst'; did you mean .*'mnist'"):
        load("tfds", folder, name="mnst")
    with pytest.raises(UserError, match=r"'cifar10' is not prepared .*it holds mnist.*tfds build cifar10 --data_dir"):
        load("tfds", folder, name="cifar10")
    with pytest.raises(UserError, match=r"no TFDS data_dir .*tfds build mnist"):
        load("tfds", tmp_path / "nowhere", name="mnist")
    with pytest.raises(UserError, match=r"needs --data\.name"):
        load("tfds", folder)
