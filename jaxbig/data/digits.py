"""Handwritten digits that come with scikit-learn: 1,797 images of 8x8 (Alpaydin and Kaynak, 1998).

The split is fixed: 1,437 to train and 360 to evaluate, after one fixed shuffle of all.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.data.base import Data, Source, Spec
from jaxbig.data.prepared import Arrays, columns, identity, prepared
from jaxbig.data.stream import order


class JaxbigDigits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, 8x8 pixels of 0 to 16."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(8, 8), dtype=np.uint8),
            "label": tfds.features.Scalar(np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's handwritten digits",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        import sklearn.datasets  # here: slow to import, and needed once

        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        images, labels = images.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int32)
        shuffle = order(0, 0, len(images))
        images, labels = images[shuffle], labels[shuffle]
        self.info.metadata["sha256"] = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
        cut = 1437
        return {
            "train": self._generate_examples(images[:cut], labels[:cut]),
            "eval": self._generate_examples(images[cut:], labels[cut:]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield number, {"image": image, "label": label}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Data):
    """scikit-learn's handwritten digits: `inputs` [B, 8, 8, 1] of 0 to 1, `targets` [B]."""

    classes = 10

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
        return Arrays(inputs=images, targets=np.array(read["label"], np.int32))
