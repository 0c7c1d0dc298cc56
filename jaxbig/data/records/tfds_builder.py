"""Builds the bundled data sets once, under a lock, as ArrayRecord files of TFDS; reads them back.

They are stored where TFDS keeps all data sets: in `~/tensorflow_datasets`, or the folder in
TFDS_DATA_DIR.
"""

import abc
import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxbig.data.core.cache import once
from jaxbig.data.core.dataset import Record, folder_of
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")


def data_folder() -> Path:
    """The folder of all prepared data sets."""
    return folder_of("TFDS_DATA_DIR", "~/tensorflow_datasets")


class Builder(tfds.core.GeneratorBasedBuilder, abc.ABC):
    """A small data set that is built on this machine from its records."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when the records or their digest change

    @abc.abstractmethod
    def features(self) -> dict[str, Any]:
        """The TFDS features by name."""

    @abc.abstractmethod
    def records(self) -> dict[str, list[Record]]:
        """The records of "train" and "eval", in order."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.features())
        metadata = tfds.core.MetadataDict()
        return tfds.core.DatasetInfo(
            builder=self, features=features, metadata=metadata, disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        splits = self.records()
        digest = hashlib.sha256()
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
    """Prepares a bundled data set in one process, while others wait; returns its builder.

    An interrupted preparation is restarted: TFDS writes into a folder of another name and renames
    it when it is complete.
    """
    root = data_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with quiet_absl():
            builder = builder_class(data_dir=root, file_format="array_record")
            if prepare_once(builder, root / f"{builder.name}.lock"):
                builder = builder_class(data_dir=root, file_format="array_record")
    except OSError as error:
        raise Refused(
            f"data set {builder_class.name} cannot be prepared in {root}: "
            f"{error.strerror or error}; set TFDS_DATA_DIR to a folder with room that can be "
            f"written."
        ) from error
    return builder


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
    """A context in which absl does not log TFDS's internals."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl.setLevel(level)


def prepare_once(
    builder: tfds.core.DatasetBuilder, lock: Path, check: Callable[[], None] = lambda: None
) -> bool:
    """Prepares a data set unless another process does: then waits for it.

    Args:
      builder: The data set.
      lock: The lock file of the data set.
      check: Called before a preparation; raises if it cannot work.

    Returns:
      Whether it was not prepared when this was called.
    """

    def prepare() -> None:
        check()
        target = Path(builder.data_path)
        for leftover in target.parent.glob("incomplete.*"):  # of an interrupted preparation
            shutil.rmtree(leftover)
        log.info("preparing data set %s in %s (once)", builder.name, target)
        tfds.disable_progress_bar()
        # TFDS prints to standard output, which is for results.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            builder.download_and_prepare()

    return once(builder.is_prepared, prepare, lock=lock)


def columns(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, list[Any]]:
    """All records of a small split in the order they were written: a list for each feature."""
    source: Any = builder.as_data_source(split)  # type: ignore[call-arg]
    try:
        records = source.__getitems__(range(len(source)))
    except RuntimeError as error:  # ArrayRecord noticed it
        raise Refused(
            f"data set in {builder.data_path} is corrupt: delete that folder to have it rebuilt."
        ) from error
    return {name: [record[name] for record in records] for name in records[0]}


def identity(builder: tfds.core.DatasetBuilder) -> str:
    """The identity of the data: its name, and the sha256 over its records."""
    metadata: Any = builder.info.metadata
    return f"{builder.info.full_name} sha256:{metadata['sha256']}"
