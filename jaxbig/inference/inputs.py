"""What to predict: files, folders, tables, lines, texts, records or arrays, read one by one."""

import dataclasses
import functools
import glob
import itertools
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbig.data.core.dataset import Data, Record
from jaxbig.data.core.examples import Example, RecordSource
from jaxbig.data.records.arrays import BROKEN
from jaxbig.data.records.csv import Csv, table
from jaxbig.data.records.named_files import NamedFiles
from jaxbig.data.records.parquet import parquet_file
from jaxbig.errors import Refused
from jaxbig.train.apply import as_rows, hint_at_records

STDIN = "-"
"""The path that stands for the lines of standard input."""
TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".npz")
"""Endings of the files that have a record in each row or line."""


class Input(NamedTuple):
    """An example to predict."""

    name: str | int
    """The path or line of its record, or its number from 0."""
    read: Callable[[], Example]
    """Reads it; raises if that fails."""


def inputs_of(data: Data, given: Any) -> Iterable[Input]:
    """The examples that are given from Python; a list if their number is known.

    Args:
      data: reads them as in training.
      given: a path, a text, a record, the bytes of a file, or an iterable of these; or arrays, as
        `jb.apply` takes them.

    Raises:
      Refused: a path does not exist, or there is nothing to predict.
    """
    if isinstance(given, str | os.PathLike | bytes):
        given = [given]
    if isinstance(given, Mapping) and not is_of_arrays(data, given):
        given = [given]
    if not is_listed(given):
        fields = given if isinstance(given, Mapping) else {"inputs": given}
        rows = as_rows(fields, data.spec(), hint=hint_at_records(data))
        return [Input(i, row_of(rows, i)) for i in range(len(rows["inputs"]))]
    parts = (inputs_of_one(data, number, each) for number, each in enumerate(given))
    if not isinstance(given, Sequence):
        return itertools.chain.from_iterable(parts)
    if not given:
        raise Refused("there is nothing to predict: give files, texts, records or arrays.")
    return joined(parts)


def is_of_arrays(data: Data, given: Mapping[str, Any]) -> bool:
    """Whether these are fields of many examples, rather than those of one record."""
    return "inputs" in given and np.ndim(given["inputs"]) == len(data.spec()["inputs"].shape)


def is_listed(given: Any) -> bool:
    """Whether these are inputs one by one, rather than an array or a list of numbers."""
    if isinstance(given, Mapping) or hasattr(given, "__array__"):
        return False
    if not isinstance(given, Sequence):
        return isinstance(given, Iterable)
    return all(isinstance(each, str | os.PathLike | bytes | Mapping) for each in given)


def row_of(rows: Mapping[str, np.ndarray], number: int) -> Callable[[], Example]:
    """Reads an example of arrays [N, ...]."""
    return lambda: {name: field[number] for name, field in rows.items()}


def joined(parts: Iterable[Iterable[Input]]) -> Iterable[Input]:
    """All inputs in order; a list if all parts are."""
    parts = list(parts)
    inputs = itertools.chain.from_iterable(parts)
    return list(inputs) if all(isinstance(part, list) for part in parts) else inputs


def inputs_of_one(data: Data, number: int, given: Any) -> Iterable[Input]:
    """The examples of one element of a list, which has that number in it."""
    if isinstance(given, Mapping):
        return [Input(number, reading(data, lambda: dict(given)))]
    if isinstance(given, bytes):
        return [Input(number, reading(data, lambda: data.record_of_file(given)))]
    if isinstance(given, str) and data.reads_texts:
        return [Input(number, reading(data, lambda: data.record_of_text(given)))]
    return inputs_at(data, [os.fspath(given)])


def reading(data: Data, record: Callable[[], Record]) -> Callable[[], Example]:
    """Reads the example of a record as the data does, but without its label."""

    def read() -> Example:
        reader = RecordSource([], data.read_unlabeled, data.empty())
        return reader.example(0, record(), lambda index: None)

    return read


def inputs_at(data: Data, paths: Sequence[str]) -> Iterable[Input]:
    """The examples in files, folders and patterns, and in the lines of standard input for `-`.

    Raises:
      Refused: a path leads to nothing, or a folder has no file that the data reads.
    """
    parts = []
    for path in paths:
        if path == STDIN:
            parts.append(inputs_of_lines(data))
        else:
            parts += [inputs_of_path(data, each) for each in matches(path)]
    return joined(parts)


def check_paths(paths: Sequence[str]) -> None:
    """Raises `Refused` if a path or pattern leads to nothing."""
    for path in paths:
        if path != STDIN:
            matches(path)


def matches(path: str) -> list[str]:
    """A path that exists, or all that match a pattern, sorted."""
    path = os.path.expanduser(path)
    if os.path.lexists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    if not found:
        said = "nothing matches" if glob.has_magic(path) else "there is no file or folder"
        raise Refused(f"{said} {path}.")
    return found


def inputs_of_path(data: Data, path: str) -> Iterable[Input]:
    """The examples of a file, or of all files below a folder."""
    if not os.path.isdir(path):
        return inputs_of_file(data, path)
    endings = None if data.endings is None else (*data.endings, *TABLES)
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        files += [
            os.path.join(folder, name)
            for name in sorted(names)
            if name[0] != "." and (endings is None or name.lower().endswith(endings))
        ]
    if not files:
        kind = "" if endings is None else f" that ends in {' '.join(endings)}"
        raise Refused(f"the folder {path} has no file{kind}.")
    return joined(inputs_of_file(data, each) for each in files)


def inputs_of_file(data: Data, path: str) -> Iterable[Input]:
    """The examples of a file: one, or those of a table."""
    if path.lower().endswith(TABLES):
        return inputs_of_table(data, path)
    if type(data).record_of_file is Data.record_of_file:
        data.record_of_file(b"")  # which is refused
    return [Input(path, reading(data, lambda: data.record_of_file(Path(path).read_bytes())))]


def inputs_of_table(data: Data, path: str) -> Iterable[Input]:
    """The examples in the rows of a table, or in the lines of a file of JSON objects."""
    records = getattr(data, "records", None)
    named = records if isinstance(records, NamedFiles) else None

    def row(name: str, record: Callable[[], Record]) -> Input:
        return Input(name, reading(data, lambda: named.with_file(record()) if named else record()))

    ending = os.path.splitext(path)[1].lower()
    if ending in (".jsonl", ".ndjson"):
        return (
            row(f"{path} line {number}", lambda line=line: parse_line(line))
            for number, line in numbered_lines(path)
        )
    if ending == ".parquet":
        batches = parquet_file(path).iter_batches()
        rows: Iterable[Record] = (record for batch in batches for record in batch.to_pylist())
    elif ending == ".npz":
        rows = arrays_of(path)
    else:
        rows = read_csv(path, named.table if named else records)
    inputs = (
        row(f"{path} row {number}", lambda record=record: record)
        for number, record in enumerate(rows)
    )
    return list(inputs) if isinstance(rows, list) else inputs


def inputs_of_lines(data: Data) -> Iterator[Input]:
    """The examples in the lines of standard input; blank lines are none.

    A line is a text where the data reads texts, and else a record as JSON, or the path of a file.
    """
    for number, line in enumerate(sys.stdin.buffer, 1):
        line = line.rstrip(b"\r\n")
        if not line.strip():
            continue
        name = f"line {number}"
        if data.reads_texts:
            record = functools.partial(text_record, data, line)
            yield Input(name, reading(data, record))
        elif line.lstrip().startswith(b"{"):
            yield Input(name, reading(data, functools.partial(parse_line, line)))
        else:
            yield from inputs_of_path(data, os.fsdecode(line))


def text_record(data: Data, line: bytes) -> Record:
    """The record of a line of text."""
    try:
        return data.record_of_text(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not text in UTF-8: {error}") from error


def numbered_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, counted from 1."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error


def parse_line(line: bytes) -> Record:
    """A record that is written as JSON."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON in UTF-8: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"the line holds a {type(record).__name__}, not an object {{...}}")
    return record


def arrays_of(path: str) -> list[Record]:
    """The records in a file of NumPy arrays, each [N, ...]."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (*BROKEN, zipfile.BadZipFile, AttributeError, TypeError) as error:  # also of an .npy
        raise Refused(f"{path} cannot be read as arrays of .npz: {error}.") from error
    counts = {len(each) if each.ndim else 0 for each in arrays.values()}
    if len(counts) != 1:
        raise Refused(f"the arrays of {path} have {sorted(counts)} records: make them equal.")
    return [{name: each[i] for name, each in arrays.items()} for i in range(counts.pop())]


def read_csv(path: str, records: Any) -> list[Record]:
    """The rows of a table, read with the settings of the training records if those are one."""
    separator = "\\t" if path.lower().endswith(".tsv") else ","
    settings = records if isinstance(records, Csv) else Csv(files=path, separator=separator)
    if not settings.header:
        return table(path, settings).to_pylist()
    every = dataclasses.replace(settings, columns=(), texts=(), fill=())
    there = table(path, every).column_names  # the label's may be missing
    texts = tuple(name for name in settings.texts if name in there)
    fill = tuple(each for each in settings.fill if each[0] in there)
    return table(path, dataclasses.replace(every, texts=texts, fill=fill)).to_pylist()
