"""Records from Parquet files, one per row."""

import collections
import dataclasses
import difflib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File, FilePatterns, OpenFiles, ScanResult, scan_rows
from jaxbig.errors import Refused

MAX_CACHED = 1 << 28
"""Bytes of decoded row groups that are kept in memory at most."""
OPEN = 64
"""Files that are open at a time at most."""


class OpenParquet(OpenFiles):
    """Rows, read a row group at a time; the most recently used groups stay in memory."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        # for each path the file, and the first row of each row group and the end
        self.opened: dict[str, tuple[Any, np.ndarray]] = {}
        self.groups: collections.OrderedDict[tuple[str, int], Any] = collections.OrderedDict()
        self.lock = threading.Lock()  # a Parquet file is not read by two threads at once

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Reads rows in the order of the files, so that a row group is decoded once."""
        found: dict[int, Record] = {}
        for index in sorted(set(indices), key=lambda index: index % len(self.chosen)):
            found[index] = self[index]
        return [dict(found[index]) for index in indices]

    def read(self, file: File, start: int, size: int) -> Record:
        with self.lock:
            group, first = self.group(file.path, start)
        return group.slice(start - first, 1).to_pylist()[0]

    def group(self, path: str, row: int) -> tuple[Any, int]:
        """The row group that holds a row of a file, and the first row of the group."""
        if path not in self.opened:
            file = parquet_file(path)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self.opened[path] = file, np.cumsum([0, *sizes])
            if len(self.opened) > OPEN:
                self.opened.pop(next(iter(self.opened)))[0].close()
        file, firsts = self.opened[path]
        number = int(np.searchsorted(firsts, row, side="right")) - 1
        if (path, number) not in self.groups:
            columns = list(self.records.columns) or None
            self.groups[path, number] = file.read_row_group(number, columns=columns)
            while (
                len(self.groups) > 1
                and sum(group.nbytes for group in self.groups.values()) > MAX_CACHED
            ):
                self.groups.popitem(last=False)
        self.groups.move_to_end((path, number))
        return self.groups[path, number], int(firsts[number])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(FilePatterns):
    """Rows of Parquet files: records {column: value} of plain Python values.

    A record's split is decided by the hash of the file's name and the row's number. To read one row
    its row group is decoded, so files that are read in random order need small groups (a few
    thousand rows).
    """

    columns: tuple[str, ...] = ()
    """Columns to read; none: all."""

    opened = OpenParquet

    def scan(self, file: File) -> ScanResult:
        opened = parquet_file(file.path)
        there = opened.schema_arrow.names
        rows = opened.metadata.num_rows
        for column in self.columns:
            if column not in there:
                near = difflib.get_close_matches(column, there, 1, 0.3) or there
                raise Refused(
                    f"{file.path} has no column {column}; the nearest is {near[0]} of "
                    f"{len(there)}: {', '.join(there)}."
                )
        return scan_rows(file, rows)


def parquet_file(path: str) -> Any:
    """Opens a Parquet file; raises `Refused` if it is none."""
    import pyarrow  # here: slow to import, and not every data set needs it
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise Refused(
            f"{path} cannot be read as a Parquet file: {' '.join(str(error).split())}"
        ) from error
