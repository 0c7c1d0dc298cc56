"""Data set of images with classes, from any records, with augmentation.

The host decodes and resizes each image. Random augmentation (augment.py) is part of the compiled
step and depends only on its PRNG keys.
"""

import dataclasses
import io
import os
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import NonNegativeInt, PositiveInt
from jaxbig.data.core.dataset import Batch, Record, Spec
from jaxbig.data.core.examples import Example
from jaxbig.data.core.fields import MismatchError, array, kind, present
from jaxbig.data.labeled import Labeled
from jaxbig.data.records.image_folder import ENDINGS
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.augment import Augmentation, Mixing, check_order
from jaxbig.data.transforms.jpeg import decode, decoder, scaled_size
from jaxbig.data.transforms.pixels import Levels, decoding, eight_bits, from_pixels, to_8_bits
from jaxbig.errors import Refused

Image = bytes | np.ndarray
"""An encoded image file, or pixels, uint8 [Y, X, C]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Labeled):
    """Images with one class each.

    A batch has `inputs` [B, size, size, channels], in [0, 1] unless normalized, and `targets`: the
    class [B], or class probabilities [B, classes] if `mix` is set. A record has `image`, an encoded
    file or numbers [Y, X, C], and `label`. Images are read upright, with 8 bits a channel, and
    transparent parts are white; of several images in a file the first is used.
    """

    size: PositiveInt
    """Height and width of the model's input, in pixels."""
    channels: PositiveInt = 3
    """Number of channels: 1 grayscale, 3 RGB."""
    canvas: NonNegativeInt = 0
    """Side of the square in which images enter the step, scaled down to fit, for `augment` and
    `center` to crop to `size`; 0: the central square, resized to `size` on the host."""
    augment: tuple[Augmentation, ...] = ()
    """Operations on each image in training, in order. A crop without a size crops to `size`."""
    center: tuple[Augmentation, ...] = ()
    """Operations on each image in evaluation, in order."""
    mix: tuple[Mixing, ...] = ()
    """Operations that mix the images of a batch in training, after `augment`."""
    levels: tuple[float, float] | None = None
    """The numbers of black and white, in arrays and in files of more than 8 bits: 0 1 for floats,
    0 4095 for 12 bits. None: known only for uint8, bool and files of 16 bits."""

    endings = ENDINGS

    def prepare(self) -> str:
        return f"{super().prepare()}; images by {decoder()}"

    def record_of_file(self, content: bytes) -> Record:
        return {"image": content}

    def spec(self) -> Spec:
        side = self.canvas or self.size
        sizes = {"sizes": jax.ShapeDtypeStruct((self.batch, 2), np.int32)} if self.canvas else {}
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, side, side, self.channels), np.uint8),
            **sizes,  # valid height and width, from the top left
            "targets": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def check(self) -> None:
        if self.levels is not None and self.levels[0] == self.levels[1]:
            raise Refused(
                f"--data.levels {self.levels[0]:g} {self.levels[1]:g}: black and white must differ."
            )
        if len(self.names) > self.classes:
            raise Refused(
                f"--data.classes {self.classes}: the records have {len(self.names)} classes: "
                f"{', '.join(self.names)}."
            )
        super().check()

    def read(self, record: Record) -> Example:
        example: Example = {"targets": self.class_of(record), "mask": np.float32(1)}
        with decoding():
            image = image_of(record, self.levels)
            if not self.canvas:
                pixels = central_square(image, self.size, self.channels, self.levels)
                return example | {"inputs": pixels}
            pixels = shrink_to_fit(image, self.canvas, self.channels, self.levels)
        canvas = np.zeros((self.canvas, self.canvas, self.channels), np.uint8)
        canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
        return example | {"inputs": canvas, "sizes": np.array(pixels.shape[:2], np.int32)}

    def synthetic(self) -> "Images":
        """The same data set with synthetic records."""
        records = Synthetic(images=("image",), labels=(("label", self.classes),))
        return dataclasses.replace(self, records=records)

    def smaller(self, side: int) -> Self:
        """The images and their canvas; not where an operation has a size of its own."""
        if any(getattr(each, "size", None) is not None for each in (*self.augment, *self.center)):
            return self
        size = min(self.size, side)
        return dataclasses.replace(self, size=size, canvas=self.canvas * size // self.size)

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        batch = dict(batch)
        images = batch["inputs"].astype(jnp.float32) / 255  # [B, Y, X, C]
        full_sizes = jnp.full((images.shape[0], 2), self.canvas or self.size, jnp.int32)
        sizes = batch.pop("sizes", full_sizes)
        operations = self.augment if train else self.center
        field = "augment" if train else "center"
        check_order(operations, self.channels, field, full=not self.canvas)
        if self.canvas and not any(operation.crops for operation in operations):
            raise Refused(
                f"images on a canvas of {self.canvas} must be cropped to size {self.size}: put a "
                f"crop in --data.augment and in --data.center, or leave --data.canvas 0."
            )
        for number, operation in enumerate(operations):
            if getattr(operation, "size", self.size) is None:
                changes = {"size": self.size}
                operation = dataclasses.replace(operation, **changes)  # type: ignore[type-var]
            images, sizes = jax.vmap(operation)(images, sizes, fold_in_each(keys, number))
            images = images.astype(jnp.float32)  # with jax_enable_x64 draws are float64
        if images.shape[1:3] != (self.size, self.size):
            raise Refused(
                f"the images are {images.shape[1]} x {images.shape[2]} after all operations, and "
                f"--data.size is {self.size}: leave the size of a crop unset."
            )
        targets = batch["targets"]
        if train and self.mix:
            targets = jax.nn.one_hot(targets, self.classes)
            for number, mixing in enumerate(self.mix, len(self.augment)):
                images, targets = mixing(images, targets, batch["mask"], fold_in_each(keys, number))
            images = images.astype(jnp.float32)
            targets = targets.astype(jnp.float32)
        return {**batch, "inputs": images, "targets": targets}


def fold_in_each(keys: jax.Array, number: int) -> jax.Array:
    """Folds a number into each of the PRNG keys [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def image_of(record: Record, levels: Levels = None) -> Image:
    """The image of a record: the bytes of a file, or pixels, uint8 [Y, X, C]."""
    value = present(record, "image")
    if isinstance(value, bytes):
        return value
    numbers = array(value, "image")
    if numbers.dtype.kind == "S" and not numbers.ndim:
        return numbers.item()
    if numbers.dtype.kind not in "biuf":
        is_path = isinstance(value, str | os.PathLike)
        what = f"{kind(numbers)} {str(value)!r}" if is_path else kind(numbers)
        fix = ", as Path(...).read_bytes()" if is_path else ""
        raise MismatchError(
            f"its 'image' is {what}: it must be a file's bytes{fix}, or an array of numbers"
        )
    return eight_bits(numbers, levels)


def central_square(image: Image, size: int, channels: int, levels: Levels = None) -> np.ndarray:
    """Crops the central square of an image and resizes it: uint8 [size, size, channels]."""
    if isinstance(image, np.ndarray) and image.shape == (size, size, channels):
        return image
    if isinstance(image, bytes) and channels == 3:
        pixels = decode(image, size, levels=levels)
        top, left = ((side - size) // 2 for side in pixels.shape[:2])
        if min(top, left) >= 0:
            return pixels[top : top + size, left : left + size]
        image = pixels  # smaller than `size`
    picture = to_pillow(image, levels)
    side = min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    return resize_box(picture, (size, size), (left, top, left + side, top + side), channels)


def shrink_to_fit(image: Image, canvas: int, channels: int, levels: Levels = None) -> np.ndarray:
    """Scales an image down until its longer side fits `canvas`: uint8 [Y, X, channels]."""
    if isinstance(image, bytes) and channels == 3:
        return decode(image, canvas, longer=True, levels=levels)
    picture = to_pillow(image, levels)
    height, width = scaled_size((picture.height, picture.width), canvas, longer=True)
    return resize_box(picture, (width, height), (0, 0, *picture.size), channels)


def to_pillow(image: Image, levels: Levels = None) -> Any:
    """Converts an image to a Pillow image of 8 bits, grayscale or RGB."""
    if isinstance(image, np.ndarray):
        return from_pixels(image)
    from PIL import Image as Pillow  # here: slow to import, and not every data set needs it

    with Pillow.open(io.BytesIO(image)) as picture:
        return to_8_bits(picture, levels)


def resize_box(
    picture: Any, size: tuple[int, int], box: tuple[float, float, float, float], channels: int
) -> np.ndarray:
    """Crops a box of a Pillow image and resizes it.

    Args:
      picture: a Pillow image of 8 bits, grayscale or RGB.
      size: width and height of the result.
      box: left, top, right and bottom, in pixels.
      channels: of the result, 1 or 3.

    Returns:
      uint8 [height, width, channels].
    """
    if channels not in (1, 3):
        raise MismatchError(
            f"an image of {channels} channels cannot be resized: set --data.channels 1 or 3, "
            f"or use arrays of --data.size"
        )
    mode = "L" if channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    if box != (0, 0, *picture.size) or size != picture.size:
        picture = picture.resize(size, 2, box=box)  # bilinear with antialiasing
    return np.asarray(picture).reshape(size[1], size[0], -1)
