"""Documents packed into rows of one length, so that next to nothing of a batch is padding.

A document that is longer than a row is cut into rows, and what is left over goes with other documents where it fits
best: into the open row with the least space that suffices. At most `OPEN` rows are open at once; with one more, the
fullest is closed. So documents are read once, in order, and one of n is placed in O(log OPEN).
(Best fit: Johnson et al., 1974; of documents for language models: Ding et al., 2024, arXiv:2404.10830.)
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
VERSION = 2  # of a packed folder; raise it when its rows would be others
OPEN = 512  # rows
KINDS = {kind.itemsize: kind for kind in map(np.dtype, ("<u1", "<u2", "<u4"))}


class Header(NamedTuple):
    """What a packed folder holds."""

    rows: int
    length: int
    documents: int
    tokens: int
    sha256: str  # over the rows
    empty: int  # documents without a token, which are left out
    bad: list[
        tuple[int, str]
    ]  # records that were left out because they cannot be read: which one, and why

    @property
    def padding(self) -> float:
        """The share of the rows' places that hold no token."""
        return 1 - self.tokens / (self.rows * self.length)


def pack(
    documents: Iterable[np.ndarray], length: int, most: int = OPEN
) -> Iterator[list[np.ndarray]]:
    """Rows, each the pieces [n] of documents [any] in it, of `length` tokens together at most.

    Every token stands in them once, and those of a piece in order; the same documents always give the same rows. An
    empty document has no piece.
    """
    spaces: list[
        tuple[int, int]
    ] = []  # of the open rows, ascending: the space that is left, and which row it is
    rows: dict[int, list[np.ndarray]] = {}
    for number, document in enumerate(documents):
        whole = len(document) // length * length
        yield from ([document[start : start + length]] for start in range(0, whole, length))
        rest = document[whole:].copy()  # not a view, which would hold the whole document
        if not len(rest):
            continue
        place = bisect.bisect_left(spaces, (len(rest), 0))
        space, row = spaces.pop(place) if place < len(spaces) else (length, number)
        rows.setdefault(row, []).append(rest)
        bisect.insort(spaces, (space - len(rest), row))
        if len(spaces) > most or not spaces[0][0]:
            yield rows.pop(spaces.pop(0)[1])
    yield from rows.values()


def to_bytes(pieces: list[np.ndarray]) -> bytes:
    """A row: the bytes a token, how many pieces and their lengths, as four bytes each; then the tokens."""
    tokens = np.concatenate(pieces)
    width = next(width for width, kind in KINDS.items() if tokens.max() <= np.iinfo(kind).max)
    return (
        np.array([width, len(pieces), *map(len, pieces)], "<u4").tobytes()
        + tokens.astype(KINDS[width]).tobytes()
    )


def from_bytes(row: bytes, length: int) -> dict[str, np.ndarray]:
    """A row as int32 [L]: `tokens`, `segments` (1, 2, ... a piece) and `positions` (0, 1, ... in each piece); where
    nothing stands all are 0."""
    width, count = np.frombuffer(row, "<u4", 2)
    lengths = np.frombuffer(row, "<u4", int(count), 8).astype(np.int32)
    tokens = np.frombuffer(row, KINDS[int(width)], -1, 8 + 4 * int(count))
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
    filled = {
        "tokens": tokens,
        "segments": np.repeat(np.arange(1, count + 1), lengths),
        "positions": np.arange(len(tokens)) - begins,
    }
    return {
        name: np.pad(each.astype(np.int32), (0, length - len(tokens)))
        for name, each in filled.items()
    }


class Packed(Sequence[dict[str, np.ndarray]]):
    """The rows of a packed folder, read in any order; see `from_bytes`. It holds no open file when it is pickled."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            found = json.loads((folder / "header.json").read_text())
            self.header = Header(
                **{**found, "bad": [(int(index), str(said)) for index, said in found["bad"]]}
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise corrupt(folder) from error
        self.lock, self.opened = threading.Lock(), None

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
        with self.lock:
            if self.opened is None:
                from array_record.python.array_record_data_source import (
                    ArrayRecordDataSource,
                )  # here: slow to import

                self.opened = ArrayRecordDataSource(str(self.folder / "rows.array_record"))
                if len(self.opened) != len(self):
                    raise ValueError(f"{len(self.opened)} rows")
            return self.opened

    @property
    def identity(self) -> str:
        """Which rows these are."""
        header = self.header
        return (
            f"{header.documents} documents of {header.tokens} tokens in {header.rows} rows of {header.length} "
            f"sha256:{header.sha256}"
        )


def packed(
    key: str,
    documents: Callable[[], Iterable[np.ndarray]],
    length: int,
    bad: Sequence[tuple[int, str]] = (),
) -> Packed:
    """Documents of tokens [any] in rows of `length`; packed once, by one process while others wait, and kept in the
    folder that JAXBIG_CACHE names.

    key: a text that says which documents these are, so that they are read only if their rows are not there yet.
    bad: which records `documents` leaves out, once it has been gone through; kept with the rows.
    Empty documents are left out. Raises Refused for what are no tokens, and if there are none.
    """
    if length < 1:
        raise Refused(f"rows of {length} tokens hold nothing: length is at least 1.")

    def make(folder: Path) -> None:
        log.info("packing documents into rows of %d (once)", length)
        header = save(folder, checked(documents()), length)._replace(bad=list(bad))
        (folder / "header.json").write_text(json.dumps(header._asdict()))

    reader = Packed(
        build_once(cache_folder("packed") / sha256(repr([VERSION, key, length]))[:24], make)
    )
    log.info("%s, of which %.2f%% padding", reader.identity, 100 * reader.header.padding)
    if reader.header.empty:
        log.warning("%d empty documents are left out", reader.header.empty)
    return reader


def save(folder: Path, documents: Iterable[np.ndarray], length: int) -> Header:
    """Writes the rows of documents, as they come, into a file that is read in any order."""
    from array_record.python.array_record_module import (
        ArrayRecordWriter,
    )  # here: not needed to read what is there

    writer = ArrayRecordWriter(str(folder / "rows.array_record"), "group_size:1")
    digest, rows, tokens, count, empty = hashlib.sha256(), 0, 0, 0, 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal tokens, count, empty
        for document in documents:
            tokens, count, empty = (
                tokens + len(document),
                count + (len(document) > 0),
                empty + (not len(document)),
            )
            yield document

    for pieces in pack(counted(), length):
        row = to_bytes(pieces)
        writer.write(row)
        digest.update(row)
        rows += 1
    writer.close()
    if not rows:
        raise Refused(
            f"there is no token to pack into rows of {length}: every document is empty, or there is none."
        )
    return Header(rows, length, count, tokens, digest.hexdigest(), empty, [])


def checked(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The documents, each of them tokens [any]."""
    for number, document in enumerate(documents):
        document = np.asarray(document)
        if document.ndim != 1 or (document.size and document.dtype.kind not in "iu"):
            raise Refused(
                f"document {number} is {document.dtype} {list(document.shape)}, not a row of whole numbers, its tokens."
            )
        if document.size and not 0 <= document.min() <= document.max() < 2**31:
            raise Refused(
                f"document {number} has tokens {document.min()} to {document.max()}: they are 0 to 2^31 - 1."
            )
        yield document


def corrupt(folder: Path) -> Refused:
    return Refused(
        f"packed rows in {folder} are corrupt: delete that folder, and they are made anew."
    )
