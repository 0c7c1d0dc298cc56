"""Data sets prepared by TFDS builders of our own, without TensorFlow, into ArrayRecord files.

They stand where TFDS keeps all data sets: `~/tensorflow_datasets`, or the folder that TFDS_DATA_DIR names.
"""

import abc
import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.data.core.dataset import Rows, folder_of
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
Record = dict[str, Any]


def data_folder() -> Path:
    """Where prepared data sets stand."""
    return folder_of("TFDS_DATA_DIR", "~/tensorflow_datasets")


class Builder(tfds.core.GeneratorBasedBuilder, abc.ABC):
    """A small data set that is made on this machine: features, and the records of each split, in order."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when the records or their digest change

    @abc.abstractmethod
    def features(self) -> dict[str, Any]:
        """TFDS's features by name."""

    @abc.abstractmethod
    def records(self) -> dict[str, list[Record]]:
        """The records of "train" and "eval"."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.features())
        metadata = tfds.core.MetadataDict()
        return tfds.core.DatasetInfo(
            builder=self, features=features, metadata=metadata, disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        splits, digest = self.records(), hashlib.sha256()
        for split, records in splits.items():
            for record in records:
                for name, value in sorted(record.items()):
                    data = value.encode() if isinstance(value, str) else np.asarray(value).tobytes()
                    digest.update(f"{split} {name} {len(data)} ".encode() + data)
        self.info.metadata["sha256"] = digest.hexdigest()  # type: ignore[index]
        return {split: self._generate_examples(records) for split, records in splits.items()}

    def _generate_examples(self, records: list[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(records)


def prepared(builder_class: type[Builder]) -> tfds.core.DatasetBuilder:
    """The builder with its data ready; prepared by one process while others wait, begun anew if killed half-way.

    TFDS writes into a folder of another name and renames it when it is whole, so what is found is whole.
    """
    root = data_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        builder = builder_class(data_dir=root, file_format="array_record")
        if not builder.is_prepared():
            with filelock.FileLock(root / f"{builder.name}.lock"):
                if not builder.is_prepared():  # by the process that held the lock before
                    prepare_whole(builder)
            builder = builder_class(data_dir=root, file_format="array_record")
    except OSError as error:
        raise Refused(
            f"data set {builder_class.name} cannot be prepared in {root}: {error.strerror or error}; "
            f"set TFDS_DATA_DIR to a folder with room that can be written."
        ) from error
    return builder


def prepare_whole(builder: tfds.core.DatasetBuilder) -> None:
    """Prepares a data set, begun anew where a preparation was killed; who calls it holds the data set's lock."""
    target = Path(builder.data_path)
    for leftover in target.parent.glob("incomplete.*"):  # of a preparation that was killed
        shutil.rmtree(leftover)
    log.info("preparing data set %s in %s (once)", builder.name, target)
    tfds.disable_progress_bar()
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):  # TFDS prints; that is for results
        builder.download_and_prepare()


def columns(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, list[Any]]:
    """Every record of a small split, in the order it was written: a list a feature."""
    source: Any = builder.as_data_source(split)  # type: ignore[call-arg]
    try:
        records = source.__getitems__(range(len(source)))
    except RuntimeError as error:  # ArrayRecord noticed it
        raise Refused(
            f"data set in {builder.data_path} is corrupt: delete that folder, and it is made anew."
        ) from error
    return {name: [record[name] for record in records] for name in records[0]}


def identity(builder: tfds.core.DatasetBuilder) -> str:
    """What the data is: its name, and the sha256 over its records as they were prepared."""
    return f"{builder.info.full_name} sha256:{builder.info.metadata['sha256']}"  # type: ignore[index]


class Arrays:
    """A source over arrays in memory, each [examples, ...]; every row counts."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays = {**arrays, "mask": np.ones(len(next(iter(arrays.values()))), np.float32)}

    def __len__(self) -> int:
        return len(self.arrays["mask"])

    def rows(self, indices: np.ndarray) -> Rows:
        return {name: array[indices] for name, array in self.arrays.items()}
