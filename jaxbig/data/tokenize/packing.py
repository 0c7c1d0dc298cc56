"""Packs documents into rows of equal length, so that batches contain almost no padding.

A document longer than a row is cut into full rows, and its rest is packed by best fit: into the
open row with the least sufficient space. At most `MAX_OPEN` rows are open; beyond that the fullest
is closed. So documents are read once, in order, and each is placed in O(log MAX_OPEN).
(Best fit: Johnson et al., 1974; for language models: Ding et al., 2024, arXiv:2404.10830.)
"""

import bisect
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbig.data.core.cache import build_once, cache_folder, sha256
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
VERSION = 2  # of a packed folder; increase it when its rows change
MAX_OPEN = 512  # rows
DTYPES = {dtype.itemsize: dtype for dtype in map(np.dtype, ("<u1", "<u2", "<u4"))}


class Header(NamedTuple):
    """The header of a packed folder."""

    rows: int
    length: int
    """Tokens a row, padding included."""
    documents: int
    """Number of documents, without empty ones."""
    tokens: int
    """Number of tokens, without padding."""
    sha256: str
    """Digest of the rows."""
    empty: int
    """Number of empty documents, which are skipped."""
    bad: list[tuple[int, str]]
    """Records that are skipped because they cannot be read: index and reason."""

    @property
    def padding(self) -> float:
        """Fraction of padding."""
        return 1 - self.tokens / (self.rows * self.length)


def pack(
    documents: Iterable[np.ndarray], length: int, max_open: int = MAX_OPEN
) -> Iterator[list[np.ndarray]]:
    """Packs documents into rows, deterministically.

    Args:
      documents: the tokens of each, [any]; an empty one is skipped.
      length: most tokens a row.
      max_open: most rows that are open at once.

    Yields:
      The pieces [n] of documents that are in a row. Each token is in one row, and the tokens of a
      piece are in order.
    """
    spaces: list[tuple[int, int]] = []  # of the open rows, ascending: free tokens, and row number
    rows: dict[int, list[np.ndarray]] = {}
    for number, document in enumerate(documents):
        full = len(document) // length * length
        yield from ([document[start : start + length]] for start in range(0, full, length))
        rest = document[full:].copy()  # a view would keep the document in memory
        if not len(rest):
            continue
        best = bisect.bisect_left(spaces, (len(rest), 0))
        space, row = spaces.pop(best) if best < len(spaces) else (length, number)
        rows.setdefault(row, []).append(rest)
        bisect.insort(spaces, (space - len(rest), row))
        if len(spaces) > max_open or not spaces[0][0]:
            yield rows.pop(spaces.pop(0)[1])
    yield from rows.values()


def to_bytes(pieces: list[np.ndarray]) -> bytes:
    """Serializes a row: bytes a token, number of pieces, their lengths (uint32); the tokens."""
    tokens = np.concatenate(pieces)
    width = next(width for width, dtype in DTYPES.items() if tokens.max() <= np.iinfo(dtype).max)
    header = np.array([width, len(pieces), *map(len, pieces)], "<u4")
    return header.tobytes() + tokens.astype(DTYPES[width]).tobytes()


def from_bytes(row: bytes, length: int) -> dict[str, np.ndarray]:
    """Reads a row.

    Args:
      row: as of `to_bytes`.
      length: tokens of the row, padding included.

    Returns:
      int32 [length] each, 0 where padded: `tokens`, `segments` (1, 2, ... for each piece) and
      `positions` (0, 1, ... in each piece).
    """
    width, count = np.frombuffer(row, "<u4", 2)
    lengths = np.frombuffer(row, "<u4", int(count), 8).astype(np.int32)
    tokens = np.frombuffer(row, DTYPES[int(width)], -1, 8 + 4 * int(count))
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    fields = {
        "tokens": tokens,
        "segments": np.repeat(np.arange(1, count + 1), lengths),
        "positions": np.arange(len(tokens)) - starts,
    }
    padding = (0, length - len(tokens))
    return {name: np.pad(field.astype(np.int32), padding) for name, field in fields.items()}


class Packed(Sequence[dict[str, np.ndarray]]):
    """The rows of a packed folder, in any order; see `from_bytes`. Pickled by its path."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            header = json.loads((folder / "header.json").read_text())
            bad = [(int(index), str(reason)) for index, reason in header["bad"]]
            self.header = Header(**{**header, "bad": bad})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise corrupt(folder) from error
        self.lock = threading.Lock()
        self.opened = None

    def __reduce__(self) -> Any:
        return Packed, (self.folder,)

    def __len__(self) -> int:
        return self.header.rows

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        try:
            rows = self.records().__getitems__(indices)
            return [from_bytes(row, self.header.length) for row in rows]
        except (OSError, RuntimeError, ValueError) as error:
            raise corrupt(self.folder) from error

    def where(self, index: int) -> str:
        return f"row {index} of {self.folder}"

    def records(self) -> Any:
        """The opened file of serialized rows."""
        with self.lock:
            if self.opened is None:
                # here: slow to import
                from array_record.python.array_record_data_source import ArrayRecordDataSource

                self.opened = ArrayRecordDataSource(str(self.folder / "rows.array_record"))
                if len(self.opened) != len(self):
                    raise ValueError(f"{len(self.opened)} rows")
            return self.opened

    @property
    def identity(self) -> str:
        """Identity of the rows."""
        header = self.header
        return (
            f"{header.documents} documents of {header.tokens} tokens in {header.rows} rows of "
            f"{header.length} sha256:{header.sha256}"
        )


def packed(
    key: str,
    documents: Callable[[], Iterable[np.ndarray]],
    length: int,
    bad: Sequence[tuple[int, str]] = (),
) -> Packed:
    """Packs documents into rows of `length`, once; the rows are cached in JAXBIG_CACHE.

    One process packs while others wait.

    Args:
      key: identifies the documents in the cache.
      documents: reads the tokens [any] of each document; called only if no rows are cached. Empty
        ones are skipped.
      length: tokens a row.
      bad: the records that `documents` skipped, filled while it runs; stored with the rows.

    Raises:
      Refused: a document is not tokens, or there are no tokens at all.
    """
    if length < 1:
        raise Refused(f"rows of {length} tokens are impossible: length must be at least 1.")

    def build(folder: Path) -> None:
        log.info("packing documents into rows of %d (once)", length)
        header = write_rows(folder, checked(documents()), length)._replace(bad=list(bad))
        (folder / "header.json").write_text(json.dumps(header._asdict()))

    reader = Packed(
        build_once(cache_folder("packed") / sha256(repr([VERSION, key, length]))[:24], build)
    )
    log.info("%s, of which %.2f%% padding", reader.identity, 100 * reader.header.padding)
    if reader.header.empty:
        log.warning("%d empty documents are skipped", reader.header.empty)
    return reader


def write_rows(folder: Path, documents: Iterable[np.ndarray], length: int) -> Header:
    """Packs documents and writes the rows to a file for random access; returns its header."""
    # here: not needed to read rows
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "rows.array_record"), "group_size:1")
    digest = hashlib.sha256()
    rows = 0
    tokens = 0
    count = 0
    empty = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal tokens, count, empty
        for document in documents:
            if len(document):
                tokens += len(document)
                count += 1
            else:
                empty += 1
            yield document

    for pieces in pack(counted(), length):
        row = to_bytes(pieces)
        writer.write(row)
        digest.update(row)
        rows += 1
    writer.close()
    if not rows:
        raise Refused(
            f"there is no token to pack into rows of {length}: all documents are empty, or there "
            f"are none."
        )
    return Header(rows, length, count, tokens, digest.hexdigest(), empty, [])


def checked(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the documents; raises `Refused` if one is not tokens [any]."""
    for number, document in enumerate(documents):
        document = np.asarray(document)
        if document.ndim != 1 or (document.size and document.dtype.kind not in "iu"):
            raise Refused(
                f"document {number} is {document.dtype} {list(document.shape)}: it must be tokens, "
                f"a vector of integers."
            )
        if document.size and not 0 <= document.min() <= document.max() < 2**31:
            raise Refused(
                f"document {number} has tokens {document.min()} to {document.max()}: they must be "
                f"0 to 2^31 - 1."
            )
        yield document


def corrupt(folder: Path) -> Refused:
    return Refused(f"packed rows in {folder} are corrupt: delete that folder to rebuild them.")
