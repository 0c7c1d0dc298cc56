"""Records from a file of NumPy arrays (`numpy.savez`), one per row."""

import contextlib
import dataclasses
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import (
    File,
    Files,
    OpenFiles,
    ScanResult,
    match_files,
    scan_rows,
)
from jaxbig.errors import Refused

BROKEN = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
)
"""Errors that `zipfile` and `numpy` raise for damaged files, besides their own."""


class OpenArrays(OpenFiles):
    def __init__(self, *args: Any):
        super().__init__(*args)
        self.arrays: dict[str, dict[str, np.ndarray]] = {}

    def read(self, file: File, start: int, size: int) -> Record:
        if file.path not in self.arrays:
            self.arrays[file.path] = arrays(file.path)
        return {name: np.array(array[start]) for name, array in self.arrays[file.path].items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(Files):
    """Arrays of one length in a `.npz` file: record i is {name: array[i]} of them all.

    They are mapped into memory, or read completely if the file is compressed. A record's split is
    decided by the hash of the file's name and the row's number.
    """

    file: str
    """The file."""
    eval_file: str = ""
    """A file for evaluation: `file` is then all for training, and `eval_share` is ignored."""

    opened = OpenArrays

    def found(self) -> list[File]:
        if not self.eval_file:
            return match_files(self.file)
        return match_files(self.file, "train") + match_files(self.eval_file, "eval")

    def scan(self, file: File) -> ScanResult:
        verify(file.path)
        found = arrays(file.path)
        if not found:
            raise Refused(f"{file.path} has no array in it.")
        if single := [name for name, array in found.items() if not array.ndim]:
            raise Refused(
                f"array {single[0]} in {file.path} is a single number, not one for each record."
            )
        lengths = {name: len(array) for name, array in found.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise Refused(
                f"the arrays in {file.path} are not of one length, a record each: {said}."
            )
        (rows,) = set(lengths.values())
        return scan_rows(file, rows)


def arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file by name, mapped where not compressed; raises if there is more in it."""
    with refuse_broken(path), zipfile.ZipFile(path) as members:
        return {
            info.filename.removesuffix(".npy"): member(path, members, info)
            for info in members.infolist()
        }


def verify(path: str) -> None:
    """Raises if an array's bytes have changed: memory that is mapped is not checked otherwise."""
    with refuse_broken(path), zipfile.ZipFile(path) as members:
        if broken := members.testzip():
            raise ValueError(f"the checksum of {broken} is another than when it was written")


@contextlib.contextmanager
def refuse_broken(path: str) -> Iterator[None]:
    """Raises `Refused` if a file is no zip of arrays, or an incomplete one."""
    try:
        yield
    except Refused:
        raise
    except (*BROKEN, zipfile.BadZipFile, struct.error, zlib.error) as error:
        raise Refused(
            f"{path} cannot be read as arrays of numpy.savez: {' '.join(str(error).split())}"
        ) from error


def member(path: str, members: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array of a file."""
    with members.open(info) as data:
        version = np.lib.format.read_magic(data)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in header:
            raise ValueError(f"{info.filename} has version {version} of the format")
        shape, fortran, dtype = header[version](data)
        if dtype.hasobject:  # it would be a pickle, which runs code
            raise Refused(
                f"array {info.filename} in {path} holds Python objects: save it as numbers."
            )
        begin = data.tell()
        if info.compress_type != zipfile.ZIP_STORED:
            values = np.frombuffer(data.read(), dtype, math.prod(shape))
            return values.reshape(shape, order="F" if fortran else "C")
    # The array starts after the member's own header: 30 bytes, its name and extra field.
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26xHH", file.read(30))
    begin += info.header_offset + 30 + name + extra
    if begin + dtype.itemsize * math.prod(shape) > os.path.getsize(path):
        raise ValueError(f"{info.filename} is cut off")
    if not math.prod(shape):  # an empty file part cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", begin, shape, order="F" if fortran else "C")
