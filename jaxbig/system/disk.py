"""Durable file writes: what was written survives a power loss."""

import errno
import os
from pathlib import Path

CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""Errors of a file system without fsync, as some mounted buckets have for folders."""


def sync(path: Path) -> None:
    """Returns once the content of a file, or the entries of a folder, are on disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(opened)


def write_file(file: Path, content: str | bytes) -> None:
    """Writes a complete file; a power loss leaves either the old or the new content."""
    temporary = file.with_name(f"{file.name}.partial")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    replace(temporary, file)


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
