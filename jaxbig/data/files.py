"""What records in files of one's own have in common: an index of where each stands, and the cut into train and eval.

The index is made once and kept in `~/.cache/jaxbig`, or in the folder that JAXBIG_CACHE names. It holds for files of
the same paths, sizes and times of change, else it is made anew. A record is for evaluation by its own hash alone (of
its name or its bytes: each kind says which), so that a file more moves no other record between train and eval.
"""

import abc
import contextlib
import dataclasses
import glob
import hashlib
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxbig.data.base import Record, Records
from jaxbig.data.kept import cache, sha256, write
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
VERSION = 2  # of an index; raise it when what one holds changes


class File(NamedTuple):
    """A file of records."""

    path: str
    """Where it lies on this machine."""
    name: str
    """What it is called on every machine."""
    split: str = ""
    """"train" or "eval" if that is said, else each record's hash decides."""


class Places(NamedTuple):
    """Where records stand; arrays [N]."""

    which: np.ndarray  # int32: a place among the files
    start: np.ndarray  # int64: the first byte, or the row
    size: np.ndarray  # int64: bytes; 0 where it is a row
    hash: np.ndarray  # uint64


class Found(NamedTuple):
    """What an index pass finds in one file; arrays as `Places` has them."""

    start: np.ndarray
    size: np.ndarray
    hash: np.ndarray
    content: bytes = b""  # the sha256 of what was read


class Index(NamedTuple):
    files: list[File]
    places: Places
    bytes: int
    sha256: str  # over the files' names, sizes and what was read of them


class Opened(abc.ABC, Sequence[Record]):
    """The records of one split, read in any order. It holds no open file when it is pickled."""

    def __init__(self, records: Any, files: list[File], places: Places, repeat: int):
        self.records, self.files, self.places, self.repeat = records, files, places, repeat

    def __reduce__(self) -> Any:  # made anew where it is unpickled, with no file open
        return type(self), (self.records, self.files, self.places, self.repeat)

    def __len__(self) -> int:
        return len(self.places.which) * self.repeat

    def __getitem__(self, index: Any) -> Any:
        return self.read(*self.place(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        return [self[index] for index in indices]

    def place(self, index: int) -> tuple[File, int, int]:
        """Its file, and in it the first byte and the bytes, or the row and 0."""
        place = range(len(self))[index] % len(self.places.which)
        return self.files[self.places.which[place]], int(self.places.start[place]), int(self.places.size[place])

    def where(self, index: int) -> str:
        """The file and the row of a record, for who has to mend it."""
        file, row, _ = self.place(index)
        return f"{file.path} row {row}"

    @abc.abstractmethod
    def read(self, file: File, start: int, size: int) -> Record:
        """The record that stands there; raises ValueError, saying what is wrong, if there is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Records):
    """Records in files of one's own."""

    eval_share: float = 0.05
    """The part of the records that is held out for evaluation, by the hash of each, where no files are named for it."""
    limit: int | None = None
    """At most so many training records, those whose hash comes last: of every file and class, the same ones on every
    machine. Evaluation has all of its own."""
    repeat: int = 1
    """How often each training record stands in an epoch."""

    opened: ClassVar[type[Opened]]

    @abc.abstractmethod
    def found(self) -> list[File]:
        """The files, in an order that lasts; raises Refused if there are none."""

    @abc.abstractmethod
    def scan(self, file: File) -> Found:
        """The records in a file; raises Refused if it is not what it should be."""

    def open(self, split: str) -> Opened:
        index = self.index()
        places = self.some(index, chosen(self, index, split), split)
        repeat = self.repeat if split == "train" else 1
        return self.opened(self, index.files, Places(*(column[places] for column in index.places)), repeat)

    def prepare(self) -> str:
        index = self.index()
        splits = {split: chosen(self, index, split) for split in ("train", "eval")}
        for split in splits if self.eval_share else ("train",):
            self.some(index, splits[split], split)
        said = ", ".join(f"{split} {len(places)}" for split, places in splits.items())
        return f"{self.kind} of {len(index.files)} files, {index.bytes} bytes, records: {said}, sha256:{index.sha256}"

    def some(self, index: Index, places: np.ndarray, split: str) -> np.ndarray:
        if not len(places):
            count, more = len(index.places.which), len(index.files) - 1
            where = index.files[0].path + (f" and {more} other files" if more else "")
            mend = "set another share, or name more files" if count else "write some, or name other files"
            raise Refused(
                f"{self.kind} with eval_share {self.eval_share} has no record for {split}, of {count} in {where}: "
                f"{mend}."
            )
        return places

    @property
    def kind(self) -> str:
        return type(self).__name__

    def index(self) -> Index:
        """Where every record stands: as it was kept, if no file has changed, else made anew and kept."""
        if not 0 <= self.eval_share < 1 or self.repeat < 1 or (self.limit is not None and self.limit < 1):
            raise Refused(
                f"{self.kind} with eval_share {self.eval_share}, limit {self.limit}, repeat {self.repeat}: the share "
                "is at least 0 and below 1, the others are at least 1."
            )
        with readable():
            files = self.found()
            stats = [os.stat(file.path) for file in files]
        now = {
            "paths": np.frombuffer(os.fsencode("\0".join(map("\n".join, files))), np.uint8),
            "stats": np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats], np.int64),
        }
        own = {field.name for field in dataclasses.fields(self)} - {field.name for field in dataclasses.fields(Files)}
        what = repr([VERSION, self.kind, [(name, getattr(self, name)) for name in sorted(own)]])
        common = os.path.commonpath([file.path for file in files])
        kept = cache("index") / f"{self.kind}-{sha256(what + common)[:24]}.npz"
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(kept) as old:
            if all(np.array_equal(old[name], array) for name, array in now.items()):
                return Index(files, Places(*(old[name] for name in Places._fields)), *map(str, old["identity"]))  # type: ignore[arg-type]
        log.info("indexing %d files of %s (once)", len(files), common)
        found: list[Found] = []
        for file in files:
            with readable(file.path):
                found.append(self.scan(file))
        index = joined(files, found, [stat.st_size for stat in stats])
        identity = np.array([str(index.bytes), index.sha256])
        write(kept, lambda path: np.savez(path, **now, **index.places._asdict(), identity=identity))
        return index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named(Files):
    """Files by path."""

    files: str | tuple[str, ...]
    """Paths or patterns: `*` is any name, `**` any folders within folders."""
    eval_files: str | tuple[str, ...] = ()
    """The same for evaluation: the rest of `files` is then all for training, and `eval_share` says nothing."""

    def found(self) -> list[File]:
        if not self.eval_files:
            return matched(self.files)
        held_out = matched(self.eval_files, "eval")
        paths = {file.path for file in held_out}
        return [file for file in matched(self.files, "train") if file.path not in paths] + held_out


def matched(patterns: str | tuple[str, ...], split: str = "") -> list[File]:
    """The files that patterns match, in order of pattern and path, each once; `Refused` if one matches none.

    A file's name is its path from the first folder of its pattern that has a `*` in it, or its last part.
    """
    found: dict[str, File] = {}
    for given in (patterns,) if isinstance(patterns, str) else patterns:
        pattern = os.path.abspath(os.path.expanduser(given))
        if os.path.isdir(pattern):
            raise Refused(f"{given} is a folder: name files, as in {os.path.join(given, '*')}.")
        whole = os.path.isfile(pattern)  # a name may have brackets in it
        paths = [pattern] if whole else sorted(filter(file_or_broken, glob.glob(pattern, recursive=True)))
        if not paths:
            raise Refused(f"no file matches {given} (sought as {pattern}).")
        root = os.path.dirname(pattern)
        while not whole and any(mark in root for mark in "*?["):
            root = os.path.dirname(root)
        found |= {path: File(path, os.path.relpath(path, root), split) for path in paths if path not in found}
    return list(found.values())


def file_or_broken(path: str) -> bool:
    """Whether it is a file, or a link to nothing, which is to be told and not passed over."""
    return os.path.isfile(path) or not os.path.exists(path)


@contextlib.contextmanager
def readable(path: str = "a file") -> Iterator[None]:
    """`Refused` names a file or folder that cannot be read: that one, where the error does not say which."""
    try:
        yield
    except OSError as error:
        raise Refused(
            f"{error.filename or path} cannot be read: {error.strerror or error}; mend or remove it."
        ) from error


def joined(files: list[File], found: list[Found], sizes: list[int]) -> Index:
    """The index of files of those sizes, of what was found in each."""
    numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(each.start) for each in found])
    start, size, hashes = (
        np.concatenate([column for column in columns], dtype=kind)
        for columns, kind in zip(list(zip(*found, strict=True))[:3], (np.int64, np.int64, np.uint64), strict=True)
    )
    digest = hashlib.sha256()
    for file, each, length in zip(files, found, sizes, strict=True):
        digest.update(b"%b\0%b\0%d\0%b" % (os.fsencode(file.name), file.split.encode(), length, each.content))
    return Index(files, Places(numbers, start, size, hashes), sum(sizes), digest.hexdigest())


def chosen(records: Files, index: Index, split: str) -> np.ndarray:
    """Which of all records are in a split, ascending."""
    told = np.array([("train", "eval", "").index(file.split) for file in index.files])[index.places.which]
    held_out = np.where(told < 2, told == 1, index.places.hash < np.uint64(int(records.eval_share * 2**64)))
    places = np.flatnonzero(held_out if split == "eval" else ~held_out)
    if split == "train" and records.limit is not None:
        places = np.sort(places[np.argsort(index.places.hash[places], kind="stable")[-records.limit :]])
    return places


def hash64(text: bytes) -> bytes:
    """BLAKE2b (RFC 7693) of 64 bits."""
    return hashlib.blake2b(text, digest_size=8).digest()


def hashes(names: Iterable[bytes]) -> np.ndarray:
    """The hash of each name, uint64."""
    return np.frombuffer(b"".join(map(hash64, names)), "<u8")


def row_hashes(name: str, count: int) -> np.ndarray:
    """A hash of each row of a file, uint64 [count], by the file's name and the row's number: the sequence of SplitMix64
    (Steele, Lea and Flood, 2014) that begins at the name's hash."""
    z = hashes([os.fsencode(name)]) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
