"""What records in files of one's own have in common: an index of where each stands, and the cut into train and eval.

The index is made once and kept in `~/.cache/jaxbig`, or in the folder that JAXBIG_CACHE names: arrays in
a folder, which all processes of a machine map into memory. Its name is a hash of the settings and of all files' paths,
sizes and times of change, so that changed files have another. A process looks for files and their sizes once, when it
prepares its data. A record is for evaluation by its own hash alone (of its name or its bytes: each kind says which), so
that a file more moves no other record between train and eval.
"""

import abc
import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxbig.constraints import FractionBelowOne, PositiveInt
from jaxbig.data.core.cache import build_once, cache_folder, sha256, write_atomically
from jaxbig.data.core.dataset import Record, Records
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
VERSION = 3  # of an index; raise it when what one holds changes
MAPPED = 2**20
"""Bytes of an array of an index, from which on it is mapped into memory."""
THREADS, AT_ONCE, EVERY = 8, 1024, 10
"""Files that are scanned at a time; files that are handed to those threads at once; seconds between two lines on how
far that is."""


class File(NamedTuple):
    """A file of records."""

    path: str
    """Where it lies on this machine."""
    name: str
    """What it is called on every machine."""
    split: str = ""
    """"train" or "eval" if that is said, else each record's hash decides."""


class Locations(NamedTuple):
    """Where records stand; arrays [N]."""

    which: np.ndarray  # int32: a place among the files
    start: np.ndarray  # int64: the first byte, or the row
    size: np.ndarray  # int64: bytes; 0 where it is a row
    hash: np.ndarray  # uint64


class ScanResult(NamedTuple):
    """What an index pass finds in one file; arrays as `Locations` has them."""

    start: np.ndarray
    size: np.ndarray
    hash: np.ndarray
    content: bytes = b""  # the sha256 of all its bytes
    blank: int = 0  # lines that are no records


class FileList(Sequence[File]):
    """Files in one text, NUL between their fields, so that processes share what they map: text uint8 [bytes], and where
    each file's part ends, int64 [files]."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self.text = text
        self.ends = ends

    @classmethod
    def of(cls, files: Sequence[File]) -> "FileList":
        texts = [os.fsencode("\0".join(file)) for file in files]
        return cls(
            np.frombuffer(b"".join(texts), np.uint8),
            np.cumsum([len(text) for text in texts], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: Any) -> Any:
        number = range(len(self))[number]
        start = int(self.ends[number - 1]) if number else 0
        return File(*os.fsdecode(self.text[start : int(self.ends[number])].tobytes()).split("\0"))


class Index(NamedTuple):
    """Where every record stands, mapped from a folder of the cache."""

    folder: Path
    files: FileList
    places: Locations
    bytes: int
    sha256: str  # over the files' names, sizes and contents
    passed: str  # what is no record, in words, or ""

    @classmethod
    def load(cls, folder: Path) -> "Index":
        text, ends, *columns = (
            load_array(folder / f"{name}.npy") for name in ("text", "ends", *Locations._fields)
        )
        places, header = Locations(*columns), json.loads((folder / "header.json").read_text())
        return cls(folder, FileList(text, ends), places, **header)


def load_array(file: Path) -> np.ndarray:
    """An array of a file: a large one is mapped, so that processes share it; a small one holds no file open."""
    return np.load(file, mmap_mode="r" if os.path.getsize(file) >= MAPPED else None)


class OpenFiles(abc.ABC, Sequence[Record]):
    """The records of one split, read in any order. What is pickled is the index's folder, and no open file."""

    def __init__(self, records: Any, index: Index, split: str):
        self.records = records
        self.indexed = index
        self.split = split
        self.chosen, self.repeat = (
            cached_split(records, index, split),
            records.repeat if split == "train" else 1,
        )

    def __reduce__(self) -> Any:
        return reopen, (type(self), self.records, self.indexed.folder, self.split)

    def __len__(self) -> int:
        return len(self.chosen) * self.repeat

    def __getitem__(self, index: Any) -> Any:
        return self.read(*self.place(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        return [self[index] for index in indices]

    def place(self, index: int) -> tuple[File, int, int]:
        """Its file, and in it the first byte and the bytes, or the row and 0."""
        place = self.chosen[range(len(self))[index] % len(self.chosen)]
        which, start, size, _ = (int(column[place]) for column in self.indexed.places)
        return self.indexed.files[which], start, size

    def where(self, index: int) -> str:
        """The file and the row of a record, for who has to mend it."""
        file, row, _ = self.place(index)
        return f"{file.path} row {row}"

    @abc.abstractmethod
    def read(self, file: File, start: int, size: int) -> Record:
        """The record that stands there; raises ValueError, saying what is wrong, if there is none."""


def reopen(kind: type[OpenFiles], records: Any, folder: Path, split: str) -> OpenFiles:
    """What was pickled, in another process."""
    return kind(records, Index.load(folder), split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Records):
    """Records in files of one's own."""

    eval_share: FractionBelowOne = 0.05
    """The part of the records that is held out for evaluation, by the hash of each, where no files are named for it."""
    limit: PositiveInt | None = None
    """At most so many training records, those whose hash comes last: of every file and class, the same ones on every
    machine. Evaluation has all of its own."""
    repeat: PositiveInt = 1
    """How often each training record stands in an epoch."""

    opened: ClassVar[type[OpenFiles]]

    @abc.abstractmethod
    def found(self) -> list[File]:
        """The files, in an order that lasts; raises Refused if there are none."""

    @abc.abstractmethod
    def scan(self, file: File) -> ScanResult:
        """The records in a file; raises Refused if it is not what it should be."""

    def open(self, split: str) -> OpenFiles:
        index = vars(self).get("prepared") or self.index()
        self.require_nonempty(index, cached_split(self, index, split), split)
        return self.opened(self, index, split)

    def prepare(self) -> str:
        index = self.index()
        vars(self)["prepared"] = (
            index  # for `open`: files are not looked for again before they are prepared again
        )
        splits = {split: cached_split(self, index, split) for split in ("train", "eval")}
        for split in splits if self.eval_share else ("train",):
            self.require_nonempty(index, splits[split], split)
        if index.passed:
            log.warning("%s in %s: %s", self.kind, common_folder(index.files), index.passed)
        said = ", ".join(f"{split} {len(places)}" for split, places in splits.items())
        return f"{self.kind} of {len(index.files)} files, {index.bytes} bytes, records: {said}, sha256:{index.sha256}"

    def __getstate__(self) -> dict[str, Any]:  # pickled without the index, which each process maps
        return {name: value for name, value in vars(self).items() if name != "prepared"}

    def require_nonempty(self, index: Index, places: np.ndarray, split: str) -> np.ndarray:
        if not len(places):
            count, more = len(index.places.which), len(index.files) - 1
            where = index.files[0].path + (f" and {more} other files" if more else "")
            mend = (
                "set another share, or name more files"
                if count
                else "write some, or name other files"
            )
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
        if (
            not 0 <= self.eval_share < 1
            or self.repeat < 1
            or (self.limit is not None and self.limit < 1)
        ):
            raise Refused(
                f"{self.kind} with eval_share {self.eval_share}, limit {self.limit}, repeat {self.repeat}: the share "
                "is at least 0 and below 1, the others are at least 1."
            )
        with readable():
            files = self.found()
            stats = [os.stat(file.path) for file in files]
        own = {field.name for field in dataclasses.fields(self)} - {
            field.name for field in dataclasses.fields(Files)
        }
        settings = [
            VERSION,
            type(self).__module__,
            self.kind,
            [(name, getattr(self, name)) for name in sorted(own)],
        ]
        key = hashlib.sha256(os.fsencode(repr(settings)))
        listed = FileList.of(files)
        key.update(listed.text.tobytes() + listed.ends.tobytes())
        times = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]
        key.update(np.array(times, np.int64).tobytes())
        target = cache_folder("index") / f"{self.kind}-{key.hexdigest()[:24]}"

        def make(folder: Path) -> None:
            log.info("indexing %d files in %s (once)", len(files), common_folder(files))
            save(
                folder,
                listed,
                merge_results(files, self.scan_all(files), [stat.st_size for stat in stats]),
            )

        folder = build_once(target, make)
        try:
            return Index.load(folder)
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            EOFError,
        ):  # it was cut off, by a full disk for example
            shutil.rmtree(target, ignore_errors=True)
            return Index.load(build_once(target, make))

    def scan_all(self, files: list[File]) -> list[ScanResult]:
        """What is found in each file, by several threads."""

        def scan(file: File) -> ScanResult:
            with readable(file.path):
                return self.scan(file)

        found: list[ScanResult] = []
        said, pool = time.monotonic(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
        try:
            for start in range(0, len(files), AT_ONCE):
                for each in pool.map(scan, files[start : start + AT_ONCE]):
                    found.append(each)
                    if time.monotonic() > said + EVERY:
                        said = time.monotonic()
                        log.info("%d of %d files are indexed", len(found), len(files))
        finally:
            pool.shutdown(cancel_futures=True)
        return found


def common_folder(files: Sequence[File]) -> str:
    """The folder that the first and the last file share."""
    return os.path.commonpath([os.path.dirname(files[0].path), os.path.dirname(files[-1].path)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePatterns(Files):
    """Files by path."""

    files: str | tuple[str, ...]
    """Paths or patterns: `*` is any name that begins with no dot, `**` any folders within folders."""
    eval_files: str | tuple[str, ...] = ()
    """The same for evaluation: the rest of `files` is then all for training, and `eval_share` says nothing."""

    def found(self) -> list[File]:
        if not self.eval_files:
            return match_files(self.files)
        held_out = match_files(self.eval_files, "eval")
        paths = {file.path for file in held_out}
        return [
            file for file in match_files(self.files, "train") if file.path not in paths
        ] + held_out


def match_files(patterns: str | tuple[str, ...], split: str = "") -> list[File]:
    """The files that patterns match, in order of pattern and path, each once; `Refused` if one matches none.

    A file's name is its path from the first folder of its pattern that has a `*` in it, or its last part.
    """
    found: dict[str, File] = {}
    for given in (patterns,) if isinstance(patterns, str) else patterns:
        pattern = os.path.abspath(os.path.expanduser(given))
        if os.path.isdir(pattern):
            raise Refused(f"{given} is a folder: name files, as in {os.path.join(given, '*')}.")
        whole = os.path.isfile(pattern)  # a name may have brackets in it
        there = [pattern] if whole else sorted(glob.glob(pattern, recursive=True))
        paths = list(filter(is_file_or_broken_link, there))
        if not paths:
            raise Refused(f"no file matches {given} (sought as {pattern}).")
        root = os.path.dirname(pattern)
        while not whole and any(mark in root for mark in "*?["):
            root = os.path.dirname(root)
        if "**" not in pattern and len(there) > len(paths):
            inner = len(there) - len(paths)
            log.warning(
                "%s matches %d folders, which are passed over: ** is any folders within folders",
                given,
                inner,
            )
        if root != os.path.dirname(pattern):
            warn_of_denied_folders(given, root)
        found |= {
            path: File(path, os.path.relpath(path, root), split)
            for path in paths
            if path not in found
        }
    return list(found.values())


def warn_of_denied_folders(pattern: str, root: str) -> None:
    """Logs each folder below `root` that cannot be read, which `glob` passes over without a word."""

    def warn(error: OSError) -> None:
        why = error.strerror or error
        log.warning(
            "%s: folder %s cannot be read (%s) and is passed over", pattern, error.filename, why
        )

    for _ in os.walk(root, onerror=warn):
        pass


def is_file_or_broken_link(path: str) -> bool:
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


class IndexData(NamedTuple):
    """An index before it is written."""

    places: Locations
    header: dict[str, Any]


def merge_results(files: Sequence[File], found: list[ScanResult], sizes: list[int]) -> IndexData:
    """The index of files of those sizes, of what was found in each."""
    numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(each.start) for each in found])
    start, size, hashes = (
        np.concatenate([column for column in columns], dtype=kind)
        for columns, kind in zip(
            list(zip(*found, strict=True))[:3], (np.int64, np.int64, np.uint64), strict=True
        )
    )
    digest = hashlib.sha256()
    for file, each, length in zip(files, found, sizes, strict=True):
        digest.update(
            b"%b\0%b\0%d\0%b" % (os.fsencode(file.name), file.split.encode(), length, each.content)
        )
    passed = []
    if without := [
        file.path for file, each in zip(files, found, strict=True) if not len(each.start)
    ]:
        passed.append(
            f"{len(without)} of {len(files)} files have no record, {without[0]} the first"
        )
    if blank := sum(each.blank for each in found):
        passed.append(f"{blank} blank lines are no records")
    header = {"bytes": sum(sizes), "sha256": digest.hexdigest(), "passed": "; ".join(passed)}
    return IndexData(Locations(numbers, start, size, hashes), header)


def save(folder: Path, files: FileList, index: IndexData) -> None:
    """Writes what `Index.load` reads."""
    for name, array in {"text": files.text, "ends": files.ends, **index.places._asdict()}.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "header.json").write_text(json.dumps(index.header))


def split_records(records: Files, index: Index, split: str) -> np.ndarray:
    """Which of all records are in a split, ascending."""
    told = np.array([("train", "eval", "").index(file.split) for file in index.files])[
        index.places.which
    ]
    held_out = np.where(
        told < 2, told == 1, index.places.hash < np.uint64(int(records.eval_share * 2**64))
    )
    places = np.flatnonzero(held_out if split == "eval" else ~held_out)
    if split == "train" and records.limit is not None:
        places = np.sort(
            places[np.argsort(index.places.hash[places], kind="stable")[-records.limit :]]
        )
    return places


def cached_split(records: Files, index: Index, split: str) -> np.ndarray:
    """The same, kept beside the index and mapped from there."""
    settings = records.eval_share, records.limit if split == "train" else None
    target = index.folder / f"{split}-{sha256(repr(settings))[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or cut off
        return load_array(target)
    write_atomically(target, lambda path: np.save(path, split_records(records, index, split)))
    return load_array(target)


def hash64(text: bytes) -> bytes:
    """BLAKE2b (RFC 7693) of 64 bits."""
    return hashlib.blake2b(text, digest_size=8).digest()


def hashes(names: Iterable[bytes]) -> np.ndarray:
    """The hash of each name, uint64."""
    return np.frombuffer(b"".join(map(hash64, names)), "<u8")


def row_hashes(name: str, count: int) -> np.ndarray:
    """A hash of each row of a file, uint64 [count], by the file's name and the row's number: the sequence of SplitMix64
    (Steele, Lea and Flood, 2014) that begins at the name's hash."""
    z = hashes([os.fsencode(name)]) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
