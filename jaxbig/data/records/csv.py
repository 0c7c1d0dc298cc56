"""Records from CSV files, one per row; a file is held in memory."""

import collections
import dataclasses
import difflib
import os
import threading
from typing import Any

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File, FilePatterns, OpenFiles, ScanResult, scan_rows
from jaxbig.errors import Refused

WHOLE = 2**30
"""Bytes of a file that determine the types of its columns."""


class OpenCsv(OpenFiles):
    """Rows of tables; a table is read when its first row is needed."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tables: dict[str, Any] = {}
        self.lock = threading.Lock()  # threads that need a file at once read it once

    def read(self, file: File, start: int, size: int) -> Record:
        with self.lock:
            if file.path not in self.tables:
                self.tables[file.path] = table(file.path, self.records)
        return self.tables[file.path].slice(start, 1).to_pylist()[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Csv(FilePatterns):
    """Rows of CSV files: records {column: number, text, date, or None where a value is missing}.

    A column is of whole numbers, numbers, dates or text: the first of these that fits all values. A
    record's split is decided by the hash of the file's name and the row's number. Each process
    holds the files that it reads from in memory.
    """

    columns: tuple[str, ...] = ()
    """Columns to read; none: all. In a file without a header, the names of all its columns."""
    separator: str = ","
    """The character between two values; `\\t` is a tab."""
    quote: str = '"'
    """The character around a value with separators or line breaks; doubled inside, it is one."""
    header: bool = True
    """Whether the first line has the column names."""
    texts: tuple[str, ...] = ()
    """Columns that are text although they look like numbers, such as codes with leading zeros."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
    """Texts that mark a missing value."""
    fill: tuple[tuple[str, str], ...] = ()
    """Replacement of missing values by column, as in `--data.records.fill age 0`."""
    encoding: str = "utf8"
    """Encoding of the files."""

    opened = OpenCsv

    def scan(self, file: File) -> ScanResult:
        if not os.path.getsize(file.path):
            raise Refused(f"{file.path} is empty: write it again, or remove it.")
        rows = table(file.path, self).num_rows
        return scan_rows(file, rows)


def table(path: str, records: Csv) -> Any:
    """Reads a file as a pyarrow table; raises `Refused` if it is none."""
    import pyarrow  # here: slow to import, and not every data set needs it
    from pyarrow import csv

    separator = "\t" if records.separator == "\\t" else records.separator
    if len(separator) != 1 or len(records.quote) != 1:
        raise Refused(
            f"separator {records.separator!r} and quote {records.quote!r} of a CSV table: each is "
            f"one character."
        )
    if not records.header and not records.columns:
        raise Refused(
            f"{path} is read without a header: name all its columns, as in "
            f"--data.records.columns x y label."
        )
    names = () if records.header else records.columns
    reading = csv.ReadOptions(
        column_names=list(names),
        block_size=min(os.path.getsize(path) + 1, WHOLE),
        encoding=records.encoding,
    )
    parsing = csv.ParseOptions(
        delimiter=separator, quote_char=records.quote, newlines_in_values=True
    )
    converting = csv.ConvertOptions(
        null_values=list(records.missing),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        column_types=dict.fromkeys(records.texts, pyarrow.string()),
    )
    try:
        found = csv.read_csv(path, reading, parsing, converting)
        there = found.column_names
    except (OSError, LookupError, UnicodeError, pyarrow.ArrowException) as error:
        raise Refused(
            f"{path} cannot be read as a CSV table with separator {records.separator!r}, quote "
            f"{records.quote!r} and encoding {records.encoding}: {' '.join(str(error).split())}"
        ) from error
    if bytes_of := [
        name
        for name, kind in zip(there, found.schema.types, strict=True)
        if pyarrow.types.is_binary(kind)
    ]:
        raise Refused(
            f"column {bytes_of[0]!r} of {path} is not text in {records.encoding}: name the file's "
            f"encoding, as in --data.records.encoding latin1."
        )
    if twice := [name for name, count in collections.Counter(there).items() if count > 1]:
        raise Refused(f"{path} has column {twice[0]!r} twice: give each column a name of its own.")
    for column in (*records.columns, *records.texts, *dict(records.fill)):
        if column not in there:
            near = difflib.get_close_matches(column, there, 1, 0.0)[0]
            raise Refused(
                f"{path} has no column {column!r}; the nearest is {near!r} of {len(there)}: "
                f"{', '.join(there)}."
            )
    found = found.select(list(records.columns)) if records.columns else found
    for column, text in records.fill:
        found = filled(found, column, text, path)
    return found


def filled(found: Any, column: str, text: str, path: str) -> Any:
    """The table with a value in place of those missing in a column."""
    import pyarrow
    from pyarrow import compute

    values = found.column(column)
    if pyarrow.types.is_null(values.type):  # all values are missing
        values = values.cast(pyarrow.string())
    try:
        value = pyarrow.scalar(text).cast(values.type)
    except pyarrow.ArrowException as error:
        raise Refused(
            f"fill {column} {text}: column {column!r} of {path} is of {values.type}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return found.set_column(
        found.column_names.index(column), column, compute.fill_null(values, value)
    )
