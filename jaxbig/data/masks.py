"""Images whose every pixel has a class: segmentation."""

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import FractionBelowOne, PositiveInt
from jaxbig.data.core.cache import digest_once
from jaxbig.data.core.dataset import Batch, Record, Records, Spec
from jaxbig.data.core.examples import Example, Examples
from jaxbig.data.core.fields import MismatchError, array, kind, present
from jaxbig.data.images import image_of, square
from jaxbig.data.records.file_index import hashes, readable
from jaxbig.data.records.image_folder import ENDINGS
from jaxbig.data.transforms.pixels import ORIENTATION, decoding
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFolder(Records):
    """Images with their masks: records {"image": the file's bytes, "mask": the file's bytes}, FOLDER/images/NAME.jpg
    with FOLDER/masks/NAME.png; endings may differ. The hash of NAME decides for train or eval.
    """

    folder: str
    """The folder with the two."""
    images: str = "images"
    """The folder of images in it."""
    masks: str = "masks"
    """The folder of masks in it."""
    eval_share: FractionBelowOne = 0.05
    """The part of the images that is held out for evaluation, by the hash of each name."""

    def pairs(self) -> list[tuple[Path, Path]]:
        """Each image with its mask, by name; `Refused` where one lacks the other."""
        images, masks = (self.by_name(part) for part in (self.images, self.masks))
        for some, others, part in ((images, masks, self.masks), (masks, images, self.images)):
            if lost := sorted(set(some) - set(others)):
                raise Refused(
                    f"{some[lost[0]]} has no other half in {Path(self.folder) / part} ({len(lost)} of {len(some)} have "
                    f"none): an image and its mask have one name before their endings."
                )
        return [(images[name], masks[name]) for name in sorted(images)]

    def by_name(self, part: str) -> dict[str, Path]:
        """The files of one of the two folders, by their names before the ending."""
        folder = Path(os.path.abspath(os.path.expanduser(self.folder))) / part
        with readable(str(folder)):
            files = sorted(
                each
                for each in folder.iterdir()
                if each.suffix.lower() in ENDINGS and each.name[0] != "."
            )
        found = {file.stem: file for file in files}
        if len(found) < len(files) or not files:
            why = (
                "two files of one name before their endings"
                if files
                else f"no image ({' '.join(ENDINGS)})"
            )
            raise Refused(f"{folder} has {why}: give each image one file.")
        return found

    def prepare(self) -> str:
        if not 0 < self.eval_share < 1:
            raise Refused(
                f"MaskFolder with eval_share {self.eval_share}: it is above 0 and below 1."
            )
        pairs = self.pairs()
        sizes = [len(self.open(split)) for split in ("train", "eval")]
        if 0 in sizes:
            raise Refused(
                f"{self.folder} has {sizes[0]} images for train and {sizes[1]} for eval: set another eval_share, or "
                f"add images."
            )
        said = digest_once([file for pair in pairs for file in pair])
        return f"MaskFolder of {len(pairs)} images, eval_share {self.eval_share}, {said}"

    def open(self, split: str) -> "ImageMasks":
        pairs = self.pairs()
        held_out = hashes([os.fsencode(image.stem) for image, _ in pairs]) < np.uint64(
            int(self.eval_share * 2**64)
        )
        return ImageMasks(
            [pair for pair, out in zip(pairs, held_out, strict=True) if out == (split == "eval")]
        )


class ImageMasks(Sequence[Record]):
    """Opened images and masks."""

    def __init__(self, files: list[tuple[Path, Path]]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        image, mask = self.files[index]
        return {"image": image.read_bytes(), "mask": mask.read_bytes()}

    def where(self, index: int) -> str:
        return str(self.files[index][0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks(Examples):
    """Images `inputs` [B, size, size, 3], 0 to 1, and the class of each pixel, `targets` [B, size, size]; `mask` is 0
    where a pixel is of no class. A record has `image`, and `mask`: the file of an image whose grey level, or place in
    its palette, is the class, or whole numbers [Y, X]. Both are cut to their middle square and scaled, the mask to the
    nearest pixel.
    """

    size: PositiveInt
    """Height and width that the model sees."""
    classes: PositiveInt
    ignore: int | None = 255
    """The value in masks of pixels that are of no class; None: there are none."""
    flip: bool = False
    """Turn every other image and its mask left to right in training."""

    def spec(self) -> Spec:
        shape = (self.batch, self.size, self.size)
        return {
            "inputs": jax.ShapeDtypeStruct((*shape, 3), np.uint8),
            "targets": jax.ShapeDtypeStruct(shape, np.int32),
            "mask": jax.ShapeDtypeStruct(shape, np.float32),
        }

    def read(self, record: Record) -> Example:
        with decoding():
            image, mask = image_of(record), pixels_of(record)
            check_shapes(height_width(image), mask.shape)
            image, targets = square(image, self.size, 3), middle(mask, self.size)
        real = np.ones(targets.shape, bool) if self.ignore is None else targets != self.ignore
        found = targets[real]
        if found.size and (found.min() < 0 or found.max() >= self.classes):
            beyond = found.min() if found.min() < 0 else found.max()
            raise MismatchError(
                f"its mask has a pixel of {beyond}, and --data.classes {self.classes} means 0 to {self.classes - 1}: "
                f"give more classes, or --data.ignore {beyond}"
            )
        return {
            "inputs": image,
            "targets": np.where(real, targets, 0),
            "mask": real.astype(np.float32),
        }

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        batch = {**batch, "inputs": batch["inputs"].astype(jnp.float32) / 255}
        if not (train and self.flip):
            return batch
        turned = jax.vmap(jax.random.bernoulli)(keys)  # [B]

        def flipped(x: jax.Array) -> jax.Array:
            return jnp.where(turned.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis=2), x)

        return {name: flipped(batch[name]) for name in ("inputs", "targets", "mask")}


def height_width(image: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width of an image as it is seen, upright."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    from PIL import Image  # here: slow to import, and not every data set needs it

    with Image.open(io.BytesIO(image)) as picture:
        width, height = picture.size
        return (
            (width, height)
            if picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            else (height, width)
        )


def check_shapes(image: tuple[int, int], mask: tuple[int, ...]) -> None:
    """`MismatchError` if an image and its mask, (height, width) each, are not of one shape, up to their scale: then their
    middle squares do not show the same."""
    if abs(image[0] * mask[1] - image[1] * mask[0]) > max(image + mask):  # a pixel of rounding
        raise MismatchError(
            f"its image is {image[0]} high and {image[1]} wide, and its mask {mask[0]} high and {mask[1]} wide: both "
            f"show the same, upright"
        )


def pixels_of(record: Record) -> np.ndarray:
    """The class of each pixel of a record, whole numbers [Y, X]."""
    from PIL import Image  # here: slow to import, and not every data set needs it

    value: Any = present(record, "mask")
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as picture:
            if picture.mode not in ("1", "L", "P", "I", "I;16"):
                raise MismatchError(
                    f"its mask is an image of mode {picture.mode}: classes are grey levels or a palette"
                )
            values = np.asarray(picture).astype(np.int64)
    else:
        values = array(value, "mask")
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise MismatchError(
            f"its mask is {kind(values)} of shape {values.shape}: it is whole numbers [Y, X]"
        )
    return values


def middle(values: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a mask [Y, X], scaled to the nearest pixel: int32 [size, size]."""
    side = min(values.shape)
    top, left = ((length - side) // 2 for length in values.shape)
    nearest = ((np.arange(size) + 0.5) * side / size).astype(int)
    return values[top : top + side, left : left + side][nearest][:, nearest].astype(np.int32)
