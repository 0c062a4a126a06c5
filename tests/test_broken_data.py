"""Every kind of broken data source: one line that names the thing and the mend."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import load, pack

from dmjax import SyntheticSet, data
from dmjax.common.errors import UserError
from dmjax.config import DataConfig


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
    (tmp_path / "mnist.npz").touch()
    with pytest.raises(UserError, match=r"is a file; give --data\.source npz"):
        load("tfds", tmp_path / "mnist.npz", name="mnist")
    with pytest.raises(UserError, match=r"needs --data\.name"):
        load("tfds", folder)


def test_what_is_no_file_is_never_read(make_folder, tmp_path):
    """A pipe that nobody writes to, and a device that never ends: as a set, as data, as an image."""
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(UserError, match="no regular file"):
            load("npz", path)
        with pytest.raises(UserError, match="no regular file"):
            SyntheticSet.load(path)
        with pytest.raises(UserError, match=r"neither a folder nor a \.tar"):
            load("folder", path)
    folder = make_folder()
    os.mkfifo(folder / "train" / "class0" / "9.png")
    with pytest.raises(UserError, match=r"9\.png is no regular file"):
        load("folder", folder)


def test_files_that_are_no_images_are_not_read(make_folder, monkeypatch):
    folder = make_folder()
    with (folder / "archive.zip").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    (folder / "train" / "class0" / "notes.txt").write_text("hello")
    os.mkfifo(folder / "train" / "pipe")
    assert load("folder", folder).counts.tolist() == [5, 3, 4]
    with (folder / "train" / "class0" / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"huge\.png holds 1048576 MiB, too much for an image"):
        load("folder", folder)


def test_photographs_stand_upright(make_folder):
    """Orientation 6: the camera was turned, the file lies on its side."""
    folder = make_folder(size=(8, 6))  # width 8, height 6
    upright = np.zeros((6, 8, 3), np.uint8)
    upright[:3] = 255
    lying = Image.fromarray(np.rot90(upright, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(folder / "train" / "class0" / "a.jpg", exif=exif, quality=95)
    assert lying.size == (6, 8)
    dataset = load("folder", folder)
    assert dataset.image_shape == (6, 8, 3)
    photograph = next(i for i in dataset.images[0][: dataset.counts[0]] if abs(int(i[0].mean()) - 255) < 10)
    np.testing.assert_allclose(photograph.astype(int), upright, atol=30)


def test_sizes_that_all_differ_have_no_majority(make_folder):
    folder = make_folder()
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.new("RGB", (20 + i, 30)).save(path)
    with pytest.raises(UserError, match=r"is 27x30, others have other sizes; .* --data\.image-size 26"):
        load("folder", folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "x.npz"}, r"--data\.path is for the source npz or folder or tfds or .* give --data\.source npz too"),
        ({"path": "images/"}, r"give --data\.source folder too"),
        ({"image_size": 8}, r"--data\.image-size is for the source folder or tfds or huggingface, not for digits"),
        ({"skip_unreadable": True}, r"--data\.skip-unreadable is for the source folder"),
        ({"source": "memory"}, r"hand over a dmjax\.Dataset"),
    ],
)
def test_settings_that_a_source_does_not_read_are_refused(settings, message):
    if "path" in settings:
        settings = {**settings, "path": Path(settings["path"])}
    with pytest.raises(UserError, match=message):
        data.load(DataConfig(**settings), False)


def test_an_array_that_claims_more_than_there_is(tmp_path):
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            archive.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(UserError, match=r"damaged or not an \.npz"):
        load("npz", tmp_path / "claims.npz")
