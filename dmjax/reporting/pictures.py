"""The pictures of a set for a page: laid out anew so that they fit a screen, and few and small enough for one file.

A picture in images/ has a row for each class, and is enlarged (`SyntheticSet.picture`). For a page its images are taken
out again and laid out in blocks that are as wide as a phone is, with transparent gaps and in their own size.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dmjax.data.synthetic_set import GAP, PICTURE_COLUMNS, picture_zoom
from dmjax.reporting.markup import Markup, element

MAX_PICTURES = 30
MAX_BYTES = 10_000_000
"""How many pictures a page has at most, and how large they may be all together."""
_MAX_PICTURE = 1_000_000  # bytes of one before it is compressed
_PER_CLASS = 10  # images of a class that are shown
_SMALL = 240  # pixels in width below which pictures are enlarged with sharp edges


class Layout(NamedTuple):
    """How the images of a picture are laid out for a page.

    Attributes:
      classes: Classes that are shown, of those that there are.
      per_class: Images of each class that are shown.
      columns: Classes beside each other: with one image per class that many images, a class to a column otherwise.
    """

    classes: int
    per_class: int
    columns: int

    @classmethod
    def of(cls, classes: int, per_class: int, image_shape: Sequence[int]) -> "Layout":
        """For a set of this size, whose images are [H, W, D]."""
        most = max(1, min(200, _MAX_PICTURE // int(np.prod(image_shape))))
        shown = max(1, min(per_class, _PER_CLASS, most // classes))
        columns = 10 if shown > 1 or classes > 10 else 5
        return cls(min(classes, most), shown, min(columns, classes))


class Picture(NamedTuple):
    """One picture of a set.

    Attributes:
      iteration: After which it was made.
      png: The file.
      width: In pixels.
      height: In pixels.
    """

    iteration: int
    png: bytes
    width: int
    height: int

    @property
    def size(self) -> int:
        """Bytes that it takes in a page."""
        return len(self.png) * 4 // 3

    def html(self, alt: str) -> Markup:
        """The picture in a page, with the words that stand for it."""
        data = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        sharp = "sharp" if self.width < _SMALL else None
        return element("img", class_=sharp, src=data, alt=alt, width=self.width, height=self.height)


class Pictures(NamedTuple):
    """Those of a run.

    Attributes:
      shown: In order, the first and the last among them.
      there: How many there are in the folder.
      layout: How their images are laid out; None where they are shown as they are in the folder.
    """

    shown: list[Picture]
    there: int
    layout: Layout | None


def read(
    folder: Path, classes: int, image_shape: Sequence[int], per_class: int | None, most: int = MAX_PICTURES
) -> Pictures:
    """The pictures of a run for a page.

    Args:
      folder: The images/ of the run.
      classes: How many there are.
      image_shape: (H, W, D).
      per_class: Images of each class in the set; None where that is not known.
      most: How many pictures; of one it is the last.
    """
    names = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdecimal()}
    opened = {iteration: _opened(names[iteration]) for iteration in thinned(sorted(names), most)}
    whole = {iteration: picture for iteration, picture in opened.items() if picture is not None}
    columns = min(per_class or 1, PICTURE_COLUMNS)
    tiles = {i: _tiles(picture, classes, columns, image_shape) for i, picture in whole.items() if per_class is not None}
    layout = None
    if per_class is not None and tiles and all(images is not None for images in tiles.values()):
        layout = Layout.of(classes, per_class, image_shape)
    pictures = [
        _encoded(iteration, picture if layout is None else _laid_out(tiles[iteration], layout))
        for iteration, picture in whole.items()
    ]
    ends = {0, len(pictures) - 1} if pictures else set()
    room = MAX_BYTES - sum(pictures[i].size for i in ends)  # a page shows these twice
    return Pictures(within(pictures, room), len(names), layout)


def thinned(values: Sequence, most: int) -> list:
    """At most so many of the values, evenly spaced, the first and the last among them; of one it is the last."""
    if len(values) <= most:
        return list(values)
    if most == 1:
        return [values[-1]]
    return [values[i] for i in sorted({round(k * (len(values) - 1) / (most - 1)) for k in range(most)})]


def within(pictures: list[Picture], room: int) -> list[Picture]:
    """As many of the pictures as there is room for, in bytes of a page, but two at least."""
    count = len(pictures)
    while count > 2 and sum(picture.size for picture in thinned(pictures, count)) > room:
        count -= 1
    return thinned(pictures, count)


def _opened(path: Path) -> Image.Image | None:
    """A picture in grey or in colours; None where it cannot be read."""
    try:
        with Image.open(path) as opened:
            return opened.convert("L" if opened.mode == "L" else "RGB")
    except (OSError, ValueError):
        return None


def _encoded(iteration: int, picture: Image.Image) -> Picture:
    picture.thumbnail((1600, 1600))  # what is laid out for a page is smaller
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return Picture(iteration, buffer.getvalue(), picture.width, picture.height)


def _tiles(picture: Image.Image, classes: int, columns: int, image_shape: Sequence[int]) -> np.ndarray | None:
    """The images in a picture of a set, uint8 [C, M, H, W] or [C, M, H, W, 3]; None where it is laid out otherwise."""
    height, width = image_shape[:2]
    zoom = picture_zoom(height, width, columns)
    size = GAP + columns * (width + GAP), GAP + classes * (height + GAP)
    if picture.size != (size[0] * zoom, size[1] * zoom):
        return None
    pixels = np.asarray(picture)[::zoom, ::zoom][GAP:, GAP:]
    rows = pixels.reshape(classes, height + GAP, columns, width + GAP, *pixels.shape[2:])
    return np.swapaxes(rows[:, :height, :, :width], 1, 2)


def _laid_out(tiles: np.ndarray, layout: Layout) -> Image.Image:
    """Images [C, M, H, W] or [C, M, H, W, 3] in blocks of a few classes, a class to a column."""
    shown = tiles[: layout.classes, : layout.per_class]
    height, width = shown.shape[2:4]
    colours = 1 if shown.ndim == 4 else 3
    gap, apart = max(1, width // 16), max(1, height // 16) * (1 if layout.per_class == 1 else 3)
    blocks = -(-layout.classes // layout.columns)
    block = layout.per_class * (height + gap) - gap
    size = blocks * (block + apart) - apart, layout.columns * (width + gap) - gap
    canvas = np.zeros((*size, colours + 1), np.uint8)
    for c, images in enumerate(shown):
        row, column = divmod(c, layout.columns)
        for m, image in enumerate(images):
            top, left = row * (block + apart) + m * (height + gap), column * (width + gap)
            place = canvas[top : top + height, left : left + width]
            place[..., :colours] = image.reshape(height, width, colours)
            place[..., colours] = 255
    return Image.fromarray(canvas)
