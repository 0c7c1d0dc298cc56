"""Image augmentation, normalization, Mixup and CutMix: settings and pure compiled functions.

An image is float32 [Y, X, C] in [0, 1], grayscale (C = 1) or RGB (C = 3). Only its top left `size`
(height, width) is valid; the rest is 0. Each example of a batch has its own key; what a pair of
examples shares is drawn from the key of the first. So the result does not depend on how a batch is
split over devices.

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
"""An image, float32 [Y, X, C], and its valid height and width, int32 [2]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(abc.ABC):
    """A random transform of one image; the caller maps it over a batch with `jax.vmap`."""

    crops: ClassVar[bool] = False
    """Whether the result is valid everywhere. Other operations need such an image as input."""
    bounded: ClassVar[bool] = False
    """Whether the input must be in [0, 1]; such an operation comes before `Normalize`."""
    colors: ClassVar[bool] = False
    """Whether the input must be grayscale or RGB."""

    @abc.abstractmethod
    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        """Transforms one image.

        Args:
          image: float32 [Y, X, C].
          size: valid height and width, int32 [2].
          key: PRNG key of this image.

        Returns:
          The new image, whose shape depends only on the input's shape, and its size.
        """


def check_order(operations: Sequence[Augmentation], channels: int, field: str, full: bool) -> None:
    """Checks that each operation gets the kind of image it needs.

    Args:
      operations: in the order in which they are applied.
      channels: of the images.
      field: name of the experiment's field, for the message.
      full: whether the images are valid everywhere before the first operation.

    Raises:
      Refused: an operation would get an image that it does not support.
    """
    names = [type(operation).__name__ for operation in operations]
    normalized = ""
    for index, (operation, name) in enumerate(zip(operations, names, strict=True)):
        later = [
            other
            for other, following in zip(names[index:], operations[index:], strict=True)
            if following.crops
        ]
        if not full and not operation.crops and later:
            raise Refused(
                f"--data.{field} has {name} before {later[0]}, but the images do not fill their "
                f"canvas: {name} needs an image that does, so put {later[0]} first."
            )
        full = full or operation.crops
        if normalized and operation.bounded:
            raise Refused(
                f"--data.{field} has {name} after {normalized}, but {name} needs numbers of 0 to "
                f"1: put {normalized} last."
            )
        if operation.colors and channels not in (1, 3):
            raise Refused(
                f"--data.{field} has {name}, which needs images of 1 or 3 channels: these have "
                f"{channels}."
            )
        if isinstance(operation, Normalize):
            normalized = name


def full_size(image: jax.Array) -> Sized:
    """An image that is valid everywhere, with its size."""
    return image, jnp.array(image.shape[:2], jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop(Augmentation):
    """Base class of the operations that make square images that are valid everywhere."""

    crops: ClassVar[bool] = True
    size: PositiveInt | None = None
    """Height and width of the result, in pixels; None: that of the data set."""

    def side(self) -> int:
        """The size; raises if neither the crop nor the data set has set it."""
        if self.size is None:
            raise Refused("a crop has no size: set it, or use a data set that has a size.")
        return self.size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizedCrop(Crop):
    """Crops a random box and resizes it to a square (Szegedy et al., 2015).

    As torchvision's RandomResizedCrop: takes the first of 10 boxes that fits, else the largest
    centered box within `ratio`.
    """

    least: Probability = 0.08
    """Smallest fraction of the image's area."""
    most: Probability = 1.0
    """Largest fraction of the image's area."""
    ratio: AtLeastOne = 4 / 3
    """Largest aspect ratio of the box, width over height; the smallest is its inverse."""

    def check_fields(self) -> None:
        check_ascending(self, low="least", high="most")

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        return full_size(resample(image, *self.box(size, key), self.side()))

    def box(self, size: jax.Array, key: jax.Array) -> Box:
        """Draws the box, of at least one pixel, in an image of `size` [2]."""
        size = jnp.maximum(size, 1)  # it is 0 for a skipped example
        found, box = random_box(key, size, self.least, self.most, self.ratio)
        height = size[0]
        width = size[1]
        box_height = jnp.minimum(height, jnp.round(width * self.ratio).astype(jnp.int32))
        box_width = jnp.minimum(width, jnp.round(height * self.ratio).astype(jnp.int32))
        top = (height - box_height) // 2
        left = (width - box_width) // 2
        centered = (top, left, box_height, box_width)
        return tuple(  # type: ignore[return-value]
            jnp.where(found, drawn, other) for drawn, other in zip(box, centered, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentralCrop(Crop):
    """Crops the central square and resizes it; used in evaluation.

    Usual is to resize the shorter side to `size` / `share` and to crop the center then; the results
    differ only at the edge.
    """

    share: Annotated[float, Range(float, ge=1e-3, le=1)] = 0.875
    """Side of the square, as a fraction of the image's shorter side."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        size = jnp.maximum(size, 1)
        side = jnp.maximum(self.share * size.min(), 1)
        top = (size[0] - side) / 2
        left = (size[1] - side) / 2
        return full_size(resample(image, top, left, side, side, self.side()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop(Crop):
    """Crops a random square of the zero-padded image (He et al., 2016, on CIFAR-10)."""

    bounded: ClassVar[bool] = True  # its zeros are black
    padding: NonNegativeInt = 4
    """Zeros at each side, in pixels."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        sides = (self.padding, self.padding)
        padded = jnp.pad(image, (sides, sides, (0, 0)))
        side = self.side()
        if side > min(padded.shape[:2]):
            missing = side - min(image.shape[:2])
            raise Refused(
                f"a crop of size {side} from {image.shape[0]}x{image.shape[1]} images with padding "
                f"{self.padding}: set the padding to {-(-missing // 2)} or more, or a smaller size."
            )
        positions = jnp.maximum(size + 2 * self.padding - side, 0) + 1
        top, left = jax.random.randint(key, (2,), 0, positions)
        shape = (side, side, image.shape[2])
        return full_size(jax.lax.dynamic_slice(padded, (top, left, 0), shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Flips the image left to right with some probability."""

    probability: Probability = 0.5
    """Probability of a flip."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        return jnp.where(jax.random.bernoulli(key, self.probability), image[:, ::-1], image), size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue, in random order.

    As torchvision's ColorJitter: a factor is uniform in [max(0, 1 - x), 1 + x], and the rotation
    of the hue in [-x, x].
    """

    bounded: ClassVar[bool] = True
    colors: ClassVar[bool] = True
    brightness: NonNegativeFloat = 0.0
    """Largest relative change of the brightness; 0: none."""
    contrast: NonNegativeFloat = 0.0
    """Largest relative change of the contrast; 0: none."""
    saturation: NonNegativeFloat = 0.0
    """Largest relative change of the saturation; 0: none."""
    hue: Annotated[float, Range(float, ge=0, le=0.5)] = 0.0
    """Largest rotation of the hue, in full turns; at most 0.5. 0: none."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        order_key, *keys = jax.random.split(key, 5)
        jitters = (
            (brightness, self.brightness, keys[0]),
            (contrast, self.contrast, keys[1]),
            (saturation, self.saturation, keys[2]),
        )
        changes = []
        for change, strength, factor_key in jitters:
            if strength:
                factor = jax.random.uniform(
                    factor_key, minval=max(0, 1 - strength), maxval=1 + strength
                )
                changes.append(functools.partial(change, factor=factor))
        if self.hue:
            turn = jax.random.uniform(keys[3], minval=-self.hue, maxval=self.hue)
            changes.append(functools.partial(hue, turn=turn))
        for index in jax.random.permutation(order_key, len(changes)):
            # under vmap all changes are computed and one is selected
            image = jax.lax.switch(index, changes, image)
        return image, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erasing(Augmentation):
    """Replaces a random box by uniform noise in [0, 1] (Zhong et al., 2020).

    Does nothing in the rare case that none of 10 boxes fits. The aspect ratio is log-uniform; in
    the paper it is uniform, so most boxes are tall.
    """

    bounded: ClassVar[bool] = True
    probability: Probability = 0.25
    """Probability of erasing a box."""
    least: Probability = 0.02
    """Smallest fraction of the image's area."""
    most: Probability = 1 / 3
    """Largest fraction of the image's area."""
    ratio: AtLeastOne = 10 / 3
    """Largest aspect ratio of the box, width over height; the smallest is its inverse."""

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
    """Mask of the pixels in a box, bool [Y, X, 1]."""
    rows = jnp.arange(image.shape[0])
    columns = jnp.arange(image.shape[1])
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return (in_rows[:, None] & in_columns[None, :])[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalize(Augmentation):
    """(image - mean) / std. Comes last, as other operations need images in [0, 1]."""

    bounded: ClassVar[bool] = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """One number for all channels or one each. The default is ImageNet's."""
    std: tuple[Annotated[float, Range(float, ge=1e-6)], ...] = (0.229, 0.224, 0.225)
    """Standard deviation; one number for all channels or one each. The default is ImageNet's."""

    def __call__(self, image: jax.Array, size: jax.Array, key: jax.Array) -> Sized:
        channels = image.shape[2]
        if not {len(self.mean), len(self.std)} <= {1, channels}:
            raise Refused(
                f"normalize with mean {self.mean} and std {self.std} on images of {channels} "
                f"channels: give 1 or {channels} numbers each."
            )
        return (image - per_channel(self.mean)) / per_channel(self.std), size


def per_channel(numbers: Sequence[float]) -> jax.Array:
    """Numbers as float32 [1, 1, C] or [1, 1, 1]."""
    return jnp.array(numbers, jnp.float32)[None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing(abc.ABC):
    """Mixes pairs of examples, images and targets: 0 and 1, 2 and 3, ... of a shuffled batch."""

    @abc.abstractmethod
    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes two images [2, Y, X, C] and their targets [2, K]; returns the same shapes."""

    def __call__(
        self, images: jax.Array, targets: jax.Array, mask: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes the pairs of a batch.

        Args:
          images: float32 [B, Y, X, C].
          targets: class probabilities, float32 [B, K].
          mask: [B]; where it is 0 for one of a pair, the pair is not mixed.
          keys: PRNG keys [B]; a pair uses the key of its first example.

        Returns:
          The mixed images and targets, of the same shapes.
        """
        batch = len(images)
        if batch % 2:
            raise Refused(f"batch {batch}: pairs of examples are mixed, so make each part even.")

        def pairs(array: jax.Array) -> jax.Array:
            return array.reshape(batch // 2, 2, *array.shape[1:])

        def mix_pair(
            images: jax.Array, targets: jax.Array, mask: jax.Array, keys: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            mixed_images, mixed_targets = self.pair(images, targets, keys[0])
            both_real = (mask > 0).all()
            return (
                jnp.where(both_real, mixed_images, images),
                jnp.where(both_real, mixed_targets, targets),
            )

        mixed = jax.vmap(mix_pair)(pairs(images), pairs(targets), pairs(mask), pairs(keys))
        return mixed[0].reshape(images.shape), mixed[1].reshape(targets.shape)


def mix(pair: jax.Array, share: jax.Array) -> jax.Array:
    """Weights each of two [2, ...] by `share`, and adds the other by 1 - share."""
    return share * pair + (1 - share) * pair[::-1]


def symmetric_beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draws from Beta(alpha, alpha), exactly, from two uniforms (Bailey, 1994; Devroye, 1996).

    There is no rejection loop, in which all devices would wait for the slowest example.
    """
    uniforms = jax.random.uniform(key, (2,))
    power = uniforms[0] ** (1 / alpha)
    cosine = jnp.cos(2 * math.pi * uniforms[1])
    # in [-1, 1], up to rounding
    centered = cosine * jnp.sqrt((1 - power) / (power + (1 - power) * cosine**2))
    return jnp.clip(0.5 + 0.5 * centered, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup(Mixing):
    """Averages two images and their targets, lambda to 1 - lambda (Zhang et al., 2018)."""

    alpha: Annotated[float, Range(float, ge=1e-3)] = 0.2
    """Lambda is drawn from Beta(alpha, alpha)."""

    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        share = symmetric_beta(key, self.alpha)
        return mix(images, share), mix(targets, share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutMix(Mixing):
    """Swaps a box between two images (Yun et al., 2019, equations 1 and 2).

    The box has 1 - lambda of the area. It is clipped to the image, and the targets are mixed by
    the clipped area.
    """

    alpha: Annotated[float, Range(float, ge=1e-3)] = 1.0
    """Lambda is drawn from Beta(alpha, alpha)."""

    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        lambda_key, center_key = jax.random.split(key)
        side = jnp.sqrt(1 - symmetric_beta(lambda_key, self.alpha))
        sides = jnp.array(images.shape[1:3], jnp.int32)
        half = (sides * side).astype(jnp.int32) // 2
        center = jax.random.randint(center_key, (2,), 0, sides)
        start = jnp.maximum(center - half, 0)
        stop = jnp.minimum(center + half, sides)
        box = inside(images[0], *start, *stop)[None]
        area = (stop - start).prod() / sides.prod()
        return jnp.where(box, images[::-1], images), mix(targets, 1 - area)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Either(Mixing):
    """Applies one of two, chosen at random for each pair."""

    first: Mixing = Mixup(alpha=0.8)
    """The first method."""
    second: Mixing = CutMix()
    """The second method."""
    probability: Probability = 0.5
    """Probability of the first method."""

    def pair(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        coin, key = jax.random.split(key)
        use_first = jax.random.bernoulli(coin, self.probability)
        first = self.first.pair(images, targets, key)
        second = self.second.pair(images, targets, key)
        return jax.tree.map(functools.partial(jnp.where, use_first), first, second)
