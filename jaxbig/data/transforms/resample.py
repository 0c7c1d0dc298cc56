"""Random boxes of an image and their resampling, for boxes that are traced values.

Legend: Y, X rows and columns of the image, C channels.
"""

import math

import jax
import jax.numpy as jnp

TRIES = 10  # as in torchvision; about one try in twenty fails on a photograph
SLIVER = 1e-3  # a pixel counts only if at least this much of it is in the box: guards rounding


def resample(
    image: jax.Array,
    top: jax.Array,
    left: jax.Array,
    height: jax.Array,
    width: jax.Array,
    size: int,
) -> jax.Array:
    """Crops a box and resizes it to a square: bilinear with antialiasing.

    Equals Pillow's `image.crop(box).resize(..., BILINEAR)`: a triangle filter two pixels of the
    coarser grid wide, normalized over the pixels of the box only.

    Args:
      image: float32 [Y, X, C].
      top: of the box, in pixels, may be fractional; the box is inside the image.
      left: of the box.
      height: of the box; less than one pixel (as for a skipped example, whose size is 0) counts
        as one.
      width: of the box.
      size: pixels of a side of the result.

    Returns:
      float32 [size, size, C].
    """
    rows = weights(top, height, image.shape[0], size)
    columns = weights(left, width, image.shape[1], size)
    # HIGHEST: by default accelerators multiply in bfloat16, about 8 bits
    image = jnp.einsum("jx,yxc->yjc", columns, image, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("iy,yjc->ijc", rows, image, precision=jax.lax.Precision.HIGHEST)


def weights(start: jax.Array, length: jax.Array, pixels: int, size: int) -> jax.Array:
    """Resampling matrix along one axis: [size, pixels], from old pixels to new; rows sum to 1."""
    length = jnp.maximum(length, 1)
    scale = length / size
    new_centers = start + (jnp.arange(size) + 0.5) * scale
    centers = jnp.arange(pixels) + 0.5
    distances = jnp.abs(centers[None, :] - new_centers[:, None]) / jnp.maximum(scale, 1)
    inside = (centers > jnp.floor(start + SLIVER)) & (centers < jnp.ceil(start + length - SLIVER))
    triangle = jnp.maximum(1 - distances, 0) * inside[None, :]
    return triangle / triangle.sum(1, keepdims=True)


Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Top, left, height and width, int32."""


def random_box(
    key: jax.Array, size: jax.Array, least: float, most: float, ratio: float
) -> tuple[jax.Array, Box]:
    """Draws a box inside an image.

    Args:
      key: PRNG key.
      size: height and width of the image, int32 [2].
      least: smallest fraction of the image's area; the fraction is uniform.
      most: largest fraction of the image's area.
      ratio: width over height is log-uniform in [1 / ratio, ratio].

    Returns:
      Whether one of `TRIES` boxes fits in the image, and the first box that does.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    height = size[0]
    width = size[1]
    area = (height * width).astype(jnp.float32) * jax.random.uniform(
        area_key, (TRIES,), minval=least, maxval=most
    )
    span = math.log(ratio)
    aspect = jnp.exp(jax.random.uniform(ratio_key, (TRIES,), minval=-span, maxval=span))
    heights = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    first = jnp.argmax(fits)
    box_height = heights[first]
    box_width = widths[first]
    top = jax.random.randint(top_key, (), 0, jnp.maximum(height - box_height, 0) + 1)
    left = jax.random.randint(left_key, (), 0, jnp.maximum(width - box_width, 0) + 1)
    return fits[first], (top, left, box_height, box_width)
