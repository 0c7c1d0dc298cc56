"""Colours of an image, float32 [Y, X, C] of 0 to 1, grey (C = 1) or red, green and blue, as Pillow changes them.

Each change is a function of the image and of how much.
"""

import jax
import jax.numpy as jnp


def blend(other: jax.Array | float, image: jax.Array, factor: jax.Array) -> jax.Array:
    """From `other` (factor 0) to the image (1) and beyond, kept within 0 to 1."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def grey(image: jax.Array) -> jax.Array:
    """Luma [Y, X, 1] of ITU-R BT.601; a grey image as it is."""
    if image.shape[2] == 1:
        return image
    return 0.299 * image[..., :1] + 0.587 * image[..., 1:2] + 0.114 * image[..., 2:]


def levels(image: jax.Array) -> jax.Array:
    """The image as whole numbers of 0 to 255."""
    return jnp.round(image * 255).astype(jnp.int32)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """The image between black and itself."""
    return blend(0.0, image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """The image between its mean grey and itself."""
    mean = levels(grey(image)).sum() / (
        255 * image.shape[0] * image.shape[1]
    )  # whole numbers add up the same anyhow
    return blend(mean, image, factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """The image between its grey self and itself."""
    return blend(grey(image), image, factor)


def hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """The image with its colours turned round the circle by a share of it; hue, value and chroma of Smith (1978)."""
    if image.shape[2] == 1:
        return image
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value, chroma = image.max(2), image.max(2) - image.min(2)
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
