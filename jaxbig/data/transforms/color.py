"""Color adjustments of images in JAX by Pillow's formulas (brightness, contrast, ...); pure.

An image is float32 [Y, X, C] in [0, 1], grayscale (C = 1) or RGB (C = 3).
"""

import jax
import jax.numpy as jnp


def blend(other: jax.Array | float, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolates from `other` (factor 0) to the image (factor 1) or beyond; clips to [0, 1]."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def to_gray(image: jax.Array) -> jax.Array:
    """Luma [Y, X, 1] of ITU-R BT.601; a grayscale image is returned unchanged."""
    if image.shape[2] == 1:
        return image
    return 0.299 * image[..., :1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:]


def levels(image: jax.Array) -> jax.Array:
    """The image as integers, 0 to 255."""
    return jnp.round(image * 255).astype(jnp.int32)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolates between black and the image."""
    return blend(0.0, image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolates between the mean gray of the image and the image."""
    total = levels(to_gray(image)).sum()  # of integers, so the order of the sum does not matter
    mean = total / (255 * image.shape[0] * image.shape[1])
    return blend(mean, image, factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolates between the grayscale image and the image."""
    return blend(to_gray(image), image, factor)


def hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Rotates the hue by `turn` full turns; hue, value and chroma as in Smith (1978)."""
    if image.shape[2] == 1:
        return image
    red = image[..., 0]
    green = image[..., 1]
    blue = image[..., 2]
    value = image.max(2)
    chroma = image.max(2) - image.min(2)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )

    def channel(offset: float) -> jax.Array:
        place = (offset + sixths + 6 * turn) % 6
        return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)

    return jnp.clip(jnp.stack([channel(5), channel(3), channel(1)], 2), 0, 1)
