"""Records in a folder that `save_to_disk` of Hugging Face's `datasets` has written; that library is not needed."""

import collections
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File, Files, OpenFiles, ScanResult, readable, row_hashes
from jaxbig.errors import Refused

EVALS = ("validation", "eval", "val", "dev", "test")
"""Splits that are for evaluation: the first of them that is there."""
OPEN = 16
"""Files that are mapped at a time."""


class OpenArrow(OpenFiles):
    """Rows of Arrow files, which are mapped into memory."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tables: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self.lock = threading.Lock()  # one thread does not close what another is about to read

    def read(self, file: File, start: int, size: int) -> Record:
        with self.lock:
            table = self.tables.pop(file.path, None)
            table = arrow_table(file.path) if table is None else table
            self.tables[file.path] = table  # the one last used comes last
            while len(self.tables) > OPEN:
                self.tables.popitem(last=False)
        return {name: plain(value) for name, value in table.slice(start, 1).to_pylist()[0].items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(Files):
    """Rows of a saved `Dataset` or `DatasetDict`: records {column: plain Python value}, an image or a sound as the
    bytes of its file.

    Of a DatasetDict, split `train` is for training and `eval_split` for evaluation; of a Dataset the hash of a row's
    file and number decides.
    """

    folder: str
    """The folder that was saved."""
    eval_split: str = ""
    """Which split is for evaluation; none: the first of validation, eval, val, dev, test that is there."""

    opened = OpenArrow

    @property
    def root(self) -> Path:
        """The folder, from the root."""
        return Path(os.path.abspath(os.path.expanduser(self.folder)))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of the column `label`, or else of the one column that has names."""
        folder = next(iter(self.splits().values()))
        features = read(folder / "dataset_info.json").get("features") or {}
        named = {
            column: tuple(each["names"])
            for column, each in features.items()
            if isinstance(each, dict) and "names" in each
        }
        if "label" in features:
            return named.get("label", ())
        return next(iter(named.values())) if len(named) == 1 else ()

    def splits(self) -> dict[str, Path]:
        """The folder of each split, "train" first; of "" where there is one alone."""
        if not (self.root / "dataset_dict.json").exists():
            return {"": self.root}
        there = read(self.root / "dataset_dict.json")["splits"]
        held_out = (
            [self.eval_split] if self.eval_split else [name for name in EVALS if name in there]
        )
        if "train" not in there or not held_out or held_out[0] not in there:
            wanted = self.eval_split or f"one of {', '.join(EVALS)}"
            raise Refused(
                f"{self.root} has the splits {', '.join(there)}, and it needs train and {wanted}."
            )
        return {"train": self.root / "train", "eval": self.root / held_out[0]}

    def found(self) -> list[File]:
        return list(self.files())

    def files(self) -> Iterator[File]:
        """The Arrow files of each split."""
        for split, folder in self.splits().items():
            for each in read(folder / "state.json")["_data_files"]:
                path = folder / each["filename"]
                yield File(str(path), f"{split}/{path.name}" if split else path.name, split)

    def scan(self, file: File) -> ScanResult:
        rows = arrow_table(file.path).num_rows
        with open(file.path, "rb") as data:
            content = hashlib.file_digest(data, "sha256").digest()
        return ScanResult(
            np.arange(rows), np.zeros(rows, np.int64), row_hashes(file.name, rows), content
        )


def read(path: Path) -> dict[str, Any]:
    """A JSON file of a saved data set; `Refused` if it is none."""
    if not path.exists():
        raise Refused(
            f"{path.parent} has no {path.name}: name a folder that Dataset.save_to_disk has written."
        )
    with readable(str(path)):
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise Refused(f"{path} is not JSON: {error}") from error
    return found


def arrow_table(path: str) -> Any:
    """An Arrow file, mapped; `Refused` if it is none."""
    import pyarrow  # here: slow to import, and not every data set needs it

    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise Refused(
            f"{path} cannot be read as an Arrow file: {' '.join(str(error).split())}"
        ) from error


def plain(value: Any) -> Any:
    """A value as it is; of an image or a sound, {"bytes", "path"}, the bytes of its file."""
    if not isinstance(value, dict) or set(value) != {"bytes", "path"}:
        return value
    if value["bytes"] is not None:
        return value["bytes"]
    with open(value["path"], "rb") as file:
        return file.read()
