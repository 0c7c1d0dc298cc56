"""Tries whether a folder can hold a run: what its file system can do, and that it has no links."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from jaxbig.errors import Refused

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
"""Errors that any file system can give; they do not mean that it lacks an operation."""


def try_file_system(workdir: Path) -> None:
    """Tries what a run needs of its file system; removes everything that it wrote.

    It must append to a file, overwrite a part of one, replace one by another, and rename a folder
    that is not empty. Some mounted buckets cannot.

    Raises:
      Refused: one of these fails, or gives a wrong result.
      OSError: an error of `NO_ROOM`.
    """
    trial = Path(tempfile.mkdtemp(dir=workdir, prefix=".trial-"))
    file = trial / "folder" / "file"
    other = trial / "folder" / "other"

    def append() -> bool:
        with file.open("ab") as stream:
            stream.write(b"def")
        return file.read_bytes() == b"abcdef"

    def overwrite() -> bool:
        with file.open("r+b") as stream:
            stream.write(b"A")
        return file.read_bytes() == b"Abcdef"

    def replace() -> bool:
        other.write_bytes(b"other")
        other.replace(file)
        return file.read_bytes() == b"other"

    def rename() -> bool:
        file.parent.rename(trial / "renamed")
        return (trial / "renamed" / "file").read_bytes() == b"other"

    attempts = {
        "append to a file": append,
        "overwrite a part of a file": overwrite,
        "replace a file by another": replace,
        "rename a folder": rename,
    }
    try:
        file.parent.mkdir()
        file.write_bytes(b"abc")
        for what, attempt in attempts.items():
            try:
                why = "" if attempt() else "the result was wrong"
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise
                why = error.strerror or str(error)
            if why:
                raise Refused(
                    f"{workdir} is on a file system that cannot {what} ({why}), which checkpoints "
                    f"and metrics need: mount a Cloud Storage bucket by "
                    f"gcsfuse --rename-dir-limit 100000 or give it a hierarchical namespace "
                    f"(goofys cannot store a run), or give a --workdir on another disk."
                )
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def refuse_links(workdir: Path) -> None:
    """Raises `Refused` if a folder contains a symbolic link: writes would end up elsewhere."""
    for entry in workdir.iterdir():
        if entry.is_symlink():
            raise Refused(
                f"{entry} is a link to {os.readlink(entry)}, and links in the folder of a run are "
                f"not followed: put the whole folder there and give it as --workdir."
            )


def remove_empty(paths: list[Path]) -> None:
    """Removes files, and folders that are empty; give inner paths before outer ones."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
