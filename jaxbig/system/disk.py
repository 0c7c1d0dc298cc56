"""What is written so that a power loss takes nothing of it."""

import errno
import os
from pathlib import Path

CANNOT = errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF
"""What a file system answers that has no such call, as some mounted buckets do for a folder."""


def sync(path: Path) -> None:
    """Returns once the content of a file, or the names in a folder, are on disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
    finally:
        os.close(opened)


def replace(temporary: Path, target: Path) -> None:
    """Renames a file or folder whose content is complete: after a power loss either all of it has that name, or none.

    The content is synced first, else the name may be on disk before what it names; then the name is.
    """
    for root, _, names in os.walk(temporary, topdown=False):  # nothing for a file
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
    if temporary.is_file():
        sync(temporary)
    temporary.replace(target)
    sync(target.parent)
