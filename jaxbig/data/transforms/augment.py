"""Augmentation inside the compiled step: pure functions of an image and a key.

An image is float32 [Y, X, C] of 0 to 1, grey (C = 1) or in colours (C = 3), of which the top left `size` (height,
width) is real and the rest 0. Each row of a batch draws from its own key alone, and what two rows share they draw from
the key of the even one, so the numbers do not depend on how a batch is split.

Legend: B batch, Y and X rows and columns of an image, C channels, K classes.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from jaxbig.constraints import (
    AtLeastOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Range,
    check_ascending,
)
from jaxbig.data.transforms.color import brightness, contrast, hue, saturation
from jaxbig.data.transforms.resample import Box, random_box, resample
from jaxbig.errors import Refused

Sized = tuple[jax.Array, jax.Array]
"""An image [Y, X, C] and its size, int32 [2]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(abc.ABC):
    """What is made of one image; the caller maps it over a batch with `jax.vmap`."""

    crops: ClassVar[bool] = False
    """Whether it makes an image whole, that is real everywhere; the others take a whole image, so come after."""
    bounded: ClassVar[bool] = False
    """Whether it takes numbers of 0 to 1 alone, so comes before `Normalize`."""
    colours: ClassVar[bool] = False
    """Whether it takes grey or red, green and blue alone."""

    @abc.abstractmethod
    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        """The new image and its size; the new shape depends on the old shape alone."""


def check_order(operations: Sequence[Augmentation], channels: int, field: str, full: bool) -> None:
    """`Refused` where an operation would get an image that it is not made for.

    full: whether the images are real everywhere before the first operation.
    """
    names = [type(operation).__name__ for operation in operations]
    normalized = ""
    for place, (operation, name) in enumerate(zip(operations, names, strict=True)):
        later = [
            other
            for other, each in zip(names[place:], operations[place:], strict=True)
            if each.crops
        ]
        if not full and not operation.crops and later:
            raise Refused(
                f"--data.{field} has {name} before {later[0]}, where an image does not fill its canvas: {name} takes a "
                f"whole image, so put {later[0]} first."
            )
        full = full or operation.crops
        if normalized and operation.bounded:
            raise Refused(
                f"--data.{field} has {name} after {normalized}, and takes numbers of 0 to 1: put {normalized} last."
            )
        if operation.colours and channels not in (1, 3):
            raise Refused(
                f"--data.{field} has {name}, which takes images of 1 or 3 channels: they have {channels}."
            )
        normalized = name if isinstance(operation, Normalize) else normalized


def whole(image: jax.Array) -> Sized:
    """An image that is real everywhere, with its size."""
    return image, jnp.array(image.shape[:2], jnp.int32)


def given(size: int | None) -> int:
    """The size of a cut, which is known by now."""
    if size is None:
        raise Refused(
            "a crop has no size: give it one, or let a data set with a size of its own do it."
        )
    return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizedCrop(Augmentation):
    """A random box, resized to a square (Szegedy et al., 2015), by the rule of torchvision's RandomResizedCrop: the
    first of 10 tries that fits, else the largest middle box within `ratio`."""

    crops: ClassVar[bool] = True
    size: PositiveInt | None = None
    """Pixels of a side of what comes out; None: as the data set says."""
    least: Probability = 0.08
    """The smallest share of the image's area."""
    most: Probability = 1.0
    ratio: AtLeastOne = 4 / 3
    """The box's width over its height lies between this and its inverse."""

    def check_fields(self) -> None:
        check_ascending(self, low="least", high="most")

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        return whole(resample(image, *self.box(size, key), given(self.size)))

    def box(self, size: jax.Array, key: jax.Array) -> Box:
        """The box in an image of that size, at least one pixel."""
        size = jnp.maximum(size, 1)  # 0 where a row was left out
        found, box = random_box(key, size, self.least, self.most, self.ratio)
        height, width = size[0], size[1]
        high = jnp.minimum(height, jnp.round(width * self.ratio).astype(jnp.int32))
        wide = jnp.minimum(width, jnp.round(height * self.ratio).astype(jnp.int32))
        middle = ((height - high) // 2, (width - wide) // 2, high, wide)
        return tuple(
            jnp.where(found, drawn, other) for drawn, other in zip(box, middle, strict=True)
        )  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentralCrop(Augmentation):
    """The middle square, resized; what evaluation sees. Resized once, where a resize of the shorter side to
    `size` / `share` and a cut of the middle are usual; they differ at the edge alone."""

    crops: ClassVar[bool] = True
    size: PositiveInt | None = None
    """Pixels of a side of what comes out; None: as the data set says."""
    share: Annotated[float, Range(float, ge=1e-3, le=1)] = 0.875
    """The square's side as a share of the shorter side."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        size = jnp.maximum(size, 1)
        side = jnp.maximum(self.share * size.min(), 1)
        return whole(
            resample(
                image, (size[0] - side) / 2, (size[1] - side) / 2, side, side, given(self.size)
            )
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop(Augmentation):
    """A square cut anywhere out of the image with zeros around it (He et al., 2016, on CIFAR-10)."""

    crops: ClassVar[bool] = True
    bounded: ClassVar[bool] = True  # its zeros are black
    size: PositiveInt | None = None
    """Pixels of a side of what comes out; None: as the data set says."""
    padding: NonNegativeInt = 4
    """Zeros at each side."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        sides = (self.padding, self.padding)
        padded = jnp.pad(image, (sides, sides, (0, 0)))
        side = given(self.size)
        if side > min(padded.shape[:2]):
            least = side - min(image.shape[:2])
            raise Refused(
                f"a crop of size {side} out of {image.shape[0]}x{image.shape[1]} images with padding "
                f"{self.padding}: give it padding {-(-least // 2)} or more, or a smaller size."
            )
        corners = jnp.maximum(size + 2 * self.padding - side, 0) + 1
        top, left = jax.random.randint(key, (2,), 0, corners)
        return whole(jax.lax.dynamic_slice(padded, (top, left, 0), (side, side, image.shape[2])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Left and right change places, in half of all cases."""

    probability: Probability = 0.5

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        return jnp.where(jax.random.bernoulli(key, self.probability), image[:, ::-1], image), size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter(Augmentation):
    """Brightness, contrast, saturation and hue change in random order, as torchvision's ColorJitter has it: factors
    are uniform from max(0, 1 - x) to 1 + x, the hue turns by -x to x."""

    bounded: ClassVar[bool] = True
    colours: ClassVar[bool] = True
    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Range(float, ge=0, le=0.5)] = 0.0
    """At most 0.5, half a turn."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        order_key, *keys = jax.random.split(key, 5)
        spreads = (self.brightness, self.contrast, self.saturation)
        changes = [
            functools.partial(
                change,
                factor=jax.random.uniform(each, minval=max(0, 1 - spread), maxval=1 + spread),
            )
            for change, spread, each in zip(
                (brightness, contrast, saturation), spreads, keys, strict=False
            )
        ]
        turn = jax.random.uniform(keys[3], minval=-self.hue, maxval=self.hue)
        changes = [*changes, functools.partial(hue, turn=turn)]
        strengths = (*spreads, self.hue)
        changes = [change for change, strength in zip(changes, strengths, strict=True) if strength]
        for place in jax.random.permutation(order_key, len(changes)):
            image = jax.lax.switch(
                place, changes, image
            )  # under vmap all of them are computed, and one taken
        return image, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erasing(Augmentation):
    """A random box becomes noise, uniform of 0 to 1 (Zhong et al., 2020); not in the rare case that none of 10 boxes
    fits. The box's ratio is log-uniform, where theirs is uniform and so mostly tall."""

    bounded: ClassVar[bool] = True
    probability: Probability = 0.25
    least: Probability = 0.02
    """The smallest share of the image's area."""
    most: Probability = 1 / 3
    ratio: AtLeastOne = 10 / 3
    """The box's width over its height lies between this and its inverse."""

    def check_fields(self) -> None:
        check_ascending(self, low="least", high="most")

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        coin, box_key, noise_key = jax.random.split(key, 3)
        found, (top, left, height, width) = random_box(
            box_key, size, self.least, self.most, self.ratio
        )
        erased = inside(image, top, left, top + height, left + width) & found
        erased &= jax.random.bernoulli(coin, self.probability)
        return jnp.where(erased, jax.random.uniform(noise_key, image.shape), image), size


def inside(
    image: jax.Array, top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array
) -> jax.Array:
    """Which pixels [Y, X, 1] are in a box."""
    rows, columns = jnp.arange(image.shape[0]), jnp.arange(image.shape[1])
    return (
        ((rows >= top) & (rows < bottom))[:, None]
        & ((columns >= left) & (columns < right))[None, :]
    )[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalize(Augmentation):
    """(image - mean) / std, one number for all channels or one each. It comes last: the others take 0 to 1."""

    bounded: ClassVar[bool] = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """By default ImageNet's, as most published models have it."""
    std: tuple[Annotated[float, Range(float, ge=1e-6)], ...] = (0.229, 0.224, 0.225)

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        channels = image.shape[2]
        if not {len(self.mean), len(self.std)} <= {1, channels}:
            raise Refused(
                f"normalize with mean {self.mean} and std {self.std} on images of {channels} channels: give 1 or "
                f"{channels} numbers each."
            )
        return (image - per_channel(self.mean)) / per_channel(self.std), size


def per_channel(numbers: Sequence[float]) -> jax.Array:
    """[1, 1, C] or [1, 1, 1]."""
    return jnp.array(numbers, jnp.float32)[None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing(abc.ABC):
    """What is made of two images and their targets: each row's partner is its neighbour, rows 0 and 1, 2 and 3 and so
    on, of a batch that is shuffled already."""

    @abc.abstractmethod
    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Two images [2, Y, X, C] and their targets [2, K], mixed."""

    def __call__(
        self, images: jax.Array, targets: jax.Array, mask: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Images [B, Y, X, C] and targets [B, K], the shares of the classes; whose `mask` [B] is 0, or whose
        partner's is, stay as they are. A pair draws from the first one's of the `keys` [B]."""
        batch = len(images)
        if batch % 2:
            raise Refused(f"batch {batch}: neighbours are mixed, so make each part of it even.")

        def pairs(array: jax.Array) -> jax.Array:
            return array.reshape(batch // 2, 2, *array.shape[1:])

        def one(
            images: jax.Array, targets: jax.Array, mask: jax.Array, keys: jax.Array
        ) -> tuple[jax.Array, ...]:
            mixed = self.pair(images, targets, keys[0])
            return tuple(
                jnp.where((mask > 0).all(), *both)
                for both in zip(mixed, (images, targets), strict=True)
            )

        mixed = jax.vmap(one)(pairs(images), pairs(targets), pairs(mask), pairs(keys))
        return mixed[0].reshape(images.shape), mixed[1].reshape(targets.shape)


def mix(pair: jax.Array, share: jax.Array) -> jax.Array:
    """Each of two [2, ...] by its share, and the other by the rest."""
    return share * pair + (1 - share) * pair[::-1]


def symmetric_beta(key: jax.Array, alpha: float) -> jax.Array:
    """A number from Beta(alpha, alpha), exactly, from two uniform ones and without a loop (Bailey, 1994; Devroye,
    1996): a loop until one is accepted would wait for the slowest row of all devices."""
    uniforms = jax.random.uniform(key, (2,))
    power, cosine = uniforms[0] ** (1 / alpha), jnp.cos(2 * math.pi * uniforms[1])
    place = cosine * jnp.sqrt(
        (1 - power) / (power + (1 - power) * cosine**2)
    )  # -1 to 1, and beyond by a rounding
    return jnp.clip(0.5 + 0.5 * place, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup(Mixing):
    """Two images and their targets, weighted alike, lambda and 1 - lambda (Zhang et al., 2018)."""

    alpha: Annotated[float, Range(float, ge=1e-3)] = 0.2
    """Lambda is from Beta(alpha, alpha)."""

    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        share = symmetric_beta(key, self.alpha)
        return mix(images, share), mix(targets, share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutMix(Mixing):
    """Two images exchange a box of 1 - lambda of their area; what of it lies outside is cut off, and targets are mixed
    by what is left (Yun et al., 2019, equations 1 and 2)."""

    alpha: Annotated[float, Range(float, ge=1e-3)] = 1.0
    """Lambda is from Beta(alpha, alpha)."""

    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        share_key, place_key = jax.random.split(key)
        side = jnp.sqrt(1 - symmetric_beta(share_key, self.alpha))
        sides = jnp.array(images.shape[1:3], jnp.int32)
        half = (sides * side).astype(jnp.int32) // 2
        middle = jax.random.randint(place_key, (2,), 0, sides)
        start, stop = jnp.maximum(middle - half, 0), jnp.minimum(middle + half, sides)
        box = inside(images[0], *start, *stop)[None]
        area = (stop - start).prod() / sides.prod()
        return jnp.where(box, images[::-1], images), mix(targets, 1 - area)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Either(Mixing):
    """One of two, for each pair anew."""

    first: Mixing = Mixup(alpha=0.8)
    second: Mixing = CutMix()
    probability: Probability = 0.5
    """Of the first."""

    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        coin, key = jax.random.split(key)
        taken = jax.random.bernoulli(coin, self.probability)
        both = self.first.pair(images, targets, key), self.second.pair(images, targets, key)
        return jax.tree.map(lambda first, second: jnp.where(taken, first, second), *both)
