"""Digests of records and files: the identity of a data set, which changes when the data does.

Small data is read completely. Of large data a part is read, the same each time, and every size: a
change of a few records may go unnoticed. To rule that out, return an identity of your own
(`Records.prepare`).
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
RECORDS = 20_000
"""Records of a split that are read at most."""
RECORD_BYTES = 2**30
"""Bytes after which no more records of a split are read."""
AT_ONCE = 16
"""Records that are read in one call."""
FILE_BYTES = 2**34
"""Total size in bytes up to which files are read completely."""
BLOCKS = 64
"""Blocks that are read of each larger file."""
BLOCK = 2**16
"""Bytes of a block."""
THREADS = 8
"""Files that are read at a time."""
LOG_EVERY_S = 10
"""Seconds between two lines on the progress."""
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
    """The number of records of a split, and the sha256 over them or over an even choice of many.

    A record that cannot be read counts by its index only: the run names it when it is needed.
    """
    size = len(records)
    digest = hashlib.sha256()
    total = 0
    logged = time.monotonic()
    indices = permuted(np.arange(min(size, RECORDS)), size, 0, 0).tolist() if size else []
    read = 0
    for start in range(0, len(indices), AT_ONCE):
        chunk = indices[start : start + AT_ONCE]
        for index, record in zip(chunk, readable_records(records, chunk), strict=True):
            parts: list[bytes] = []
            flatten(record, parts)
            total += sum(map(len, parts))
            digest.update(b"%d %d " % (index, len(parts)))
            for part in parts:
                digest.update(b"%d " % len(part) + part)
        read += len(chunk)
        if total > RECORD_BYTES:
            break
        if time.monotonic() > logged + LOG_EVERY_S:
            logged = time.monotonic()
            log.info("%d of %d records are hashed", read, len(indices))
    of = "" if read == size else f" of {read} of them"
    return f"{size} sha256:{digest.hexdigest()}{of}"


def readable_records(records: Sequence[Any], indices: list[int]) -> list[Any]:
    """Reads records, in one call where possible; a text replaces one that cannot be read."""
    many: Any = getattr(records, "__getitems__", None)
    try:
        return list(many(indices)) if many else [records[index] for index in indices]
    except Exception:  # read one by one to find which it was
        return [readable_record(records, index) for index in indices]


def readable_record(records: Sequence[Any], index: int) -> Any:
    try:
        return records[index]
    except Exception:  # of any type; it is reported when the record is needed
        return "this record cannot be read"


def flatten(value: Any, parts: list[bytes]) -> None:
    """Appends the content of a value; two values give equal parts only if they are equal."""
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
    # Arrays, and objects that convert themselves to one, such as an image of Pillow.
    elif not (array := np.asarray(value)).dtype.hasobject:
        parts.append(f"{array.dtype} {array.shape}".encode())
        parts.append(array.tobytes())
    elif isinstance(value, np.ndarray) and value.dtype == object:
        parts.append(f"objects {array.shape}".encode())
        flatten(array.ravel().tolist(), parts)
    else:
        raise Refused(
            f"a record holds a {type(value).__name__}, whose contents cannot be hashed: give "
            f"bytes, text, numbers or arrays, or let `prepare` of the records return an identity "
            f"of your own, a text that says which data it is."
        )


def digest_files(files: Sequence[Path]) -> str:
    """The sha256 over the names, sizes and contents of files; large ones are read in part."""
    sizes = [os.stat(file).st_size for file in files]
    whole = sum(sizes) <= FILE_BYTES
    digest = hashlib.sha256()
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    logged = time.monotonic()
    try:
        contents = pool.map(digest_file if whole else digest_blocks, files)
        for number, (file, size, content) in enumerate(zip(files, sizes, contents, strict=True), 1):
            digest.update(b"%b\0%d\0%b" % (os.fsencode(file.name), size, content))
            if time.monotonic() > logged + LOG_EVERY_S:
                logged = time.monotonic()
                log.info("%d of %d files are hashed", number, len(files))
    finally:
        pool.shutdown(cancel_futures=True)
    return f"sha256:{digest.hexdigest()}" + ("" if whole else f" of {BLOCKS} blocks a file")


def digest_file(file: Path) -> bytes:
    with open(file, "rb") as read:
        return hashlib.file_digest(read, "sha256").digest()


def digest_blocks(file: Path) -> bytes:
    """The sha256 over evenly spread blocks of a file, including the first and the last."""
    digest = hashlib.sha256()
    last = max(0, os.stat(file).st_size - BLOCK)
    with open(file, "rb") as read:
        for number in range(BLOCKS):
            read.seek(last * number // (BLOCKS - 1))
            digest.update(read.read(BLOCK))
    return digest.digest()
