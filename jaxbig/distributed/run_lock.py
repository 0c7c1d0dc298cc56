"""Who holds the folder of a run: one live run, on whatever machine.

Within a machine a lock tells, which goes with its process. Another machine may not see that lock, so the holder also
beats: it counts up in the file `holder`. One that does not beat for `SILENT` seconds, by the watch of whoever waits
for it, is dead. A holder that was only asleep finds another's name in the file when it wakes, and ends unsaved.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxbig.distributed.multihost import on_process_zero
from jaxbig.errors import Failed, Refused

log = logging.getLogger("jaxbig")
BEAT, SILENT = 2.0, 15.0
"""Seconds: between two beats; without any after which a holder is dead. A file server may show a beat late; where it
shows one later than that, as some mounted buckets do, nothing guards a folder between machines."""
NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP
NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS
"""Errors of any file system, which say nothing of what kind it is."""


@contextlib.contextmanager
def lock_run_directory(workdir: Path) -> Iterator[Callable[[], None]]:
    """Holds the folder for this run alone; `Refused` if another live run has it or it cannot be written.

    Gives what is to be called at each step: `Failed` where the folder is held no longer.
    """
    mine: list[RunLock] = []
    on_process_zero(lambda: mine.append(RunLock(workdir)))
    try:
        yield mine[0].check if mine else lambda: None
    except Refused:
        for each in mine:
            each.release()
            remove_empty(each.new)
        raise
    finally:
        for each in mine:
            each.release()


class RunLock:
    """A folder that is held, until it is released or lost; lost: how, once it is."""

    def __init__(self, workdir: Path):
        self.file, self.lost, self._done, self._beats = workdir / "holder", "", threading.Event(), 0
        self.who = {"process": os.getpid(), "host": socket.gethostname(), "machine": machine()}
        self.who["token"] = secrets.token_hex(8)
        self._open = self._lock = -1
        places = workdir / "lock", workdir / "checkpoints", workdir, *workdir.parents
        self.new = [each for each in places if not os.path.lexists(each)]
        """What is not there yet: a run that is refused takes it away again."""
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            refuse_links(workdir)
            self._take()
        except BaseException as error:
            self._close()
            remove_empty(self.new)
            if isinstance(error, OSError):
                why = error.strerror or error
                raise Refused(
                    f"cannot write in {workdir}: {why}; give another --workdir."
                ) from None
            raise
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._live, daemon=True, name="hold")
        self._thread.start()

    def check(self) -> None:
        """`Failed` if another has taken the folder, or it is gone."""
        if time.monotonic() - self._looked > 2 * BEAT:  # its thread has slept too
            with contextlib.suppress(OSError):
                self.look()
        if self.lost:
            raise Failed(self.lost)

    def look(self) -> None:
        """Sees whether the folder still is this run's."""
        folder, found = self.file.parent, text(self.file)
        if not folder.is_dir():
            self.lost = f"{folder} is gone: it was removed, or its disk is, and nothing more can be saved there."
        elif self.who["token"] not in found:
            self.lost = (
                f"{folder} was taken from this run ({name(self.who)}) by {name(who(found))}, because it was removed or "
                f"has not been heard of for {SILENT:.0f} s: it ends, and what it had not saved is made again."
            )
        self._looked = time.monotonic()

    def release(self) -> None:
        """Gives the folder back, if it still is this run's."""
        self._done.set()
        self._thread.join()  # so that it does not write to what is closed
        with contextlib.suppress(OSError):
            self.look()
            if not self.lost:
                self.file.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        for each in (self._open, self._lock):
            if each >= 0:
                os.close(each)  # and the lock goes with it
        self._open = self._lock = -1

    def _take(self) -> None:
        locked = self._take_lock()
        while True:
            try:
                self._open = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                break
            except FileExistsError:
                self._wait_for_death(locked)
                self.file.unlink(missing_ok=True)
        try:
            self._write()
            try_file_system(self.file.parent)
        except (OSError, Refused):
            self.file.unlink(missing_ok=True)
            raise

    def _take_lock(self) -> bool:
        """Whether this process has the lock; `Refused` if a live one of this machine does."""
        self._lock = os.open(self.file.with_name("lock"), os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            if not isinstance(error, BlockingIOError):
                raise
            found = who(text(self.file))
            if found.get("machine", self.who["machine"]) == self.who["machine"]:
                raise Refused(in_use(self.file.parent, found)) from None
            return False  # a file server keeps for a while the lock of a machine that is dead: its beat tells
        return True

    def _wait_for_death(self, locked: bool) -> None:
        """Returns once whoever left the file is known to be dead; `Refused` if it beats."""
        found, folder, until = text(self.file), self.file.parent, time.monotonic() + SILENT
        if locked and who(found).get("machine") == self.who["machine"]:
            return  # it would have the lock
        log.info(
            "%s was held by %s: waiting %.0f s to see whether it lives",
            folder,
            name(who(found)),
            SILENT,
        )
        while time.monotonic() < until:
            time.sleep(0.2)
            if (now := text(self.file)) != found:
                raise Refused(in_use(folder, who(now)))

    def _write(self) -> None:
        # to the file that was opened: where another has replaced it, nothing of the other's is written over
        os.pwrite(self._open, json.dumps({**self.who, "beats": self._beats}).encode() + b"\n", 0)
        os.fsync(self._open)

    def _live(self) -> None:
        while not self._done.wait(BEAT) and not self.lost:
            self._beats += 1
            with contextlib.suppress(
                OSError
            ):  # a disk that is full or ill, of which a save will tell; or a file that
                self._write()  # another has replaced, which the look tells
            with contextlib.suppress(OSError):
                self.look()


def machine() -> str:
    """What tells this machine, since it was started, from any other."""
    try:  # with what it sees of disks: two containers may mount a folder each for itself, without common locks
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/mnt')}"
    except OSError:
        return socket.gethostname()


def text(file: Path) -> str:
    """What the file holds; "" if there is none."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def who(text: str) -> dict[str, Any]:
    """Who wrote that in `holder`; empty where that cannot be read, as in the midst of a beat."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


def name(told: dict[str, Any]) -> str:
    return (
        f"process {told['process']} on {told['host']}"
        if {"process", "host"} <= set(told)
        else "another process"
    )


def in_use(workdir: Path, told: dict[str, Any]) -> str:
    return f"{workdir} is in use by {name(told)}: stop that run, or give another --workdir."


def try_file_system(workdir: Path) -> None:
    """`Refused` if the folder's file system cannot do what a run needs there: append to a file, write into it, replace
    it by another, and rename a folder that is not empty. Some mounted buckets cannot; leaves nothing behind."""
    trial = Path(tempfile.mkdtemp(dir=workdir, prefix=".trial-"))
    file, other = trial / "folder" / "file", trial / "folder" / "other"

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
                why = "" if attempt() else "it was done wrongly"
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise
                why = error.strerror or str(error)
            if why:
                raise Refused(
                    f"{workdir} is on a file system that cannot {what} ({why}), as checkpoints and metrics need: mount "
                    f"a Cloud Storage bucket by gcsfuse --rename-dir-limit 100000 or give it hierarchical namespace "
                    f"(goofys cannot serve a run), or give a --workdir on another disk."
                )
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def remove_empty(paths: list[Path]) -> None:
    """Removes files, and folders that are empty, innermost first."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def refuse_links(workdir: Path) -> None:
    """`Refused` if something in the folder of a run is a link: what is written there would land elsewhere."""
    for entry in workdir.iterdir():
        if entry.is_symlink():
            raise Refused(
                f"{entry} is a link to {os.readlink(entry)}, and in the folder of a run none is followed: put the "
                f"whole folder there and give it as --workdir."
            )
