"""The cache on disk of what is computed once: `~/.cache/jaxbig`, or the folder in JAXBIG_CACHE."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from jaxbig.data.core.content_digest import digest_files
from jaxbig.data.core.dataset import folder_of
from jaxbig.errors import Refused
from jaxbig.system.disk import replace

DIGEST = 1
"""Version of the cached digests of files."""


def sha256(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def cache_folder(kind: str) -> Path:
    """The folder for cached results of that kind; raises if it cannot be written."""
    folder = folder_of("JAXBIG_CACHE", "~/.cache/jaxbig") / kind
    with refuse_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def refuse_unwritable(folder: Path) -> Iterator[None]:
    """Turns an OSError into `Refused` with a fix."""
    try:
        yield
    except OSError as error:
        raise Refused(
            f"nothing can be kept in {folder}: {error.strerror or error}; set JAXBIG_CACHE to a "
            f"folder with room that can be written."
        ) from error


def write_atomically(target: Path, make: Callable[[Path], Any]) -> None:
    """Lets `make` write a temporary file and renames it when it is complete."""
    with (
        refuse_unwritable(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as folder,
    ):
        part = Path(folder) / target.name
        make(part)
        replace(part, target)


def build_once(target: Path, make: Callable[[Path], Any]) -> Path:
    """Builds a folder unless it exists: in one process, while others wait.

    Args:
      target: The folder. It gets this name when it is complete; what a killed process has left
        is removed.
      make: Writes the content into the folder it is given.

    Returns:
      The target.
    """

    def build() -> None:
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        make(part)
        replace(part, target)

    with refuse_unwritable(target.parent):
        once(target.exists, build, lock=f"{target}.lock")
    return target


def once(done: Callable[[], bool], make: Callable[[], Any], *, lock: str | Path) -> bool:
    """Calls `make` unless `done()`; of several processes one does, and the others wait at the lock.

    Returns:
      Whether it was not done when this was called.
    """
    if done():
        return False
    with filelock.FileLock(lock):
        if not done():
            make()
    return True


def digest_once(files: Sequence[Path]) -> str:
    """The digest of files (`digest_files`), cached until a path, size or time of change differs."""
    stats = [os.stat(file) for file in files]
    times = [
        (str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for file, stat in zip(files, stats, strict=True)
    ]
    target = cache_folder("digests") / sha256(repr([DIGEST, times]))[:24]

    def make(folder: Path) -> None:
        (folder / "sha256").write_text(digest_files(files))

    return (build_once(target, make) / "sha256").read_text()
