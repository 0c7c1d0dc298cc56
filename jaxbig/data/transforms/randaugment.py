"""RandAugment (Cubuk et al., 2020): a few operations drawn from fourteen, all of one strength.

Each operation is a function of an image [Y, X, C] of 0 to 1 and an amount. What Pillow does on whole numbers of 0 to
255 is done so here; pixels from outside the image are the grey of AutoAugment (Cubuk et al., 2019), 128 of 255.
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

GREY = 128 / 255


def identity(image: jax.Array, amount: jax.Array) -> jax.Array:
    """The image as it is."""
    return image


def autocontrast(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Each channel spread so that its darkest becomes 0 and its lightest 255."""
    whole = levels(image)
    low, high = whole.min((0, 1), keepdims=True), whole.max((0, 1), keepdims=True)
    spread = (whole - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, spread, whole) / 255


def equalize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Each channel's levels changed so that all occur about equally often, by Pillow's rule."""
    whole = levels(image).reshape(-1, image.shape[2])  # [Y X, C]

    def channel(whole: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[whole].add(1)
        step = (len(whole) - counts[whole.max()]) // 255
        before = jnp.cumsum(counts) - counts
        table = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[whole], whole)

    return jax.vmap(channel, 1, 1)(whole).reshape(image.shape) / 255


def solarize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Levels of `amount` (of 256) and above inverted."""
    whole = levels(image)
    return jnp.where(whole < amount, whole, 255 - whole) / 255


def posterize(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Only the highest `amount` bits of each level, rounded to 1 to 8, kept."""
    dropped = 8 - jnp.clip(jnp.round(amount), 1, 8).astype(jnp.int32)
    return (levels(image) >> dropped << dropped) / 255


def sharpness(image: jax.Array, amount: jax.Array) -> jax.Array:
    """The image between its smoothed self and itself; Pillow's kernel, a box of 3 x 3 whose middle counts 5; the
    outermost pixels stay."""
    columns = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    box = columns[:-2] + columns[1:-1] + columns[2:]
    smooth = image.at[1:-1, 1:-1].set((box + 4 * image[1:-1, 1:-1]) / 13)
    return blend(smooth, image, amount)


def affine(image: jax.Array, across: tuple, down: tuple) -> jax.Array:
    """The pixel (x, y) becomes what is at (a x + b y + c, d x + e y + f), with `across` (a, b, c) and `down` (d, e, f)
    and pixels' centres at halves; the nearest pixel is taken, as published."""
    rows, columns = image.shape[:2]
    y, x = (jnp.arange(rows) + 0.5)[:, None], (jnp.arange(columns) + 0.5)[None, :]
    column = jnp.floor(across[0] * x + across[1] * y + across[2]).astype(jnp.int32)
    row = jnp.floor(down[0] * x + down[1] * y + down[2]).astype(jnp.int32)
    real = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    return jnp.where(
        real[..., None], image[jnp.clip(row, 0, rows - 1), jnp.clip(column, 0, columns - 1)], GREY
    )


def rotate(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Turned about its middle by `amount` degrees, against the clock."""
    sine, cosine = jnp.sin(amount * math.pi / 180), jnp.cos(amount * math.pi / 180)
    y, x = image.shape[0] / 2, image.shape[1] / 2
    return affine(
        image, (cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y)
    )


def shear_x(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Each row moved to the left by `amount` times its distance from the top."""
    return affine(image, (1, amount, 0), (0, 1, 0))


def shear_y(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Each column moved up by `amount` times its distance from the left."""
    return affine(image, (1, 0, 0), (amount, 1, 0))


def translate_x(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Moved to the left by `amount` times the width."""
    return affine(image, (1, 0, amount * image.shape[1]), (0, 1, 0))


def translate_y(image: jax.Array, amount: jax.Array) -> jax.Array:
    """Moved up by `amount` times the height."""
    return affine(image, (1, 0, 0), (0, 1, amount * image.shape[0]))


class Operation(NamedTuple):
    """An operation and its amount at strength s: `start + slope * s`, or with `signed` start ± slope * s."""

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    start: float = 0
    slope: float = 0
    signed: bool = False


# The ranges of AutoAugment, each from no change at strength 0 to the most at 1
OPERATIONS = (
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
    """`layers` operations after each other, each any of fourteen, of one strength and with a random sign.

    Rows of a batch differ in their operation, so all fourteen are computed for each row, and one is taken.
    """

    bounded: ClassVar[bool] = True
    colours: ClassVar[bool] = True
    layers: PositiveInt = 2
    """How many operations an image gets (N in the paper)."""
    magnitude: NonNegativeFloat = 9.0
    """Their strength (M), in tenths of AutoAugment's largest: 9 turns by 27 degrees."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        for layer in jax.random.split(key, self.layers):
            image = self.layer(image, layer)
        return image, size

    def layer(self, image: jax.Array, key: jax.Array) -> jax.Array:
        """The image after one operation."""
        which_key, sign_key = jax.random.split(key)
        sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
        strength = self.magnitude / 10

        def applied(operation: Operation) -> Callable[[jax.Array], jax.Array]:
            amount = (
                operation.start
                + (sign if operation.signed else jnp.ones(())) * operation.slope * strength
            )
            return lambda image: operation.apply(image, amount.astype(image.dtype)).astype(
                image.dtype
            )

        which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
        return jax.lax.switch(which, [applied(operation) for operation in OPERATIONS], image)
