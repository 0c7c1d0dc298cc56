"""Data sets of the TensorFlow Datasets catalogue by name, as they stand prepared on this machine.

Nothing is fetched: the data is prepared beforehand, in a format that is read in any order, into the folder that
TFDS_DATA_DIR names (or `~/tensorflow_datasets`):

    tfds build NAME --file_format=array_record

Records are read when a batch needs them. Text is read as bytes, ended by a 0 and cut at `length`; special tokens
are numbered after the 256 bytes.
"""

import abc
import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder, registered

from jaxbig.data.base import Data, Rows, Source, Spec
from jaxbig.errors import Refused

Example = dict[str, np.ndarray]
BYTES = 256


class Records:
    """A source over prepared records; `read` makes an example of each when it is asked for."""

    def __init__(self, records: Any, read: Any):
        self.records, self.read = records, read

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: np.ndarray) -> Rows:
        examples = [self.read(record) for record in self.records.__getitems__(indices.tolist())]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalogue(Data):
    """A prepared data set of the catalogue."""

    name: str
    """As TFDS has it: `imagenet2012`, `glue/sst2`, `wmt14_translate/de-en`, with `:1.0.0` for a version."""
    train_split: str = "train"
    """Any split of TFDS, such as `train[5%:]`."""
    eval_split: str = "test"

    @abc.abstractmethod
    def read(self, record: Any) -> Example:
        """An example [...] of a record, with its `mask`."""

    def builder(self) -> tfds.core.DatasetBuilder:
        """The data set where it stands; `Refused` if it does not, or cannot be read in any order."""
        root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
        mend = f"prepare it with `tfds build {self.name} --file_format=array_record --data_dir={root}`"
        try:
            builder = read_only_builder.builder_from_files(self.name, data_dir=root)
        except registered.DatasetNotFoundError as error:
            raise Refused(
                f"data set {self.name} is not prepared in {root}: {mend}, or set TFDS_DATA_DIR to where it is."
            ) from error
        for split in (self.train_split, self.eval_split):
            if split.split("[")[0] not in builder.info.splits:
                raise Refused(f"data set {self.name} has no split {split!r}, but {', '.join(builder.info.splits)}.")
        if not builder.info.available_file_formats() & tfds.core.FileFormat.with_random_access():
            raise Refused(f"data set {self.name} in {builder.data_path} cannot be read in any order: {mend}.")
        return builder

    def prepare(self) -> str:
        info = self.builder().info
        sizes = [f"{name} {split.num_examples} examples {split.num_bytes} bytes" for name, split in info.splits.items()]
        return f"{info.full_name} {', '.join(sizes)}"

    def source(self, split: str) -> Source:
        chosen = {"train": self.train_split, "eval": self.eval_split}[split]
        return Records(self.builder().as_data_source(chosen), self.read)  # type: ignore[call-arg]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Catalogue):
    """Images `inputs` [B, size, size, channels] of 0 to 1, and their class `targets` [B].

    An image of another size is scaled so that its shorter side fits, and cut to its middle.
    """

    size: int
    channels: int = 3
    classes: int

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, self.size, self.size, self.channels), np.float32),
            "targets": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Any) -> Example:
        pixels = fitted(record["image"], self.size, self.channels).astype(np.float32) / 255
        return {"inputs": pixels, "targets": np.int32(record["label"]), "mask": np.float32(1)}  # type: ignore[dict-item]


def fitted(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """uint8 [height, width, 1 or 3] -> [size, size, channels]: the middle square, scaled; grey or colours."""
    height, width, found = image.shape
    if (height, width, found) == (size, size, channels):
        return image
    from PIL import Image  # here: slow to import, and not every data set needs it

    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    picture = Image.fromarray(image[..., 0] if found == 1 else image).convert("L" if channels == 1 else "RGB")
    square = (left, top, left + side, top + side)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(picture).reshape(size, size, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Catalogue):
    """What the data sets of text have in common; a record is a row."""

    length: int
    """Tokens a row; what is longer is cut."""
    vocab: int = BYTES
    """How many different tokens there are: the bytes, and the special ones."""

    special = 0  # how many special tokens

    def prepare(self) -> str:
        if self.vocab != BYTES + self.special:
            raise Refused(
                f"data set {self.name} with --data.vocab {self.vocab}: there is no tokenizer of that size yet, only "
                f"bytes, which are {BYTES + self.special} with their special ones: in a file of your own, give data, "
                f"model and objective that many."
            )
        return super().prepare()

    def tokens(self, text: bytes) -> tuple[np.ndarray, int]:
        """The text's bytes and a 0, cut at `length` and filled up with 0 [L]; and how many count."""
        data = np.frombuffer(text[: self.length] + b"\0", np.uint8)[: self.length]
        return np.pad(data, (0, self.length - len(data))).astype(np.int32), len(data)

    def mask(self, count: int) -> np.ndarray:
        return (np.arange(self.length) < count).astype(np.float32)

    def shaped(self, **shapes: Any) -> Spec:
        """A spec; each shape without the batch. All are int32 but `mask`."""
        kinds = {name: np.float32 if name == "mask" else np.int32 for name in shapes}
        return {name: jax.ShapeDtypeStruct((self.batch, *shape), kinds[name]) for name, shape in shapes.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens(Text):
    """Texts to be continued: `targets` [B, L], and `inputs` [B, L] one token late, after a 0."""

    feature: str = "text"

    def spec(self) -> Spec:
        return self.shaped(inputs=(self.length,), targets=(self.length,), mask=(self.length,))

    def read(self, record: Any) -> Example:
        targets, count = self.tokens(record[self.feature])
        return {"inputs": np.append(np.int32(0), targets[:-1]), "targets": targets, "mask": self.mask(count)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows(Text):
    """Texts to be filled in: `inputs` [B, L] as they are, to be masked, with `lengths` [B]."""

    feature: str = "text"
    vocab: int = BYTES + 1
    """How many different tokens there are, the last one the mask."""

    special = 1

    @property
    def mask_token(self) -> int:
        return self.vocab - 1

    def spec(self) -> Spec:
        return self.shaped(inputs=(self.length,), lengths=(), mask=(self.length,))

    def read(self, record: Any) -> Example:
        inputs, count = self.tokens(record[self.feature])
        return {"inputs": inputs, "lengths": np.int32(count), "mask": self.mask(count)}  # type: ignore[dict-item]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences(TokenRows):
    """Texts `inputs` [B, L] with `lengths` [B], and their class `targets` [B]; tokens as TokenRows has them."""

    classes: int
    label: str = "label"

    def spec(self) -> Spec:
        return self.shaped(inputs=(self.length,), lengths=(), targets=(), mask=())

    def read(self, record: Any) -> Example:
        inputs, count = self.tokens(record[self.feature])
        numbers = {"lengths": np.int32(count), "targets": np.int32(record[self.label]), "mask": np.float32(1)}
        return {"inputs": inputs, **numbers}  # type: ignore[dict-item]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Text):
    """Texts `inputs` [B, L] with `lengths` [B], and what they become, `targets` [B, L], closed by `end`."""

    source_feature: str
    target_feature: str
    vocab: int = BYTES + 2
    """How many different tokens there are, the last two `start` and `end`."""

    special = 2

    @property
    def start(self) -> int:
        return self.vocab - 2

    @property
    def end(self) -> int:
        return self.vocab - 1

    def spec(self) -> Spec:
        return self.shaped(inputs=(self.length,), lengths=(), targets=(self.length,), mask=(self.length,))

    def read(self, record: Any) -> Example:
        inputs, count = self.tokens(record[self.source_feature])
        targets, ends = self.tokens(record[self.target_feature])
        targets[ends - 1] = self.end  # in place of the 0, or of what was cut
        return {"inputs": inputs, "lengths": np.int32(count), "targets": targets, "mask": self.mask(ends)}  # type: ignore[dict-item]
