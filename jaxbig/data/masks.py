"""Data set of images with a class per pixel (segmentation), and its folder of files."""

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import FractionBelowOne, NonNegativeInt, PositiveInt
from jaxbig.data.core.cache import digest_once
from jaxbig.data.core.dataset import Batch, Record, Records, Spec
from jaxbig.data.core.examples import Example, Examples
from jaxbig.data.core.fields import MismatchError, array, kind, present
from jaxbig.data.images import central_square, image_of
from jaxbig.data.records.file_index import hashes, readable
from jaxbig.data.records.image_folder import ENDINGS
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.pixels import decoding, height_width
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFolder(Records):
    """Image files with their mask files: FOLDER/images/NAME.jpg with FOLDER/masks/NAME.png.

    Records are {"image": bytes, "mask": bytes}. File extensions may differ. The hash of NAME
    assigns a pair to train or eval.
    """

    folder: str
    """The folder that contains both."""
    images: str = "images"
    """Name of the folder of images in it."""
    masks: str = "masks"
    """Name of the folder of masks in it."""
    eval_share: FractionBelowOne = 0.05
    """Fraction of the images held out for evaluation, by the hash of each name."""

    def pairs(self) -> list[tuple[Path, Path]]:
        """Each image with its mask, sorted by name; raises `Refused` if one has no counterpart."""
        images = self.files_by_name(self.images)
        masks = self.files_by_name(self.masks)
        for files, others, part in ((images, masks, self.masks), (masks, images, self.images)):
            if lost := sorted(set(files) - set(others)):
                raise Refused(
                    f"{files[lost[0]]} has no counterpart in {Path(self.folder) / part} "
                    f"({len(lost)} of {len(files)} have none): an image and its mask must have the "
                    f"same name, up to the extension."
                )
        return [(images[name], masks[name]) for name in sorted(images)]

    def files_by_name(self, part: str) -> dict[str, Path]:
        """The files of one of the two folders, by name without extension."""
        folder = Path(os.path.abspath(os.path.expanduser(self.folder))) / part
        with readable(str(folder)):
            files = sorted(
                file
                for file in folder.iterdir()
                if file.suffix.lower() in ENDINGS and file.name[0] != "."
            )
        by_name = {file.stem: file for file in files}
        if not files:
            raise Refused(f"{folder} has no image ({' '.join(ENDINGS)}).")
        if len(by_name) < len(files):
            raise Refused(
                f"{folder} has two files of the same name, up to the extension: give each image "
                f"one file."
            )
        return by_name

    def prepare(self) -> str:
        if not 0 < self.eval_share < 1:
            raise Refused(
                f"MaskFolder with eval_share {self.eval_share}: it must be above 0 and below 1."
            )
        pairs = self.pairs()
        sizes = [len(self.open(split)) for split in ("train", "eval")]
        if 0 in sizes:
            raise Refused(
                f"{self.folder} has {sizes[0]} images for train and {sizes[1]} for eval: change "
                f"eval_share, or add images."
            )
        digest = digest_once([file for pair in pairs for file in pair])
        return f"MaskFolder of {len(pairs)} images, eval_share {self.eval_share}, {digest}"

    def open(self, split: str) -> "ImageMasks":
        pairs = self.pairs()
        limit = np.uint64(int(self.eval_share * 2**64))
        held_out = hashes([os.fsencode(image.stem) for image, _ in pairs]) < limit
        is_eval = split == "eval"
        return ImageMasks(
            [pair for pair, out in zip(pairs, held_out, strict=True) if out == is_eval]
        )


class ImageMasks(Sequence[Record]):
    """Records of image and mask files, read on access."""

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
    """Images with a class for each pixel.

    A batch has `inputs` [B, size, size, 3] in [0, 1], the classes `targets` [B, size, size], and
    `mask` [B, size, size], 0 for pixels without a class. A record has `image`, and `mask`: an image
    file whose gray level or palette index is the class, or integers [Y, X]. Both are cropped to
    their central square and resized; the mask by nearest neighbor.
    """

    size: PositiveInt
    """Height and width of the model's input, in pixels."""
    classes: PositiveInt
    """Number of classes."""
    mask_feature: str = "mask"
    """The record's field with the mask."""
    first: NonNegativeInt = 0
    """Value in masks of the first class."""
    ignore: int | None = 255
    """Value in masks of pixels without a class; None: every pixel has one."""
    flip: bool = False
    """Randomly flip half of the images and masks left to right in training."""

    endings = ENDINGS

    def record_of_file(self, content: bytes) -> Record:
        return {"image": content}

    def spec(self) -> Spec:
        shape = (self.batch, self.size, self.size)
        return {
            "inputs": jax.ShapeDtypeStruct((*shape, 3), np.uint8),
            "targets": jax.ShapeDtypeStruct(shape, np.int32),
            "mask": jax.ShapeDtypeStruct(shape, np.float32),
        }

    def read(self, record: Record) -> Example:
        with decoding():
            image = image_of(record)
            mask = pixel_classes(record, self.mask_feature)
            check_aspect_ratios(height_width(image), mask.shape)
            inputs = central_square(image, self.size, 3)
            targets = central_square_nearest(mask, self.size)
        labeled = np.ones(targets.shape, bool) if self.ignore is None else targets != self.ignore
        classes = targets[labeled] - self.first
        if classes.size and (classes.min() < 0 or classes.max() >= self.classes):
            beyond = self.first + (classes.min() if classes.min() < 0 else classes.max())
            raise MismatchError(
                f"its mask has a pixel of {beyond}, but --data.classes {self.classes} means "
                f"{self.first} to {self.first + self.classes - 1}: set more classes, or "
                f"--data.ignore {beyond}"
            )
        return {
            "inputs": inputs,
            "targets": np.where(labeled, targets - self.first, 0),
            "mask": labeled.astype(np.float32),
        }

    def read_unlabeled(self, record: Record) -> Example:
        with decoding():
            shape = height_width(image_of(record))
        return self.read({self.mask_feature: np.full(shape, self.first, np.uint8), **record})

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        batch = {**batch, "inputs": batch["inputs"].astype(jnp.float32) / 255}
        if not (train and self.flip):
            return batch
        coins = jax.vmap(jax.random.bernoulli)(keys)  # [B]

        def flip_some(x: jax.Array) -> jax.Array:
            return jnp.where(coins.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis=2), x)

        return {name: flip_some(batch[name]) for name in ("inputs", "targets", "mask")}

    def synthetic(self) -> "Masks":
        """The same data set with synthetic records."""
        masks = ((self.mask_feature, self.first, self.classes),)
        return dataclasses.replace(self, records=Synthetic(images=("image",), masks=masks))


def check_aspect_ratios(image: tuple[int, int], mask: tuple[int, ...]) -> None:
    """Raises `MismatchError` if an image and its mask, (height, width), differ in aspect ratio.

    Their central squares would not show the same.
    """
    if abs(image[0] * mask[1] - image[1] * mask[0]) > max(image + mask):  # a pixel of rounding
        raise MismatchError(
            f"its image is {image[0]} high and {image[1]} wide, but its mask {mask[0]} high and "
            f"{mask[1]} wide: both must show the same, upright"
        )


def pixel_classes(record: Record, name: str) -> np.ndarray:
    """The values of a record's mask, the field `name`, integers [Y, X]."""
    from PIL import Image  # here: slow to import, and not every data set needs it

    value: Any = present(record, name, "--data.mask-feature")
    if isinstance(value, bytes):
        with Image.open(io.BytesIO(value)) as picture:
            if picture.mode not in ("1", "L", "P", "I", "I;16"):
                raise MismatchError(
                    f"its mask is an image of mode {picture.mode}: classes are gray levels or a "
                    f"palette"
                )
            values = np.asarray(picture).astype(np.int64)
    else:
        values = array(value, name)
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise MismatchError(
            f"its mask is {kind(values)} of shape {values.shape}: it must be integers [Y, X]"
        )
    return values


def central_square_nearest(values: np.ndarray, size: int) -> np.ndarray:
    """The central square of a mask [Y, X], resized by nearest neighbor: int32 [size, size]."""
    side = min(values.shape)
    top, left = ((length - side) // 2 for length in values.shape)
    nearest = ((np.arange(size) + 0.5) * side / size).astype(int)
    return values[top : top + side, left : left + side][nearest][:, nearest].astype(np.int32)
