"""Durable file writes: what was written survives a power loss."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxbig.errors import Failed, Refused

CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""Errors of a file system without fsync, as some mounted buckets have for folders."""


def sync(path: Path) -> None:
    """Returns once the content of a file, or the entries of a folder, are on disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        sync_open(opened)
    finally:
        os.close(opened)


def sync_open(descriptor: int) -> None:
    """The same of an open file, which may have been removed meanwhile."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def write_file(file: Path, content: str | bytes) -> None:
    """Writes a complete file; a power loss leaves either the old or the new content."""
    temporary = file.with_name(f"{file.name}.partial")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    replace(temporary, file)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes the complete file or leaves the old one, even at a power loss.

    Raises:
      Failed: the file cannot be written.
    """
    try:
        write_file(file, content)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror or error}.") from error


def replace(temporary: Path, target: Path) -> None:
    """Renames a complete file or folder; a power loss leaves either the old or the new name.

    Syncs the content first, else the name may be on disk before it; then syncs the name.
    """
    for root, _, names in os.walk(temporary, topdown=False):  # empty for a file
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
    if temporary.is_file():
        sync(temporary)
    temporary.replace(target)
    sync(target.parent)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that appears complete, or not at all.

    Args:
      folder: its path; nothing must be there, or an empty folder.

    Yields:
      A temporary folder beside it to write into; it is removed after an error or Ctrl-C, and
      renamed at the end.

    Raises:
      Refused: something is there already, or nothing can be written there.
      Failed: a file cannot be written, as on a full disk.
    """
    target = Path(os.path.abspath(folder))
    is_link = target.is_symlink()
    if is_link or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise Refused(f"{target} is there already: give a new or an empty folder.")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise Refused(f"{target} cannot be written: {error.strerror or error}.") from None
    try:
        yield partial
        if target.exists():
            target.rmdir()
        replace(partial, target)
    except OSError as error:
        raise Failed(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
