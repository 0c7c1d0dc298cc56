"""Synthetic images, texts, sounds and labels, in place of the records of a data set."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jaxbig.constraints import PositiveInt, Range
from jaxbig.data.core.dataset import Record, Records

WORDS = [
    "the",
    "a",
    "one",
    "two",
    "red",
    "blue",
    "old",
    "house",
    "tree",
    "river",
    "bird",
    "reads",
    "sees",
    "slowly",
]
SPLITS = ("train", "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic(Records):
    """The same few records each time; each field lists the features of one kind."""

    count: PositiveInt = 48
    """Records of each split."""
    images: tuple[str, ...] = ()
    """JPEG images of sizes around 100 x 100."""
    masks: tuple[tuple[str, int, int], ...] = ()
    """Names of masks of the first image, each with its least value and how many there are."""
    texts: tuple[str, ...] = ()
    """Texts of 3 words or more."""
    words: Annotated[int, Range(int, ge=4)] = 60
    """Words that a text stays below."""
    waves: tuple[str, ...] = ()
    """Sounds of up to 16,000 int16 samples."""
    labels: tuple[tuple[str, int], ...] = ()
    """Names, each with the number that its whole numbers stay below."""
    spans: tuple[tuple[str, str], ...] = ()
    """Names of answers, each with that of the text of which they are a part."""
    objects: tuple[tuple[str, str, int, int], ...] = ()
    """Names of boxes and of their labels, each pair with the number of classes and the most
    objects."""

    def open(self, split: str) -> Sequence[Record]:
        draw = np.random.Generator(np.random.Philox(key=SPLITS.index(split)))
        return [self.record(draw) for _ in range(self.count)]

    def record(self, draw: np.random.Generator) -> Record:
        record: Record = {name: image(draw) for name in self.images}
        record |= {
            name: " ".join(draw.choice(WORDS, draw.integers(3, self.words))).encode()
            for name in self.texts
        }
        for name, text in self.spans:
            words = record[text].decode().split(" ")
            start = draw.integers(len(words))
            place = sum(len(word) + 1 for word in words[:start])
            record[name] = {"text": [words[start]], "answer_start": [place]}
        for name, first, count in self.masks:
            shape = size_of(record[self.images[0]])
            record[name] = draw.integers(first, first + count, shape).astype(np.uint8)
        for name in self.waves:
            pitch = draw.uniform(100, 4000)
            samples = draw.integers(8_000, 16_001)
            wave = 8_000 * np.sin(2 * np.pi * pitch / 16_000 * np.arange(samples))
            record[name] = wave.astype(np.int16)
        for boxes, labels, classes, most in self.objects:
            count = draw.integers(most + 1)
            corners = np.sort(draw.uniform(size=(count, 2, 2)), axis=1)  # top left, bottom right
            record[boxes] = corners.reshape(count, 4).astype(np.float32)
            record[labels] = draw.integers(classes, size=count)
        return record | {name: int(draw.integers(count)) for name, count in self.labels}


def size_of(image: bytes) -> tuple[int, int]:
    """Height and width of an image file."""
    from PIL import Image  # here: slow to import, and not every data set needs it

    with Image.open(io.BytesIO(image)) as picture:
        return picture.height, picture.width


def image(draw: np.random.Generator) -> bytes:
    """A JPEG of a few large patches of color."""
    from PIL import Image  # here: slow to import, and not every data set needs it

    height, width = draw.integers(80, 140, 2).tolist()
    patches = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    file = io.BytesIO()
    patches.resize((width, height), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()
