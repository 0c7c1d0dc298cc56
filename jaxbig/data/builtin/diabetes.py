"""Data set of scikit-learn's diabetes study (Efron et al., 2004); prepared once in TFDS's folder.

442 patients, 10 measurements each. The target is the progress of the disease after one year. The
split is fixed: 353 patients for training and 89 for evaluation, after one fixed shuffle.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Data, Rows, Source, Spec
from jaxbig.data.core.fields import numbers
from jaxbig.data.pipeline.sampler import epoch_order
from jaxbig.data.records.tfds_builder import Builder, Record, columns, identity, prepared

TRAIN = 353
MEASURED = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
"""The ten measurements, as scikit-learn names them."""


class JaxbigDiabetes(Builder):
    """scikit-learn's diabetes study in its own units."""

    def features(self) -> dict[str, Any]:
        return {
            "measurements": tfds.features.Tensor(shape=(10,), dtype=np.float32),
            "progress": tfds.features.Scalar(np.float32),
        }

    def records(self) -> dict[str, list[Record]]:
        all_records = [
            {"measurements": measurements, "progress": progress}
            for measurements, progress in zip(*study(), strict=True)
        ]
        return {"train": all_records[:TRAIN], "eval": all_records[TRAIN:]}


@functools.cache
def study() -> tuple[np.ndarray, np.ndarray]:
    """Measurements [442, 10] and progress [442] in the order of the records, from scikit-learn."""
    import sklearn.datasets  # here: slow to import, and needed once

    found = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    measurements, progress = (np.asarray(each, np.float32) for each in found)
    rows = epoch_order(0, 0, len(progress))
    return measurements[rows], progress[rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diabetes(Data):
    """scikit-learn's diabetes data: `inputs` [B, 10] and `targets` [B].

    Both are standardized by the mean and standard deviation of the training rows.
    """

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, 10), np.float32),
            "targets": jax.ShapeDtypeStruct((self.batch,), np.float32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read_unlabeled(self, record: Record) -> Rows:
        """The example of a patient: `measurements` [10], or a number of each name in `MEASURED`."""
        if "inputs" in record:
            return super().read_unlabeled(record)
        if "measurements" in record:
            given = numbers(record, "measurements")
        else:
            given = np.stack([numbers(record, name) for name in MEASURED])
        inputs = _standardized(given, study()[0][:TRAIN])
        return super().read_unlabeled({"inputs": inputs})

    def in_units(self, targets: np.ndarray) -> np.ndarray:
        progress = study()[1][:TRAIN].astype(np.float64)
        return (targets * progress.std() + progress.mean()).astype(np.float32)

    def prepare(self) -> str:
        return identity(prepared(JaxbigDiabetes))

    def source(self, split: str) -> Source:
        builder = prepared(JaxbigDiabetes)
        train = columns(builder, "train")
        read = columns(builder, split)
        return ArraySource(
            inputs=_standardized(read["measurements"], train["measurements"]),
            targets=_standardized(read["progress"], train["progress"]),
        )


def _standardized(values: Any, train: Any) -> np.ndarray:
    statistics = np.asarray(train, np.float64)
    return ((np.asarray(values) - statistics.mean(0)) / statistics.std(0)).astype(np.float32)
