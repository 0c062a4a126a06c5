"""Encoded image files as arrays: what is known before decoding, and pixels brought to one shape."""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dmjax.common.errors import UserError

_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")
_QUARTER_TURNS = (5, 6, 7, 8)  # values of the EXIF orientation for which width and height change places

# What Pillow raises for files that are not what they seem; SyntaxError is its word for a broken PNG.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
      size: (height, width) of the image as it stands upright.
      channels: 1 for grey images, 3 for all others.
    """

    size: tuple[int, int]
    channels: int


def read_header(data: bytes) -> Header:
    """Looks at an image without decoding it; raises one of `UNREADABLE` for what is no image of 8 or 16 bits."""
    image = _open(data)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}), not 8-bit colours")
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _QUARTER_TURNS
    size = (image.width, image.height) if turned else (image.height, image.width)
    return Header(size, 1 if image.mode in _GREY_MODES else 3)


def decode(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the upright image as uint8 of `shape` = (H, W, D); raises one of `UNREADABLE` for a damaged one."""
    with _open(data) as image:
        image.load()
        return to_array(ImageOps.exif_transpose(image), shape)


def attempt(read: Callable[..., T], *arguments: Any, name: str, skip: bool) -> T | None:
    """Calls one of the two functions above.

    Args:
      read: The function.
      arguments: What it is called with.
      name: Which image it is, for the message.
      skip: Whether damaged images are left out, for which the result is None.

    Raises:
      UserError: a damaged image that is not to be left out.
    """
    try:
        return read(*arguments)
    except UNREADABLE as error:
        if skip:
            return None
        said = (str(error).splitlines() or [type(error).__name__])[0]
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else said
        raise UserError(
            f"cannot decode {name}: {reason}; remove it, or leave out such images with --data.skip-unreadable true"
        ) from None


def common_shape(headers: Mapping[K, Header], describe: Callable[[K], str], size: int | None) -> tuple[int, int, int]:
    """The shape (H, W, D) to which all images are brought; D is 1 where all of them are grey.

    Args:
      headers: What the images say of themselves.
      describe: Names an image by its key, "under FOLDER: FILE", for the message.
      size: The side that the user wants; None where all images are of the same size already.

    Raises:
      UserError: images of several sizes, where no size is given.
    """
    channels = max(header.channels for header in headers.values())
    if size is not None:
        return size, size, channels
    sizes = Counter(header.size for header in headers.values())
    usual, count = sizes.most_common(1)[0]
    for key, header in headers.items():
        if header.size != usual:
            others = f"most are {usual[1]}x{usual[0]}" if count > len(headers) // 2 else "others have other sizes"
            raise UserError(
                f"images of several sizes {describe(key)} is {header.size[1]}x{header.size[0]}, {others}; resize them "
                f"all with --data.image-size {min(min(usual), 64)}"
            )
    return *usual, channels


def to_array(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Converts to `shape` = (H, W, D): grey or RGB, resized to cover the target and cropped at the centre."""
    height, width, channels = shape
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit greys at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if (image.height, image.width) != (height, width):
        image = ImageOps.fit(image, (width, height))
    return np.asarray(image, np.uint8).reshape(shape)


def _open(data: bytes) -> Image.Image:
    """Opens an image without decoding it; a decompression bomb is an error, not a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data))
