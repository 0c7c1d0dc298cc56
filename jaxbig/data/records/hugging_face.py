"""Records from a folder that Hugging Face's `save_to_disk` wrote, read without that library."""

import collections
import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File, Files, OpenFiles, ScanResult, readable, scan_rows
from jaxbig.errors import Refused

EVALS = ("validation", "eval", "val", "dev", "test")
"""Evaluation splits: the first of them that exists is used."""
OPEN = 16
"""Files that are mapped at a time at most."""


class OpenArrow(OpenFiles):
    """Rows of Arrow files, which are mapped into memory."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tables: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self.lock = threading.Lock()  # no thread closes a file that another is about to read

    def read(self, file: File, start: int, size: int) -> Record:
        with self.lock:
            table = self.tables.pop(file.path, None)
            table = arrow_table(file.path) if table is None else table
            self.tables[file.path] = table  # the most recently used one is last
            while len(self.tables) > OPEN:
                self.tables.popitem(last=False)
        return {name: plain(value) for name, value in table.slice(start, 1).to_pylist()[0].items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(Files):
    """Rows of a saved `Dataset` or `DatasetDict`: records {column: plain Python value}.

    An image or a sound is the bytes of its file. Of a DatasetDict, split `train` is for training
    and `eval_split` for evaluation; of a Dataset the hash of a row's file and number decides.
    """

    folder: str
    """The folder that was saved."""
    eval_split: str = ""
    """The split for evaluation; none: the first of validation, eval, val, dev, test that exists."""

    opened = OpenArrow

    @property
    def root(self) -> Path:
        """The absolute path of the folder."""
        return Path(os.path.abspath(os.path.expanduser(self.folder)))

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the column `label`, or of the only column that has class names."""
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
        """The folder of each split, "train" first; of "" where there is only one."""
        there = self.names()
        if not there:
            return {"": self.root}
        held_out = (
            [self.eval_split] if self.eval_split else [name for name in EVALS if name in there]
        )
        if "train" not in there or not held_out or held_out[0] not in there:
            wanted = self.eval_split or f"one of {', '.join(EVALS)}"
            raise Refused(
                f"{self.root} has the splits {', '.join(there)}, and it needs train and {wanted}."
            )
        return {"train": self.root / "train", "eval": self.root / held_out[0]}

    def has_test(self) -> bool:
        names = self.names()
        return super().has_test() or ("test" in names and self.splits()["eval"].name != "test")

    def open(self, split: str) -> OpenFiles:
        if split == "test" and not self.test_share:
            return dataclasses.replace(self, eval_split="test").open("eval")
        return super().open(split)

    def names(self) -> list[str]:
        """The names of the splits that were saved; none where there is only one."""
        file = self.root / "dataset_dict.json"
        return list(read(file)["splits"]) if file.exists() else []

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
        return scan_rows(file, rows)


def read(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a saved data set; raises `Refused` if it is none."""
    if not path.exists():
        raise Refused(
            f"{path.parent} has no {path.name}: name a folder that Dataset.save_to_disk has "
            f"written."
        )
    with readable(str(path)):
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise Refused(f"{path} is not JSON: {error}") from error
    return found


def arrow_table(path: str) -> Any:
    """Maps an Arrow file into memory; raises `Refused` if it is none."""
    import pyarrow  # here: slow to import, and not every data set needs it

    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise Refused(
            f"{path} cannot be read as an Arrow file: {' '.join(str(error).split())}"
        ) from error


def plain(value: Any) -> Any:
    """A value, or the bytes of the file if it is an image or a sound, {"bytes", "path"}."""
    if not isinstance(value, dict) or set(value) != {"bytes", "path"}:
        return value
    if value["bytes"] is not None:
        return value["bytes"]
    with open(value["path"], "rb") as file:
        return file.read()
