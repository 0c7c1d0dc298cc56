"""Digests of contents: of records, whatever they hold, and of files, so that an identity knows another byte.

What is small is read whole. Of what is large a part is read, the same each time, and every size: a change of a few
records in it may go unnoticed, and who cannot have that gives an identity of their own (`Records.prepare`).
"""

import dataclasses
import datetime
import decimal
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.data.core.permutation import permuted
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
RECORDS, RECORD_BYTES, AT_ONCE = 20_000, 2**30, 16
"""How many records of a split are read at most, and until how many bytes; how many are read at once."""
FILE_BYTES, BLOCKS, BLOCK = 2**34, 64, 2**16
"""Up to how many bytes together files are read whole; of larger ones, how many blocks a file, of how many bytes."""
THREADS, EVERY = 8, 10
"""Files that are read at a time; seconds between two lines on how far that is."""
PLAIN = (
    str,
    bytes,
    bytearray,
    bool,
    int,
    float,
    complex,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
)


def digest_records(records: Sequence[Any]) -> str:
    """What the records of a split are: how many, and the sha256 over them, or over an even choice of many.

    A record that cannot be read counts by its place alone: the run names it when it needs it.
    """
    size, digest, total, said = len(records), hashlib.sha256(), 0, time.monotonic()
    places = permuted(np.arange(min(size, RECORDS)), size, 0, 0).tolist() if size else []
    read = 0
    for start in range(0, len(places), AT_ONCE):
        some = places[start : start + AT_ONCE]
        for place, record in zip(some, readable_records(records, some), strict=True):
            parts: list[bytes] = []
            flatten(record, parts)
            total += sum(map(len, parts))
            digest.update(b"%d %d " % (place, len(parts)))
            for part in parts:
                digest.update(b"%d " % len(part) + part)
        read += len(some)
        if total > RECORD_BYTES:
            break
        if time.monotonic() > said + EVERY:
            said = time.monotonic()
            log.info("%d of %d records are read to know them again", read, len(places))
    of = "" if read == size else f" of {read} of them"
    return f"{size} sha256:{digest.hexdigest()}{of}"


def readable_records(records: Sequence[Any], places: list[int]) -> list[Any]:
    """Those records, at once where they can be read so; a text in place of one that cannot be read."""
    many: Any = getattr(records, "__getitems__", None)
    try:
        return list(many(places)) if many else [records[place] for place in places]
    except Exception:  # which record it was shows one by one
        return [readable_record(records, place) for place in places]


def readable_record(records: Sequence[Any], place: int) -> Any:
    try:
        return records[place]
    except Exception:  # any: it is the reader's, and reported when the record is needed
        return "this record cannot be read"


def flatten(value: Any, parts: list[bytes]) -> None:
    """Appends what a value holds, so that two values give the same parts only if they are the same."""
    if value is None or (isinstance(value, PLAIN) and not isinstance(value, np.generic)):
        data = value.encode(errors="surrogatepass") if isinstance(value, str) else value
        parts.append(type(value).__name__.encode())
        parts.append(bytes(data) if isinstance(data, bytes | bytearray) else repr(data).encode())
    elif isinstance(value, Mapping):
        parts.append(b"mapping %d" % len(value))
        for name in sorted(value, key=repr):
            flatten(name, parts)
            flatten(value[name], parts)
    elif isinstance(value, list | tuple):
        parts.append(b"sequence %d" % len(value))
        for each in value:
            flatten(each, parts)
    elif isinstance(value, set | frozenset):
        flatten(sorted(value, key=repr), parts)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        flatten(
            {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, parts
        )
    elif isinstance(value, Path):
        flatten(str(value), parts)
    elif not (
        array := np.asarray(value)
    ).dtype.hasobject:  # arrays, and what makes one of itself, as an image of Pillow
        parts.append(f"{array.dtype} {array.shape}".encode())
        parts.append(array.tobytes())
    elif isinstance(value, np.ndarray) and value.dtype == object:
        parts.append(f"objects {array.shape}".encode())
        flatten(array.ravel().tolist(), parts)
    else:
        raise Refused(
            f"a record holds a {type(value).__name__}, whose contents cannot be hashed: give bytes, text, numbers or "
            f"arrays, or let `prepare` of the records return an identity of your own, a text that says which data it "
            f"is."
        )


def digest_files(files: Sequence[Path]) -> str:
    """The sha256 over the names, sizes and contents of files, or of a part of them that are many bytes."""
    sizes = [os.stat(file).st_size for file in files]
    whole = sum(sizes) <= FILE_BYTES
    digest, pool, said = (
        hashlib.sha256(),
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)),
        time.monotonic(),
    )
    try:
        contents = pool.map(digest_file if whole else digest_blocks, files)
        for number, (file, size, content) in enumerate(zip(files, sizes, contents, strict=True), 1):
            digest.update(b"%b\0%d\0%b" % (os.fsencode(file.name), size, content))
            if time.monotonic() > said + EVERY:
                said = time.monotonic()
                log.info("%d of %d files are read to know them again", number, len(files))
    finally:
        pool.shutdown(cancel_futures=True)
    return f"sha256:{digest.hexdigest()}" + ("" if whole else f" of {BLOCKS} blocks a file")


def digest_file(file: Path) -> bytes:
    with open(file, "rb") as read:
        return hashlib.file_digest(read, "sha256").digest()


def digest_blocks(file: Path) -> bytes:
    """Over evenly spread blocks of a file, the first and the last among them."""
    digest, last = hashlib.sha256(), max(0, os.stat(file).st_size - BLOCK)
    with open(file, "rb") as read:
        for number in range(BLOCKS):
            read.seek(last * number // (BLOCKS - 1))
            digest.update(read.read(BLOCK))
    return digest.digest()
