"""Differentiable Siamese augmentation (Zhao & Bilen 2021, section 3.2): draw once, apply to any batch.

A draw picks one of the configured groups. Crop, flip, scale and rotate all become one affine resampling, colour
three factors and cutout a box; what was not drawn is neutral. So every draw costs the same few passes over the
images, under `vmap` as well, where a `switch` over the groups would compute all of them. Noise, which the authors of
gradient matching use with batch norm, costs something only where a strategy names it.

The composite augmentation of Kim et al. (2022) applies flip, colour and cutout whenever the strategy names them, each
with numbers of its own, and one of the other groups with them. The order is that of here, image moved, recoloured, cut;
the authors' code recolours before it crops, scales or rotates, so that what comes in at the border stays zero.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dmjax.common import backend
from dmjax.config import ALL_AUGMENTATIONS, AugmentConfig

BRIGHTNESS, SATURATION, CONTRAST, NOISE = 1.0, 2.0, 0.5, 0.001
CROP, CUTOUT, SCALE, ROTATE = 0.125, 0.5, 1.2, 15.0
DRAWS = 3  # uniform numbers that a group needs at most
ALWAYS = {"flip": 3, "color": 4, "cutout": 7}
"""The groups that a composite augmentation applies always, and the first of the uniform numbers that each has."""
COMPOSITE_DRAWS = 9
_PRODUCT_SIDE = 32  # up to which a TPU moves images by products, whose memory grows with the third power


class Augmentation(NamedTuple):
    """What one draw does to an image; all float32.

    Attributes:
      linear: [2, 2], source pixel (y, x), counted from the centre, of a target pixel.
      shift: [2], added to it.
      recolor: scalar, 1 where the three factors apply.
      factors: [3], brightness offset, saturation factor, contrast factor.
      box: [4], first and last + 1 row, first and last + 1 column that are set to zero.
      noise: uint32 [2], 1 where noise is added and the seed of it; None where the strategy has none.
    """

    linear: jax.Array
    shift: jax.Array
    recolor: jax.Array
    factors: jax.Array
    box: jax.Array
    noise: jax.Array | None


def groups(config: AugmentConfig) -> tuple[str, ...]:
    """The groups that the configured strategy draws from."""
    return () if config.strategy == "none" else tuple(config.strategy.split("_"))


def sample(key: jax.Array, config: AugmentConfig, image_shape: tuple[int, ...]) -> Augmentation | None:
    """Draws a group and its parameters; None for the strategy 'none'."""
    group_key, key = jax.random.split(key)
    return parameters(sample_group(group_key, config), jax.random.uniform(key, (draws(config),)), config, image_shape)


def sample_each(key: jax.Array, config: AugmentConfig, image_shape: tuple[int, ...], n: int) -> Augmentation | None:
    """Draws one group for a batch and parameters for each of its n images (a leading axis in every leaf)."""
    group_key, key = jax.random.split(key)
    group = sample_group(group_key, config)
    if group is None:
        return None
    numbers = jax.random.uniform(key, (n, draws(config)))
    return jax.vmap(lambda u: parameters(group, u, config, image_shape))(numbers)


def sample_group(key: jax.Array, config: AugmentConfig) -> jax.Array | None:
    """Draws an index into `ALL_AUGMENTATIONS`, uniformly among the groups of the strategy.

    None for the strategy 'none'. Of a composite augmentation it is drawn among the groups that are not applied always,
    and -1 where there are no others.
    """
    named = groups(config)
    chosen = [ALL_AUGMENTATIONS.index(g) for g in named if not (config.composite and g in ALWAYS)]
    if not chosen:
        return jnp.int32(-1) if named else None
    return jnp.array(chosen, jnp.int32)[jax.random.randint(key, (), 0, len(chosen))]


def draws(config: AugmentConfig) -> int:
    """Uniform numbers that one augmentation takes."""
    return COMPOSITE_DRAWS if config.composite else DRAWS


def parameters(
    group: jax.Array | None, u: jax.Array, config: AugmentConfig, image_shape: tuple[int, ...]
) -> Augmentation | None:
    """Turns uniform numbers u [`draws`] of [0, 1) into the augmentation of a group; a pure function of its draws."""
    if group is None:
        return None
    height, width = image_shape[:2]
    is_group = {name: (group == i).astype(jnp.float32) for i, name in enumerate(ALL_AUGMENTATIONS)}
    flip = color = cutout = u
    if config.composite:
        is_group |= {name: jnp.float32(name in groups(config)) for name in ALWAYS}
        flip, color, cutout = (u[first:] for first in ALWAYS.values())

    # Geometry, in the order (y, x). Every term is neutral unless its group was drawn. A flipped image is moved, so
    # that the mirror applies to the place that the other groups look up.
    low, high = 1 / SCALE, SCALE
    scale = 1 + is_group["scale"] * (low + (high - low) * u[:2] - 1)  # u[0] is x, u[1] is y
    mirror = 1 - 2 * is_group["flip"] * jnp.float32(flip[0] < 0.5)
    angle = is_group["rotate"] * (u[0] - 0.5) * 2 * ROTATE * math.pi / 180
    aspect = (height - 1) / (width - 1) if config.align_corners and min(height, width) > 1 else height / width
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    linear = jnp.stack([jnp.stack([cos * scale[1], sin * aspect]), mirror * jnp.stack([-sin / aspect, cos * scale[0]])])
    reach = jnp.array([int(height * CROP + 0.5), int(width * CROP + 0.5)], jnp.float32)
    shift = is_group["crop"] * (_integer(u[:2], 2 * reach + 1) - reach) * jnp.stack([jnp.float32(1), mirror])

    factors = jnp.stack([(color[0] - 0.5) * BRIGHTNESS, color[1] * SATURATION, color[2] + CONTRAST])

    side = jnp.array([int(height * CUTOUT + 0.5), int(width * CUTOUT + 0.5)], jnp.float32)
    choices = jnp.array([height, width], jnp.float32) + (1 - side % 2)
    start = _integer(cutout[:2], choices) - side // 2
    end = start + side * is_group["cutout"]  # an empty box otherwise
    box = jnp.stack([start[0], end[0], start[1], end[1]])
    noise = None
    if "noise" in groups(config):
        noise = jnp.stack([is_group["noise"].astype(jnp.uint32), jax.lax.bitcast_convert_type(u[0], jnp.uint32)])
    return Augmentation(linear, shift, is_group["color"], factors, box, noise)


def _integer(u: jax.Array, n: jax.Array) -> jax.Array:
    """A uniform integer of 0 .. n-1; the minimum guards against a product that rounds up to n."""
    return jnp.minimum(jnp.floor(u * n), n - 1)


def apply(augmentation: Augmentation | None, images: jax.Array) -> jax.Array:
    """Applies one draw to all images [n, H, W, D], differentiably; outside of an image is zero."""
    chex.assert_rank(images, 4)
    if augmentation is None:
        return images
    moved = (augmentation.linear != jnp.eye(2)).any() | (augmentation.shift != 0).any()

    def resample(x: jax.Array) -> jax.Array:
        return jax.lax.cond(moved, lambda x: _resample(x, augmentation.linear, augmentation.shift), lambda x: x, x)

    def recolor(x: jax.Array) -> jax.Array:
        return jax.lax.cond(augmentation.recolor > 0, lambda x: _recolor(x, augmentation.factors), lambda x: x, x)

    images = _apply(augmentation, images, resample, recolor)
    if augmentation.noise is not None:
        images = images + _noise(augmentation.noise, images.shape)
    return images


def apply_each(
    augmentations: Augmentation | None, images: jax.Array, precision: jax.lax.Precision = jax.lax.Precision.HIGHEST
) -> jax.Array:
    """Applies the i-th draw to the i-th of the images [n, H, W, D].

    Small images that a TPU moves are a product of matrices, which is formed in `precision`.
    """
    if augmentations is None:
        return images
    chex.assert_rank(images, 4)
    chex.assert_equal(len(augmentations.recolor), len(images))
    if backend.current() != "tpu" or max(images.shape[1:3]) > _PRODUCT_SIDE:
        return jax.vmap(lambda a, image: apply(a, image[None])[0])(augmentations, images)

    def last(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf, 0, -1).reshape(*leaf.shape[1:], 1, 1, 1, len(leaf))

    of_each = jax.tree.map(last, augmentations._replace(noise=None))
    recolor = lambda x: jnp.where(of_each.recolor > 0, _recolor(x, of_each.factors), x)  # noqa: E731
    resample = lambda x: _resample_by_products(x, of_each.linear, of_each.shift, precision)  # noqa: E731
    images = _apply(of_each, images, resample, recolor)
    if augmentations.noise is not None:
        images = images + jax.vmap(lambda noise: _noise(noise, images.shape[1:]))(augmentations.noise)
    return images


def _apply(augmentation: Augmentation, images: jax.Array, resample: Callable, recolor: Callable) -> jax.Array:
    """Moves, recolours and cuts images [n, H, W, D] by one draw, or by n draws with leaves [..., 1, 1, 1, n].

    Inside, images are the last axis, [H, W, D, n]: what is done to a pixel is done to a row of numbers, which is how
    processors of all kinds want it, and a row of D = 3 channels is not.
    """
    images = recolor(resample(images.transpose(1, 2, 3, 0)))
    rows = jnp.arange(images.shape[0], dtype=jnp.float32)[:, None, None, None]
    columns = jnp.arange(images.shape[1], dtype=jnp.float32)[None, :, None, None]
    top, bottom, left, right = augmentation.box
    cut = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return jnp.where(cut, 0.0, images).transpose(3, 0, 1, 2)


def _noise(noise: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal noise of a shape from (whether it was drawn, its seed)."""
    drawn, seed = noise
    return NOISE * drawn.astype(jnp.float32) * jax.random.normal(jax.random.key(seed), shape)


def _recolor(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Brightness, saturation and contrast of images [H, W, D, n]."""
    brightness, saturation, contrast = factors
    images = images + brightness
    grey = images.mean(axis=2, keepdims=True)
    images = (images - grey) * saturation + grey
    mean = grey.mean(axis=(0, 1), keepdims=True)  # that of the images too, which saturation leaves as it is
    return (images - mean) * contrast + mean


def crop_and_resize(key: jax.Array, images: jax.Array, smallest: float) -> jax.Array:
    """Cuts a random box out of each of the images [n, H, W, D], and resizes it bilinearly to the whole image.

    The area of the box is a uniform share between `smallest` and 1, the ratio of its sides log-uniform between 3/4 and
    4/3 of the image's, its place uniform. A side that would be longer than the image is as long as the image.
    """
    numbers = jax.random.uniform(key, (len(images), 4))
    boxes = jax.vmap(lambda u: crop_box(u, smallest, images.shape[1:3]))(numbers)
    return jax.vmap(lambda box, image: resize_box(image[None], box)[0])(boxes, images)


def crop_box(u: jax.Array, smallest: float, size: tuple[int, ...]) -> jax.Array:
    """Top, left, height and width [4] of a random crop, in pixels, from uniform numbers u [4]."""
    area = smallest + (1 - smallest) * u[0]
    ratio = jnp.exp((2 * u[1] - 1) * math.log(4 / 3))
    shares = jnp.minimum(jnp.sqrt(jnp.stack([area / ratio, area * ratio])), 1.0)
    sides = shares * jnp.array(size, jnp.float32)
    return jnp.concatenate([u[2:4] * (jnp.array(size, jnp.float32) - sides), sides])


def resize_box(images: jax.Array, box: jax.Array) -> jax.Array:
    """The box (top, left, height, width) of all images [n, H, W, D], resized to [n, H, W, D]; its border repeats."""
    size = jnp.array(images.shape[1:3], jnp.float32)
    corner, sides = box[:2], box[2:]
    within = corner, corner + sides - 1
    resized = _resample(images.transpose(1, 2, 3, 0), jnp.diag(sides / size), corner + (sides - size) / 2, within)
    return resized.transpose(3, 0, 1, 2)


def _resample(
    images: jax.Array, linear: jax.Array, shift: jax.Array, within: tuple[jax.Array, jax.Array] | None = None
) -> jax.Array:
    """Bilinear lookup of an affine grid in images [H, W, D, n] with zeros outside: exact for whole-pixel moves.

    Places outside of the first and last pixel of `within` (y, x), where it is given, are looked up at its border.
    """
    height, width, channels, n = images.shape
    y, x = (place.ravel() for place in _places((height, width), linear, shift))
    if within is not None:
        y, x = (jnp.clip(place, *ends) for place, *ends in zip((y, x), *within, strict=True))
    pixels = images.reshape(height * width, channels * n)  # a row is one pixel of all images
    out = jnp.zeros_like(pixels)
    for corner_y in (jnp.floor(y), jnp.floor(y) + 1):
        for corner_x in (jnp.floor(x), jnp.floor(x) + 1):
            weight = (1 - jnp.abs(y - corner_y)) * (1 - jnp.abs(x - corner_x))
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            index = jnp.clip(corner_y, 0, height - 1) * width + jnp.clip(corner_x, 0, width - 1)
            out = out + jnp.where(inside, weight, 0.0)[:, None] * pixels[index.astype(jnp.int32)]
    return out.reshape(images.shape)


def _places(size: tuple[int, ...], linear: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where an affine grid looks up each pixel of an image (H, W): y and x [H, W, 1, 1], [H, W, 1, n] for n grids."""
    centre_y, centre_x = ((side - 1) / 2 for side in size)
    rows = jnp.arange(size[0], dtype=jnp.float32).reshape(-1, 1, 1, 1) - centre_y
    columns = jnp.arange(size[1], dtype=jnp.float32).reshape(1, -1, 1, 1) - centre_x
    # Sums of products, not a matrix product: those are computed in lower precision on accelerators.
    y = linear[0, 0] * rows + linear[0, 1] * columns + (shift[0] + centre_y)
    x = linear[1, 0] * rows + linear[1, 1] * columns + (shift[1] + centre_x)
    return y, x


def _resample_by_products(
    images: jax.Array, linear: jax.Array, shift: jax.Array, precision: jax.lax.Precision
) -> jax.Array:
    """The lookup of `_resample` in images [H, W, D, n], by grids of their own: [2, 2, 1, 1, 1, n] and [2, 1, 1, 1, n].

    It is a product with the weights of all rows and columns, of which at most two each are not 0. A TPU, where rows of
    D numbers are slow to gather, is faster at it; work and memory grow with the third power of the side.
    """
    size = images.shape[:2]
    rows, columns = (_hat(place, side) for place, side in zip(_places(size, linear, shift), size, strict=True))
    return jnp.einsum("yxin,yxjn,ijdn->yxdn", rows, columns, images, precision=precision)


def _hat(places: jax.Array, size: int) -> jax.Array:
    """The weights [H, W, size, n] of whole places 0 .. size-1 in a linear lookup at places [H, W, 1, n]."""
    return jnp.maximum(1 - jnp.abs(places - jnp.arange(size, dtype=jnp.float32).reshape(1, 1, -1, 1)), 0)
