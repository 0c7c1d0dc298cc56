"""Records of several handwritten digits on textured paper, with each digit's pixels and box.

The digits are scikit-learn's, of the splits of `Digits`; their places, sizes, overlaps and shades
and the paper are random. A record is made when it is read, from its split and number alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.builtin.digits import JaxbigDigits
from jaxbig.data.core.content_digest import digest_records
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.record_random import Numbers
from jaxbig.data.records.tfds_builder import columns, identity, prepared
from jaxbig.errors import Refused

SPLITS = {"train": 0, "eval": 1}
TEXTURE = 4  # patches of paper along a side
INK = 200  # of 255: from here on no paper is seen
HIDDEN = 0.25  # of its ink: a digit of which less is seen is no object


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitCanvas(Records):
    """Digits on paper: `image` uint8 [side, side, 3], gray, and the class of each pixel, `mask`
    uint8 [side, side]: 0 is paper, 1 to 10 are the digits 0 to 9. Later digits lie on earlier ones.

    The digits are also objects, `boxes` [n, 4] (top, left, bottom, right, as fractions of the
    image) and `labels` [n]. A box is that of the digit's whole ink, also where another digit covers
    it; a digit of which less than a quarter is seen is left out.
    """

    side: PositiveInt = 32
    """Height and width, in pixels."""
    most: PositiveInt = 3
    """The most digits of an image."""
    smallest: PositiveInt = 10
    """The smallest height or width of a digit, in pixels."""
    largest: PositiveInt = 20
    """The largest height or width of a digit."""
    train_examples: PositiveInt = 8_000
    """Number of training records."""
    eval_examples: PositiveInt = 500
    """Number of records held out; their digits are in no training record."""

    def check_fields(self) -> None:
        if not self.smallest <= self.largest <= self.side:
            raise Refused(
                f"smallest {self.smallest}, largest {self.largest} and side {self.side} must not "
                f"become smaller."
            )

    def prepare(self) -> str:
        digits = identity(prepared(JaxbigDigits))
        few = [OpenCanvas(self, split, 16) for split in SPLITS]
        return f"{self} of {digits}, first records: {', '.join(map(digest_records, few))}"

    def open(self, split: str) -> Sequence[Record]:
        count = {"train": self.train_examples, "eval": self.eval_examples}[split]
        return OpenCanvas(self, split, count)


class OpenCanvas(Sequence[Record]):
    """The records of a split."""

    def __init__(self, canvas: DigitCanvas, split: str, count: int):
        self.canvas = canvas
        self.split = SPLITS[split]
        self.examples = count
        read = columns(prepared(JaxbigDigits), split)
        self.images = (15 * np.stack(read["image"])).astype(np.uint8)  # [N, 8, 8], to 240
        self.labels = np.array(read["label"], np.uint8)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        numbers = Numbers(self.split, range(self.examples)[index])
        canvas = self.canvas
        light = numbers.uniform(70, 185)
        image = light + numbers.uniform(0, 50) * texture(numbers, canvas.side)  # [Y, X]
        mask = np.zeros(image.shape, np.uint8)
        on_top = np.full(image.shape, -1)  # which digit is seen
        inks = []
        labels = []
        for _ in range(1 + numbers.integer(canvas.most)):
            which = numbers.integer(len(self.images))
            sizes = canvas.largest - canvas.smallest + 1
            height, width = (canvas.smallest + numbers.integer(sizes) for _ in range(2))
            top, left = (numbers.integer(canvas.side - size + 1) for size in (height, width))
            shade = light + (-1, 1)[numbers.integer(2)] * numbers.uniform(50, 110)
            ink = np.minimum(resized(self.images[which], height, width) / INK, 1)
            there = np.s_[top : top + height, left : left + width]
            image[there] += ink * (shade - image[there])
            mask[there] = np.where(ink > 0.5, self.labels[which] + 1, mask[there])
            on_top[there] = np.where(ink > 0.5, len(inks), on_top[there])
            inks.append(np.add(np.argwhere(ink > 0.5), (top, left)))  # [pixels, 2]
            labels.append(self.labels[which])
        image += numbers.uniform(0, 12) * numbers.noise(image.size).reshape(image.shape)
        gray = np.round(image).clip(0, 255).astype(np.uint8)
        seen = [
            number
            for number, pixels in enumerate(inks)
            if (on_top == number).sum() > HIDDEN * len(pixels)
        ]
        boxes = [[*inks[number].min(axis=0), *inks[number].max(axis=0) + 1] for number in seen]
        return {
            "image": np.repeat(gray[..., None], 3, axis=-1),
            "mask": mask,
            "boxes": np.array(boxes, np.float32).reshape(-1, 4) / canvas.side,
            "labels": np.array([labels[number] for number in seen], np.int32),
        }


def texture(numbers: Numbers, side: int) -> np.ndarray:
    """Smooth patches, [side, side] of -1 to 1."""
    patches = 127.5 + 60 * numbers.noise(TEXTURE**2).reshape(TEXTURE, TEXTURE)
    return resized(patches.clip(0, 255).astype(np.uint8), side, side) / 127.5 - 1


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [Y, X] -> [height, width], float64 of 0 to 255."""
    from PIL import Image  # here: slow to import, and not every data set needs it

    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture).astype(np.float64)
