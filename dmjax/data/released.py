"""Sets that come with the package: small pictures with a card each, in `dmjax/released/`.

A picture is a grid without gaps, a row for every class. Its pixels are the images, brought to 8 bits between the
lowest and the highest value of the set; large sets are WebP, with losses. What that costs is in the card, whose
accuracy is that of the set as it is here.
"""

import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmjax.common import files
from dmjax.common.errors import UserError, near_misses
from dmjax.data.synthetic_set import SyntheticSet

_LARGEST = 300_000  # bytes of a picture
_QUALITIES = (98, 95, 92, 90, 85, 80, 75, 70, 65, 60, 55, 50)  # of WebP, the best that is small enough


FOLDER = Path(str(resources.files("dmjax"))) / "released"
"""Where the sets of the package are."""


def names(folder: Path = FOLDER) -> list[str]:
    """The names of all sets, such as mnist-ipc1 and mnist-ipc1-best."""
    return sorted(path.stem for path in folder.glob("*.json"))


def card(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What is known of a set, as plain JSON values.

    The data and their licence, the command, the commit and the seconds that made it, its accuracy on five networks, and
    how close it is to the training images (`dmjax.data.closeness`), beside how close test images are.
    """
    if name not in names(folder):
        raise UserError(f"there is no file and no released set {name!r}; {near_misses(name, names(folder))}")
    return files.read_json(folder / f"{name}.json", "install dmjax again")


def load_released(name: str, folder: Path = FOLDER) -> SyntheticSet:
    """A set that comes with the package.

    Args:
      name: One of `names()`: the data and the images per class, made by distribution matching, or with `-best` by the
        method that reached most.
      folder: Another folder with sets like those of the package.
    """
    about = card(name, folder)
    path = folder / about["picture"]
    try:
        with Image.open(path) as picture:
            grid = np.asarray(picture)
    except OSError as error:
        raise UserError(f"{path} is missing or damaged ({error}); install dmjax again") from None
    height, width, channels = about["image_shape"]
    rows, columns = grid.shape[0] // height, grid.shape[1] // width
    images = grid.reshape(rows, height, columns, width, channels).transpose(0, 2, 1, 3, 4)
    low, high = about["range"]
    return SyntheticSet(
        images=(low + images.reshape(-1, height, width, channels) * ((high - low) / 255)).astype(np.float32),
        labels=np.repeat(np.arange(rows, dtype=np.int32), columns),
        mean=np.asarray(about["mean"], np.float32),
        std=np.asarray(about["std"], np.float32),
        class_names=tuple(about["class_names"]),
        metadata={"config": about["config"], "released": name, "dataset": about["data"]},
        factor=about["factor"],
    )


def open_set(given: str | Path) -> SyntheticSet:
    """The set in a file or in the folder of a run, or the released one of this name where there is no such file."""
    path = Path(given)
    if (path / "synthetic.npz").is_file():
        return SyntheticSet.load(path / "synthetic.npz")
    if not path.exists() and not path.suffix and path.name == str(given):  # as a name is, and no path
        return load_released(str(given))
    return SyntheticSet.load(given)


def folder_of(given: Path) -> Path:
    """Where what is made of a set goes, unless it is said: into the folder of its run, or beside its file."""
    return given if given.is_dir() else given.parent


def write(synthetic: SyntheticSet, name: str, about: dict[str, Any], folder: Path = FOLDER) -> None:
    """Writes the picture of a set, at most 300 kB of it, and its card.

    Args:
      synthetic: The set, which has hard labels and no whitening.
      name: Its name.
      about: What the card says beyond what is needed to read the picture.
      folder: Where.
    """
    if synthetic.labels.ndim != 1 or synthetic.whitening is not None or synthetic.extra:
        raise UserError("a set is released with hard labels and without whitening or further arrays")
    n, height, width, channels = synthetic.images.shape
    order, rows = np.argsort(synthetic.labels, kind="stable"), len(synthetic.class_names)
    images = synthetic.images[order]
    low, high = float(images.min()), float(images.max())
    pixels = np.round((images - low) / (high - low) * 255).astype(np.uint8)
    grid = pixels.reshape(rows, n // rows, height, width, channels).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(rows * height, n // rows * width, channels)
    picture = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    content, suffix = _encoded(picture)
    files.write_bytes(folder / f"{name}{suffix}", content)
    reading = {
        "picture": f"{name}{suffix}",
        "image_shape": [height, width, channels],
        "range": [low, high],
        "factor": synthetic.factor,
        "mean": synthetic.mean.tolist(),
        "std": synthetic.std.tolist(),
        "class_names": list(synthetic.class_names),
    }
    files.write_json(folder / f"{name}.json", {**about, **reading})
    for old in folder.glob(f"{name}.*"):  # the picture of a set that had this name, in the other format
        if old.name not in (reading["picture"], f"{name}.json"):
            old.unlink()


def _encoded(picture: Image.Image) -> tuple[bytes, str]:
    """A PNG, or where that is too large the best WebP that is not."""
    options: list[tuple[str, dict[str, Any]]] = [("png", {"optimize": True})]
    options += [("webp", {"quality": quality, "method": 6}) for quality in _QUALITIES]
    for kind, settings in options:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **settings)
        if buffer.tell() <= _LARGEST:
            return buffer.getvalue(), f".{kind}"
    raise UserError(f"the picture is larger than {_LARGEST // 1000} kB at any quality")
