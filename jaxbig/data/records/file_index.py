"""Base classes of records from your own files: the index in the cache, and the eval split.

The index is built once and cached in `~/.cache/jaxbig`, or in the folder in JAXBIG_CACHE: arrays in
a folder, which all processes of a machine map into memory. Its name is a hash of the settings and
of all files' paths, sizes and times of change, so changed files get a new index. A process lists
files and their sizes once, when it prepares its data. A record's split depends only on its own hash
(of its name or its bytes: each class says which), so adding a file moves no other record between
train and eval.
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

from jaxbig.constraints import FractionBelowOne, PositiveInt, validate
from jaxbig.data.core.cache import build_once, cache_folder, sha256, write_atomically
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.permutation import GOLDEN, splitmix64
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
VERSION = 3
"""Version of the index; raise it when its content changes."""
MAPPED = 2**20
"""Bytes of an array of an index from which on it is mapped into memory."""
THREADS = 8
"""Files that are scanned at a time."""
AT_ONCE = 1024
"""Files that are handed to the threads at a time."""
LOG_EVERY_S = 10
"""Seconds between two lines on the progress."""


class File(NamedTuple):
    """A file of records."""

    path: str
    """The path on this machine."""
    name: str
    """The name, equal on every machine."""
    split: str = ""
    """"train", "eval", or "" if each record's hash decides."""


class Locations(NamedTuple):
    """Positions of records; arrays [N]."""

    which: np.ndarray  # int32: index of the file
    start: np.ndarray  # int64: the first byte, or the row
    size: np.ndarray  # int64: bytes; 0 where it is a row
    hash: np.ndarray  # uint64


class ScanResult(NamedTuple):
    """The records of one file; arrays as in `Locations`."""

    start: np.ndarray
    size: np.ndarray
    hash: np.ndarray
    content: bytes = b""  # the sha256 of all its bytes
    blank: int = 0  # lines that are no records


class FileList(Sequence[File]):
    """A list of files in two arrays, which processes share by mapping them.

    Args:
      text: The fields of all files, NUL between the fields of a file, uint8 [bytes].
      ends: The end of each file's part of the text, int64 [files].
    """

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
    """The positions of all records, mapped from a folder of the cache."""

    folder: Path
    files: FileList
    places: Locations
    bytes: int
    sha256: str  # over the files' names, sizes and contents
    passed: str  # a warning about parts without records, or ""

    @classmethod
    def load(cls, folder: Path) -> "Index":
        text, ends, *columns = (
            load_array(folder / f"{name}.npy") for name in ("text", "ends", *Locations._fields)
        )
        header = json.loads((folder / "header.json").read_text())
        return cls(folder, FileList(text, ends), Locations(*columns), **header)


def load_array(file: Path) -> np.ndarray:
    """Reads an array; a large one is mapped, so that processes share it."""
    return np.load(file, mmap_mode="r" if os.path.getsize(file) >= MAPPED else None)


class OpenFiles(abc.ABC, Sequence[Record]):
    """The records of one split, read in any order.

    It is pickled as the index's folder, without open files.
    """

    def __init__(self, records: Any, index: Index, split: str):
        self.records = records
        self.indexed = index
        self.split = split
        self.chosen = cached_split(records, index, split)
        self.repeat = records.repeat if split == "train" else 1

    def __reduce__(self) -> Any:
        return reopen, (type(self), self.records, self.indexed.folder, self.split)

    def __len__(self) -> int:
        return len(self.chosen) * self.repeat

    def __getitem__(self, index: Any) -> Any:
        return self.read(*self.place(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        return [self[index] for index in indices]

    def place(self, index: int) -> tuple[File, int, int]:
        """A record's file, and in it the first byte and the bytes, or the row and 0."""
        place = self.chosen[range(len(self))[index] % len(self.chosen)]
        which, start, size, _ = (int(column[place]) for column in self.indexed.places)
        return self.indexed.files[which], start, size

    def where(self, index: int) -> str:
        """The file and the row of a record, for error messages."""
        file, row, _ = self.place(index)
        return f"{file.path} row {row}"

    @abc.abstractmethod
    def read(self, file: File, start: int, size: int) -> Record:
        """Reads the record at a position; raises ValueError, saying what is wrong, if it cannot."""


def reopen(kind: type[OpenFiles], records: Any, folder: Path, split: str) -> OpenFiles:
    """Opens pickled records again, in another process."""
    return kind(records, Index.load(folder), split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Records):
    """Records in your own files."""

    eval_share: FractionBelowOne = 0.05
    """Fraction of the records that is held out for evaluation, by hash, unless files are named."""
    test_share: FractionBelowOne = dataclasses.field(default=0.0, repr=False)  # in no cache's key
    """Fraction of the records that is held out for `jaxbig evaluate --split test`, by hash, unless
    files are named. It leaves those held out for evaluation as they are."""
    limit: PositiveInt | None = None
    """Maximum number of training records: those with the largest hashes, of every file and class,
    the same on every machine. Evaluation is not limited."""
    repeat: PositiveInt = 1
    """How often each training record is in an epoch."""

    opened: ClassVar[type[OpenFiles]]

    @abc.abstractmethod
    def found(self) -> list[File]:
        """The files, in a reproducible order; raises `Refused` if there are none."""

    @abc.abstractmethod
    def scan(self, file: File) -> ScanResult:
        """Finds the records in a file; raises `Refused` if it is invalid."""

    def open(self, split: str) -> OpenFiles:
        index = vars(self).get("prepared") or self.index()
        self.require_nonempty(index, cached_split(self, index, split), split)
        return self.opened(self, index, split)

    def prepare(self) -> str:
        index = self.index()
        vars(self)["prepared"] = index  # for `open`, which does not list the files again
        shares = {"train": 1.0, "eval": self.eval_share, "test": self.test_share}
        names = tuple(shares) if self.test_share else ("train", "eval")
        splits = {split: cached_split(self, index, split) for split in names}
        for split in filter(shares.get, names):
            self.require_nonempty(index, splits[split], split)
        if index.passed:
            log.warning("%s in %s: %s", self.kind, common_folder(index.files), index.passed)
        counts = ", ".join(f"{split} {len(places)}" for split, places in splits.items())
        return (
            f"{self.kind} of {len(index.files)} files, {index.bytes} bytes, records: {counts}, "
            f"sha256:{index.sha256}"
        )

    def has_test(self) -> bool:
        return self.test_share > 0

    def check_fields(self) -> None:
        if self.eval_share + self.test_share >= 1:
            raise Refused(
                f"test_share {self.test_share}: with eval_share {self.eval_share} it must be below "
                f"1, so that some records are left for training."
            )

    def __getstate__(self) -> dict[str, Any]:  # without the index, which each process maps
        return {name: value for name, value in vars(self).items() if name != "prepared"}

    def require_nonempty(self, index: Index, places: np.ndarray, split: str) -> None:
        """Raises `Refused` if a split has no records."""
        if len(places):
            return
        count = len(index.places.which)
        more = len(index.files) - 1
        where = index.files[0].path + (f" and {more} other files" if more else "")
        fix = "write some, or name other files"
        if count:
            fix = "set another share, or name more files"
        raise Refused(
            f"{self.kind} with {'test' if split == 'test' else 'eval'}_share "
            f"{self.test_share if split == 'test' else self.eval_share} has no record for {split}, "
            f"of {count} in {where}: {fix}."
        )

    @property
    def kind(self) -> str:
        return type(self).__name__

    def index(self) -> Index:
        """The index: from the cache if no file has changed, otherwise rebuilt."""
        validate(self)
        with readable():
            files = self.found()
            stats = [os.stat(file.path) for file in files]
        inherited = {field.name for field in dataclasses.fields(Files)}
        own = {field.name for field in dataclasses.fields(self)} - inherited
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
            sizes = [stat.st_size for stat in stats]
            save(folder, listed, merge_results(files, self.scan_all(files), sizes))

        folder = build_once(target, make)
        try:
            return Index.load(folder)
        except (OSError, ValueError, TypeError, KeyError, EOFError):  # cut off, e.g. by a full disk
            shutil.rmtree(target, ignore_errors=True)
            return Index.load(build_once(target, make))

    def scan_all(self, files: list[File]) -> list[ScanResult]:
        """Scans all files, with several threads."""

        def scan(file: File) -> ScanResult:
            with readable(file.path):
                return self.scan(file)

        found: list[ScanResult] = []
        logged = time.monotonic()
        pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
        try:
            for start in range(0, len(files), AT_ONCE):
                for result in pool.map(scan, files[start : start + AT_ONCE]):
                    found.append(result)
                    if time.monotonic() > logged + LOG_EVERY_S:
                        logged = time.monotonic()
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
    """Paths or patterns: `*` is any name that starts with no dot, `**` any folders, also nested."""
    eval_files: str | tuple[str, ...] = ()
    """The same for evaluation: the rest of `files` is for training; `eval_share` is ignored."""

    def found(self) -> list[File]:
        if not self.eval_files:
            return match_files(self.files)
        held_out = match_files(self.eval_files, "eval")
        paths = {file.path for file in held_out}
        return [
            file for file in match_files(self.files, "train") if file.path not in paths
        ] + held_out


def match_files(patterns: str | tuple[str, ...], split: str = "") -> list[File]:
    """The files that match, in order of pattern and path, each once; raises if a pattern has none.

    A file's name is its path relative to the last folder of the pattern before a `*`, or its last
    part.
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
    """Logs each folder below `root` that cannot be read, which `glob` silently ignores."""

    def warn(error: OSError) -> None:
        why = error.strerror or error
        log.warning(
            "%s: folder %s cannot be read (%s) and is passed over", pattern, error.filename, why
        )

    for _ in os.walk(root, onerror=warn):
        pass


def is_file_or_broken_link(path: str) -> bool:
    """Whether it is a file or a broken link, which is reported and not ignored."""
    return os.path.isfile(path) or not os.path.exists(path)


@contextlib.contextmanager
def readable(path: str = "a file") -> Iterator[None]:
    """Turns an OSError into `Refused`, naming the file or folder that cannot be read.

    Args:
      path: The name if the error has none.
    """
    try:
        yield
    except OSError as error:
        raise Refused(
            f"{error.filename or path} cannot be read: {error.strerror or error}; fix or remove it."
        ) from error


class IndexData(NamedTuple):
    """An index before it is written."""

    places: Locations
    header: dict[str, Any]


def merge_results(files: Sequence[File], found: list[ScanResult], sizes: list[int]) -> IndexData:
    """Merges what was found in each file into one index."""
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
    """Writes the files that `Index.load` reads."""
    for name, array in {"text": files.text, "ends": files.ends, **index.places._asdict()}.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "header.json").write_text(json.dumps(index.header))


def split_records(records: Files, index: Index, split: str) -> np.ndarray:
    """The records of a split, ascending."""
    splits = np.array([("train", "eval", "").index(file.split) for file in index.files])
    given = splits[index.places.which]
    hashed = given == 2
    held_out = np.where(hashed, lowest(index, records.eval_share), given == 1)
    tested = hashed & ~lowest(index, 1 - records.test_share)
    chosen = {"train": ~(held_out | tested), "eval": held_out, "test": tested}
    places = np.flatnonzero(chosen[split])
    if split == "train" and records.limit is not None:
        order = np.argsort(index.places.hash[places], kind="stable")
        places = np.sort(places[order[-records.limit :]])
    return places


def lowest(index: Index, share: float) -> np.ndarray:
    """Which records have the lowest hashes, up to this share of their range."""
    if share == 1:
        return np.ones(len(index.places.hash), bool)
    return index.places.hash < np.uint64(int(share * 2**64))


def cached_split(records: Files, index: Index, split: str) -> np.ndarray:
    """The records of a split, cached beside the index and mapped from there."""
    limit = records.limit if split == "train" else None
    settings = (records.eval_share, limit, *filter(None, [records.test_share]))
    target = index.folder / f"{split}-{sha256(repr(settings))[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing, or cut off
        return load_array(target)
    write_atomically(target, lambda path: np.save(path, split_records(records, index, split)))
    return load_array(target)


def hash64(text: bytes) -> bytes:
    """A 64-bit BLAKE2b hash (RFC 7693)."""
    return hashlib.blake2b(text, digest_size=8).digest()


def hashes(names: Iterable[bytes]) -> np.ndarray:
    """The hash of each name, uint64."""
    return np.frombuffer(b"".join(map(hash64, names)), "<u8")


def scan_rows(file: File, rows: int) -> ScanResult:
    """The records of a file of `rows` rows, each found by its number."""
    with open(file.path, "rb") as data:
        content = hashlib.file_digest(data, "sha256").digest()
    return ScanResult(
        np.arange(rows), np.zeros(rows, np.int64), row_hashes(file.name, rows), content
    )


def row_hashes(name: str, count: int) -> np.ndarray:
    """A hash of each row of a file, uint64 [count], from the file's name and the row's number.

    It is the sequence of SplitMix64 (Steele, Lea & Flood, 2014) that starts at the name's hash.
    """
    steps = np.arange(count, dtype=np.uint64) * np.uint64(GOLDEN)
    return splitmix64(hashes([os.fsencode(name)]) + steps)
