"""Boxes of an image, drawn and resampled, where the box is known only inside the compiled step.

Legend: Y, X rows and columns of the image, C channels.
"""

import math

import jax
import jax.numpy as jnp

TRIES = 10  # as torchvision has it; one try in about twenty fails on a photograph
SLIVER = 1e-3  # a pixel of which less than this is in a box is outside, so that rounding adds none


def resample(
    image: jax.Array,
    top: jax.Array,
    left: jax.Array,
    height: jax.Array,
    width: jax.Array,
    size: int,
) -> jax.Array:
    """The box of an image [Y, X, C], in pixels and fractions of them, as [size, size, C].

    Bilinear with antialias, as Pillow's `image.crop(box).resize(..., BILINEAR)`: a triangle as wide as two pixels of
    the coarser side, over the pixels of the box alone, its weights normalized. The box lies in the image; one of
    less than a pixel (a row left out has size 0) is taken as one pixel.
    """
    rows, columns = (
        weights(top, height, image.shape[0], size),
        weights(left, width, image.shape[1], size),
    )
    # highest: accelerators else round pixels to 8 bits or so
    image = jnp.einsum("jx,yxc->yjc", columns, image, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("iy,yjc->ijc", rows, image, precision=jax.lax.Precision.HIGHEST)


def weights(start: jax.Array, length: jax.Array, pixels: int, size: int) -> jax.Array:
    """How much each of the pixels counts for each of the new ones along an axis, [size, pixels]; rows sum to 1."""
    length = jnp.maximum(length, 1)
    scale = length / size
    centres = start + (jnp.arange(size) + 0.5) * scale
    places = jnp.arange(pixels) + 0.5
    distances = jnp.abs(places[None, :] - centres[:, None]) / jnp.maximum(scale, 1)
    inside = (places > jnp.floor(start + SLIVER)) & (places < jnp.ceil(start + length - SLIVER))
    triangle = jnp.maximum(1 - distances, 0) * inside[None, :]
    return triangle / triangle.sum(1, keepdims=True)


Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Top, left, height and width, int32."""


def random_box(
    key: jax.Array, size: jax.Array, least: float, most: float, ratio: float
) -> tuple[jax.Array, Box]:
    """A box in an image of `size` (height, width), whose share of the area is uniform from `least` to `most` and whose
    width over height is log-uniform from 1 / `ratio` to `ratio`; and whether one of 10 tries gave one that fits."""
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    height, width = size[0], size[1]
    area = (height * width).astype(jnp.float32) * jax.random.uniform(
        area_key, (TRIES,), minval=least, maxval=most
    )
    span = math.log(ratio)
    aspect = jnp.exp(jax.random.uniform(ratio_key, (TRIES,), minval=-span, maxval=span))
    heights = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    first = jnp.argmax(fits)  # the first that fits
    high, wide = heights[first], widths[first]
    top = jax.random.randint(top_key, (), 0, jnp.maximum(height - high, 0) + 1)
    left = jax.random.randint(left_key, (), 0, jnp.maximum(width - wide, 0) + 1)
    return fits[first], (top, left, high, wide)
