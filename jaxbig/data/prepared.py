"""Data sets prepared by TFDS builders of our own, without TensorFlow, into ArrayRecord files.

They stand where TFDS keeps all data sets: `~/tensorflow_datasets`, or the folder that TFDS_DATA_DIR names.
"""

import contextlib
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")


def data_dir() -> Path:
    """Where prepared data sets stand."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def prepared(
    builder_class: type[tfds.core.GeneratorBasedBuilder], **options: Any
) -> tfds.core.DatasetBuilder:
    """The builder with its data ready; prepared by one process while others wait, begun anew if killed half-way.

    TFDS writes into a folder of another name and renames it when it is whole, so what is found is whole.
    """
    root = data_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        builder = builder_class(data_dir=root, file_format="array_record", **options)
        if not builder.is_prepared():
            with filelock.FileLock(root / f"{builder.name}.lock"):
                _prepare(builder)
            builder = builder_class(data_dir=root, file_format="array_record", **options)
    except OSError as error:
        raise Refused(
            f"data set {builder_class.name} cannot be prepared in {root}: {error.strerror or error}; "
            f"set TFDS_DATA_DIR to a folder with room that can be written."
        ) from error
    return builder


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    if builder.is_prepared():  # by the process that held the lock before
        return
    target = Path(builder.data_path)
    for leftover in target.parent.glob("incomplete.*"):  # of a preparation that was killed
        shutil.rmtree(leftover)
    log.info("preparing data set %s in %s (once)", builder.name, target)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints; standard output is for results
        builder.download_and_prepare()


def columns(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, list[Any]]:
    """Every record of a small split, in the order it was written: a list a feature."""
    source: Any = builder.as_data_source(split)
    records = source.__getitems__(range(len(source)))
    return {name: [record[name] for record in records] for name in records[0]}


def identity(builder: tfds.core.DatasetBuilder) -> str:
    """What the data is: its name and the sha256 over its content that the builder noted."""
    return f"{builder.info.full_name} sha256:{builder.info.metadata['sha256']}"


class Arrays:
    """A source over arrays in memory, each [examples, ...]; every row counts."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays = {**arrays, "mask": np.ones(len(next(iter(arrays.values()))), np.float32)}

    def __len__(self) -> int:
        return len(self.arrays["mask"])

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self.arrays.items()}
