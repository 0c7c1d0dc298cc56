"""Data set of scikit-learn's 1,797 handwritten digits of 8x8; prepared once in TFDS's folder.

The split is fixed: 1,437 to train and 360 to evaluate, after one fixed shuffle of all.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Data, Records, Rows, Source, Spec
from jaxbig.data.images import central_square
from jaxbig.data.pipeline.sampler import epoch_order
from jaxbig.data.records.image_folder import ENDINGS
from jaxbig.data.records.tfds_builder import Builder, Record, columns, identity, prepared
from jaxbig.data.transforms.pixels import decoding
from jaxbig.errors import Refused

TRAIN = 1437
"""Training images."""


class JaxbigDigits(Builder):
    """scikit-learn's handwritten digits, 8x8 pixels of 0 to 16."""

    def features(self) -> dict[str, Any]:
        image = tfds.features.Tensor(shape=(8, 8), dtype=np.uint8)
        return {"image": image, "label": tfds.features.Scalar(np.int32)}

    def records(self) -> dict[str, list[Record]]:
        import sklearn.datasets  # here: slow to import, and needed once

        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8).astype(np.uint8)
        labels = labels.astype(np.int32)
        all_records = [
            {"image": images[i], "label": labels[i]} for i in epoch_order(0, 0, len(images))
        ]
        return {"train": all_records[:TRAIN], "eval": all_records[TRAIN:]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Data):
    """scikit-learn's handwritten digits: `inputs` [B, 8, 8, 1] of 0 to 1, `targets` [B]."""

    train_examples: PositiveInt = TRAIN
    """The number of training images, the first ones."""

    classes = 10
    endings = ENDINGS

    def check_fields(self) -> None:
        if self.train_examples > TRAIN:
            raise Refused(f"train_examples {self.train_examples}: there are {TRAIN}.")

    def record_of_file(self, content: bytes) -> Record:
        return {"image": content}

    def read_unlabeled(self, record: Record) -> Rows:
        """The example of an image: a file with light ink on dark paper, or numbers of 0 to 16."""
        if "image" not in record:
            return super().read_unlabeled(record)
        if isinstance(record["image"], bytes):
            with decoding():
                image = central_square(record["image"], 8, 1).astype(np.float32) / 255
        else:
            image = np.asarray(record["image"], np.float32)[..., None] / 16
        return super().read_unlabeled({**record, "inputs": image})

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, 8, 8, 1), np.float32),
            "targets": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def prepare(self) -> str:
        return identity(prepared(JaxbigDigits))

    def source(self, split: str) -> Source:
        read = columns(prepared(JaxbigDigits), split)
        images = np.stack(read["image"]).astype(np.float32)[..., None] / 16
        labels = np.array(read["label"], np.int32)
        count = self.train_examples if split == "train" else None
        return ArraySource(inputs=images[:count], targets=labels[:count])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitRecords(Records):
    """The same digits and splits as records: `image`, uint8 [8, 8, 1] of 0 to 240, and `label`."""

    def prepare(self) -> str:
        return identity(prepared(JaxbigDigits))

    def open(self, split: str) -> Sequence[Record]:
        read = columns(prepared(JaxbigDigits), split)
        pairs = zip(read["image"], read["label"], strict=True)
        return [{"image": 15 * image[..., None], "label": label} for image, label in pairs]
