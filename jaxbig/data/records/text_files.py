"""Records from text files: each file, line or paragraph is one."""

import array
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal

import numpy as np

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File, FilePatterns, OpenFiles, ScanResult, hash64, hashes

OPEN = 64
"""Files that stay open at most."""
CHUNK = 1 << 20
"""Bytes that are read at a time to count lines."""


class OpenSpans(OpenFiles):
    """Records that are byte spans of files. The first `OPEN` files that are read stay open."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.handles: dict[str, BinaryIO] = {}

    def span(self, file: File, start: int, size: int) -> bytes:
        handle = self.handles.get(file.path)
        if handle is None:
            handle = open(file.path, "rb")  # noqa: SIM115 - closed with the records, or below
            if len(self.handles) < OPEN:
                # another thread may have been first
                handle = self.handles.setdefault(file.path, handle)
        # pread needs no file position, so threads share a handle
        data = os.pread(handle.fileno(), size, start)
        if self.handles.get(file.path) is not handle:
            handle.close()
        if len(data) < size:
            raise ValueError(f"the file ends {size - len(data)} bytes too early")
        return data

    def where(self, index: int) -> str:
        file, start, _ = self.place(index)
        return f"{file.path} line {line_number(file.path, start)}"


class OpenTexts(OpenSpans):
    def read(self, file: File, start: int, size: int) -> Record:
        return {"name": file.name, "text": self.span(file, start, size)}

    def where(self, index: int) -> str:
        return self.place(index)[0].path if self.records.by == "file" else super().where(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles(FilePatterns):
    """Texts: records {"name": name of the file, "text": bytes}.

    Empty files and blank lines are no records. A record's split is decided by the hash of the
    file's name, or of the bytes of the line or paragraph.
    """

    by: Literal["file", "line", "paragraph"] = "file"
    """What makes a record; paragraphs are separated by blank lines."""

    opened = OpenTexts

    def scan(self, file: File) -> ScanResult:
        if self.by != "file":
            return scan_lines(file.path, self.by == "paragraph")
        with open(file.path, "rb") as text:
            content = hashlib.file_digest(text, "sha256").digest()
            sizes = np.array([text.tell()] if text.tell() else [], np.int64)
        return ScanResult(
            np.zeros_like(sizes), sizes, hashes([os.fsencode(file.name)] * len(sizes)), content
        )


def scan_lines(path: str, paragraphs: bool = False) -> ScanResult:
    """The positions of the lines or paragraphs of a file, and the hash of each one's bytes."""
    starts = array.array("q")
    sizes = array.array("q")
    text_hashes: list[bytes] = []
    digest = hashlib.sha256()
    lines = 0

    def read(file: BinaryIO) -> Iterator[bytes]:
        nonlocal lines
        for line in file:
            digest.update(line)
            lines += 1
            yield line

    with open(path, "rb") as file:
        for start, text in spans(read(file), paragraphs):
            starts.append(start)
            sizes.append(len(text))
            text_hashes.append(hash64(text))
    blank = 0 if paragraphs else lines - len(starts)
    return ScanResult(
        np.array(starts),
        np.array(sizes),
        np.frombuffer(b"".join(text_hashes), "<u8"),
        digest.digest(),
        blank,
    )


def spans(lines: Iterable[bytes], paragraphs: bool) -> Iterator[tuple[int, bytes]]:
    """Yields the first byte and the text of each line that is not blank, or of each paragraph.

    Args:
      lines: The lines of a file.
      paragraphs: Whether consecutive lines that are not blank are joined.

    Yields:
      The offset in bytes, and the text without the last line's end.
    """
    offset = 0
    first = 0
    part: list[bytes] = []
    for line in lines:
        blank = not line.strip()
        if not blank:
            first = first if part else offset
            part.append(line)
        if part and (blank or not paragraphs):
            yield first, b"".join(part).rstrip(b"\r\n")
            part = []
        offset += len(line)
    if part:
        yield first, b"".join(part).rstrip(b"\r\n")


def line_number(path: str, start: int) -> int:
    """The number, from 1, of the line that holds a byte."""
    number = 1
    with open(path, "rb") as file:
        while start > 0 and (read := file.read(min(CHUNK, start))):
            number += read.count(b"\n")
            start -= len(read)
    return number
