"""Images and their classes.

On the host an image is decoded and made as large as a batch has it; what is drawn at random happens in the compiled
step (augment.py), from keys alone.
"""

import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import NonNegativeInt, PositiveInt
from jaxbig.data.core.dataset import Batch, Record, Spec
from jaxbig.data.core.examples import Example
from jaxbig.data.core.fields import MismatchError, array, kind, present
from jaxbig.data.labeled import Labeled
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.augment import Augmentation, Mixing, check_order
from jaxbig.data.transforms.jpeg import decode, decoder, wanted
from jaxbig.data.transforms.pixels import Levels, decoding, eight_bits, picture_of, plain
from jaxbig.errors import Refused

Image = bytes | np.ndarray
"""An encoded image, or uint8 [Y, X, C]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Labeled):
    """Images `inputs` [B, size, size, channels], 0 to 1 unless normalized, and `targets` [B]: a class each, or
    [B, classes] where images are mixed. A record has `image`, encoded or numbers [Y, X, C], and `label`.

    Images are seen upright, with 8 bits a channel, and what is transparent is white; of several in a file it is the
    first."""

    size: PositiveInt
    """Height and width that the model sees."""
    classes: PositiveInt
    channels: PositiveInt = 3
    canvas: NonNegativeInt = 0
    """Images come to the step within a square of this size, scaled down where they are larger and their shape kept, for
    `augment` and `center` to cut to `size`; 0: as the middle square alone, scaled to `size`."""
    augment: tuple[Augmentation, ...] = ()
    """What is done to each image in training, in order; a crop without a size of its own cuts to `size`."""
    center: tuple[Augmentation, ...] = ()
    """What is done to each image in evaluation."""
    mix: tuple[Mixing, ...] = ()
    """What mixes images of a batch, last, in training."""
    levels: tuple[float, float] | None = None
    """Which numbers are black and white, in arrays and in files of more than 8 bits: 0 1 for floats, 0 4095 for 12
    bits; None: uint8, bool and files of 16 bits say it by themselves, and nothing else does."""

    def prepare(self) -> str:
        return f"{super().prepare()}; images by {decoder()}"

    def spec(self) -> Spec:
        side = self.canvas or self.size
        sizes = {"sizes": jax.ShapeDtypeStruct((self.batch, 2), np.int32)} if self.canvas else {}
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, side, side, self.channels), np.uint8),
            **sizes,  # height and width of what is real, at the top left
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
                f"--data.classes {self.classes}: the records have {len(self.names)} classes: {', '.join(self.names)}."
            )
        super().check()

    def read(self, record: Record) -> Example:
        example: Example = {"targets": self.class_of(record), "mask": np.float32(1)}
        with decoding():
            found = image_of(record, self.levels)
            if not self.canvas:
                return example | {"inputs": square(found, self.size, self.channels, self.levels)}
            image = bounded(found, self.canvas, self.channels, self.levels)
        canvas = np.zeros((self.canvas, self.canvas, self.channels), np.uint8)
        canvas[: image.shape[0], : image.shape[1]] = image
        return example | {"inputs": canvas, "sizes": np.array(image.shape[:2], np.int32)}

    def made_up(self) -> "Images":
        """The same on made-up records."""
        records = Synthetic(images=("image",), labels=(("label", self.classes),))
        return dataclasses.replace(self, records=records)

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        batch = dict(batch)
        images = batch["inputs"].astype(jnp.float32) / 255  # [B, Y, X, C]
        whole = jnp.full((images.shape[0], 2), self.canvas or self.size, jnp.int32)
        sizes = batch.pop("sizes", whole)
        operations = self.augment if train else self.center
        check_order(
            operations, self.channels, "augment" if train else "center", full=not self.canvas
        )
        if self.canvas and not any(operation.crops for operation in operations):
            raise Refused(
                f"images of many sizes, on a canvas of {self.canvas}, are to be cut to one of {self.size}: put a crop "
                f"in --data.augment and in --data.center, or leave --data.canvas 0."
            )
        for number, operation in enumerate(operations):
            if getattr(operation, "size", self.size) is None:
                operation = dataclasses.replace(operation, **{"size": self.size})  # type: ignore[type-var]
            images, sizes = jax.vmap(operation)(images, sizes, drawn(keys, number))
            images = images.astype(jnp.float32)  # where JAX draws in float64 too
        if images.shape[1:3] != (self.size, self.size):
            raise Refused(
                f"images of {images.shape[1]} x {images.shape[2]} come out where --data.size is {self.size}: leave the "
                f"size of a crop to the data set."
            )
        targets = batch["targets"]
        if train and self.mix:
            targets = jax.nn.one_hot(targets, self.classes)
            for number, mixing in enumerate(self.mix):
                images, targets = mixing(
                    images, targets, batch["mask"], drawn(keys, len(self.augment) + number)
                )
            images, targets = images.astype(jnp.float32), targets.astype(jnp.float32)
        return {**batch, "inputs": images, "targets": targets}


def drawn(keys: jax.Array, number: int) -> jax.Array:
    """The keys [B] of one operation."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def image_of(record: Record, levels: Levels = None) -> Image:
    """The image of a record: the bytes of a file, or uint8 [Y, X, C]."""
    value = present(record, "image")
    if isinstance(value, bytes):
        return value
    numbers = array(value, "image")
    if numbers.dtype.kind == "S" and not numbers.ndim:
        return numbers.item()
    if numbers.dtype.kind not in "biuf":
        raise MismatchError(
            f"its 'image' is {kind(numbers)}: an image is the bytes of a file, or an array of numbers"
        )
    return eight_bits(numbers, levels)


def square(image: Image, size: int, channels: int, levels: Levels = None) -> np.ndarray:
    """The middle square of an image, scaled: uint8 [size, size, channels]."""
    if isinstance(image, np.ndarray) and image.shape == (size, size, channels):
        return image
    if isinstance(image, bytes) and channels == 3:
        pixels = decode(image, size, levels=levels)
        top, left = ((side - size) // 2 for side in pixels.shape[:2])
        if min(top, left) >= 0:
            return pixels[top : top + size, left : left + size]
        image = pixels  # smaller than it is wanted
    picture = opened(image, levels)
    side = min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    return scaled(picture, (size, size), (left, top, left + side, top + side), channels)


def bounded(image: Image, canvas: int, channels: int, levels: Levels = None) -> np.ndarray:
    """A whole image, scaled down where its longer side is above `canvas`: uint8 [Y, X, channels]."""
    if isinstance(image, bytes) and channels == 3:
        return decode(image, canvas, longer=True, levels=levels)
    picture = opened(image, levels)
    height, width = wanted((picture.height, picture.width), canvas, longer=True)
    return scaled(picture, (width, height), (0, 0, *picture.size), channels)


def opened(image: Image, levels: Levels = None) -> Any:
    """An image as a Pillow image of 8 bits, grey or in colours."""
    if isinstance(image, np.ndarray):
        return picture_of(image)
    from PIL import Image as Pillow  # here: slow to import, and not every data set needs it

    with Pillow.open(io.BytesIO(image)) as picture:
        return plain(picture, levels)


def scaled(
    picture: Any, size: tuple[int, int], box: tuple[float, float, float, float], channels: int
) -> np.ndarray:
    """A box (left, top, right, bottom) of a Pillow image at a size (width, height): uint8 [height, width, channels]."""
    if channels not in (1, 3):
        raise MismatchError(
            f"an image of {channels} channels cannot be scaled: give --data.channels 1 or 3, or arrays of size"
        )
    mode = "L" if channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    if box != (0, 0, *picture.size) or size != picture.size:
        picture = picture.resize(size, 2, box=box)  # bilinear, over all that a pixel covers
    return np.asarray(picture).reshape(size[1], size[0], -1)
