"""RandAugment (Cubuk et al., 2020): random image operations in the compiled step; pure.

A few are drawn from fourteen. Each operation is a function of an image, float32 [Y, X, C] in [0,
1], and an amount. Operations that Pillow computes on integers of 0 to 255 are computed so here.
Pixels from outside the image are the gray of AutoAugment (Cubuk et al., 2019), 128 of 255.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxbig.constraints import NonNegativeFloat, PositiveInt
from jaxbig.data.transforms.augment import Augmentation, Sized
from jaxbig.data.transforms.color import blend, brightness, contrast, levels, saturation

GRAY = 128 / 255


def identity(image: jax.Array, amount: jax.Array) -> jax.Array:
    """The unchanged image."""
    return image


def autocontrast(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Stretches each channel so that its darkest level becomes 0 and its lightest 255."""
    pixels = levels(image)
    low = pixels.min((0, 1), keepdims=True)
    high = pixels.max((0, 1), keepdims=True)
    stretched = (pixels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, pixels) / 255


def equalize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Equalizes the histogram of each channel, by the rule of Pillow."""
    pixels = levels(image).reshape(-1, image.shape[2])  # [Y X, C]

    def channel(pixels: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[pixels].add(1)
        step = (len(pixels) - counts[pixels.max()]) // 255
        before = jnp.cumsum(counts) - counts
        table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[pixels], pixels)

    return jax.vmap(channel, 1, 1)(pixels).reshape(image.shape) / 255


def solarize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Inverts all levels of `amount` (0 to 256) and above."""
    pixels = levels(image)
    return jnp.where(pixels < amount, pixels, 255 - pixels) / 255


def posterize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Keeps the `amount` highest bits of each level; `amount` is rounded and clipped to 1 to 8."""
    dropped = 8 - jnp.clip(jnp.round(amount), 1, 8).astype(jnp.int32)
    return (levels(image) >> dropped << dropped) / 255


def sharpness(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Interpolates between the smoothed image and the image.

    Smooths with Pillow's 3 x 3 kernel, whose middle weight is 5 and the others 1; the outermost
    pixels are not smoothed.
    """
    columns = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    box = columns[:-2] + columns[1:-1] + columns[2:]
    smooth = image.at[1:-1, 1:-1].set((box + 4 * image[1:-1, 1:-1]) / 13)
    return blend(smooth, image, amount)


def affine(image: jax.Array, across: tuple, down: tuple) -> jax.Array:
    """Affine transform with nearest-neighbor sampling, as in the published code.

    Args:
      image: float32 [Y, X, C].
      across: (a, b, c): the pixel at (x, y) is read from column a x + b y + c. The center of the
        first pixel is at (0.5, 0.5).
      down: (d, e, f): and from row d x + e y + f.
    """
    rows, columns = image.shape[:2]
    y = (jnp.arange(rows) + 0.5)[:, None]
    x = (jnp.arange(columns) + 0.5)[None, :]
    column = jnp.floor(across[0] * x + across[1] * y + across[2]).astype(jnp.int32)
    row = jnp.floor(down[0] * x + down[1] * y + down[2]).astype(jnp.int32)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    pixels = image[jnp.clip(row, 0, rows - 1), jnp.clip(column, 0, columns - 1)]
    return jnp.where(inside[..., None], pixels, GRAY)


def rotate(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Rotates about the center by `amount` degrees, counterclockwise."""
    sine = jnp.sin(amount * math.pi / 180)
    cosine = jnp.cos(amount * math.pi / 180)
    y = image.shape[0] / 2
    x = image.shape[1] / 2
    across = (cosine, -sine, x - cosine * x + sine * y)
    down = (sine, cosine, y - sine * x - cosine * y)
    return affine(image, across, down)


def shear_x(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Shifts each row to the left by `amount` times its distance from the top."""
    return affine(image, (1, amount, 0), (0, 1, 0))


def shear_y(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Shifts each column up by `amount` times its distance from the left."""
    return affine(image, (1, 0, 0), (amount, 1, 0))


def translate_x(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Shifts to the left by `amount` times the width."""
    return affine(image, (1, 0, amount * image.shape[1]), (0, 1, 0))


def translate_y(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Shifts up by `amount` times the height."""
    return affine(image, (1, 0, 0), (0, 1, amount * image.shape[0]))


class Operation(NamedTuple):
    """An operation. Its amount at strength s is start + slope * s; if signed, start ± slope * s."""

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    start: float = 0
    slope: float = 0
    signed: bool = False


OPERATIONS = (  # with the ranges of AutoAugment: no change at strength 0, the largest at 1
    Operation(identity),
    Operation(autocontrast),
    Operation(equalize),
    Operation(rotate, 0, 30, True),
    Operation(solarize, 256, -256),
    Operation(saturation, 1, 0.9, True),
    Operation(posterize, 8, -4),
    Operation(contrast, 1, 0.9, True),
    Operation(brightness, 1, 0.9, True),
    Operation(sharpness, 1, 0.9, True),
    Operation(shear_x, 0, 0.3, True),
    Operation(shear_y, 0, 0.3, True),
    Operation(translate_x, 0, 150 / 331, True),
    Operation(translate_y, 0, 150 / 331, True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Augmentation):
    """Applies `layers` random operations in sequence, of one strength and of random sign.

    The operation differs between the images of a batch, so all fourteen are computed for each image
    and one is selected.
    """

    bounded: ClassVar[bool] = True
    colors: ClassVar[bool] = True
    layers: PositiveInt = 2
    """Number of operations an image (N in the paper)."""
    magnitude: NonNegativeFloat = 9.0
    """Strength (M in the paper); 10 is the largest of AutoAugment. 9 rotates by 27 degrees."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        for layer_key in jax.random.split(key, self.layers):
            image = self.apply_one(image, layer_key)
        return image, size

    def apply_one(self, image: jax.Array, key: jax.Array) -> jax.Array:
        """Applies one random operation."""
        which_key, sign_key = jax.random.split(key)
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        strength = self.magnitude / 10

        def branch(operation: Operation) -> Callable[[jax.Array], jax.Array]:
            factor = sign if operation.signed else jnp.ones(())
            amount = operation.start + factor * operation.slope * strength

            def apply(image: jax.Array) -> jax.Array:
                return operation.apply(image, amount.astype(image.dtype)).astype(image.dtype)

            return apply

        which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
        return jax.lax.switch(which, [branch(operation) for operation in OPERATIONS], image)
