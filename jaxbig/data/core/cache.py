"""What is made once and kept on this machine, in `~/.cache/jaxbig` or the folder that JAXBIG_CACHE names."""

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

DIGEST = 1  # the version of cached digests of files


def sha256(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def cache_folder(kind: str) -> Path:
    """The folder in which what was made of that kind is kept; `Refused` if it cannot be written."""
    folder = folder_of("JAXBIG_CACHE", "~/.cache/jaxbig") / kind
    with refuse_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def refuse_unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(
            f"nothing can be kept in {folder}: {error.strerror or error}; set JAXBIG_CACHE to a folder with room that "
            f"can be written."
        ) from error


def write_atomically(target: Path, make: Callable[[Path], Any]) -> None:
    """Writes a file under another name, and renames it when it is whole."""
    with (
        refuse_unwritable(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as folder,
    ):
        make(part := Path(folder) / target.name)
        os.replace(part, target)


def build_once(target: Path, make: Callable[[Path], Any]) -> Path:
    """The folder `target` with what `make` writes into it, once: by one process, while others wait. It gets its name
    when it is whole; what one that was killed has left is removed."""
    if not target.exists():
        with refuse_unwritable(target.parent), filelock.FileLock(f"{target}.lock"):
            if not target.exists():
                part = target.with_name(f"{target.name}.part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                make(part)
                os.rename(part, target)
    return target


def digest_once(files: Sequence[Path]) -> str:
    """The digest of files (`digest_files`), cached until a path, a size or a time of change is another."""
    stats = [os.stat(file) for file in files]
    times = [
        (str(f), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for f, stat in zip(files, stats, strict=True)
    ]
    target = cache_folder("digests") / sha256(repr([DIGEST, times]))[:24]
    return (
        build_once(target, lambda folder: (folder / "sha256").write_text(digest_files(files)))
        / "sha256"
    ).read_text()
