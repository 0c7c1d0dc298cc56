"""The lock on a run's folder: one live run at a time, on any machine.

On one machine `flock` suffices: the kernel releases it when the process exits. Another machine may
not see that lock, so the owner also writes a heartbeat, a counter in the file `owner`. An owner
whose counter stands still for `SILENT_S` seconds, by the clock of the process that waits for it, is
taken for dead. An owner that was only asleep finds another owner in the file when it wakes, and
exits without saving.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxbig.distributed.multihost import on_process_zero
from jaxbig.errors import Failed, Refused
from jaxbig.system.run_folder import refuse_links, remove_empty, try_file_system

log = logging.getLogger("jaxbig")
HEARTBEAT_S = 2.0
"""Seconds between two heartbeats."""
SILENT_S = 15.0
"""Seconds without a heartbeat after which an owner is dead. A file server may show a heartbeat
late; where it shows one later than this, as some mounted buckets do, nothing locks a folder between
machines."""
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a file system without `flock`."""


@contextlib.contextmanager
def lock_run_directory(workdir: Path) -> Iterator[Callable[[], None]]:
    """Locks the folder of a run while inside; process 0 owns the lock for all processes.

    Yields:
      A function to call at each step; it raises `Failed` once the lock is lost.

    Raises:
      Refused: another live run owns the folder, or it cannot be written.
    """
    locks: list[RunLock] = []
    on_process_zero(lambda: locks.append(RunLock(workdir)))
    try:
        yield locks[0].check if locks else lambda: None
    except Refused:
        for lock in locks:
            lock.release()
            remove_empty(lock.new)
        raise
    finally:
        for lock in locks:
            lock.release()


def check_free(workdir: Path) -> None:
    """Raises `Refused` if a run could not lock its folder now; writes nothing.

    A run of another machine is not noticed, nor a file system that lacks an operation.
    """
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Refused(f"cannot write in {there}: give another --workdir.")
    if there != workdir:
        return
    refuse_links(workdir)
    if not (workdir / "lock").exists():
        return
    with (workdir / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when it is closed
        except BlockingIOError:
            raise Refused(in_use(workdir, parse_owner(read(workdir / "owner")))) from None
        except OSError:  # a file system without locks
            return


class RunLock:
    """The lock on a folder, until it is released or lost; `lost` says how, once it is."""

    def __init__(self, workdir: Path):
        self.file = workdir / "owner"
        self.lost = ""
        self.owner: dict[str, Any] = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "machine": machine(),
            "token": secrets.token_hex(8),
        }
        paths = (workdir / "lock", workdir / "checkpoints", workdir, *workdir.parents)
        self.new = [path for path in paths if not os.path.lexists(path)]
        """Paths that did not exist before; a run that is refused removes them again."""
        self._done = threading.Event()
        self._beats = 0
        self._owner_fd = -1
        self._lock_fd = -1
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
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run lock")
        self._thread.start()

    def check(self) -> None:
        """Raises `Failed` if another run has taken the folder, or it no longer exists."""
        if time.monotonic() - self._looked > 2 * HEARTBEAT_S:  # the thread has slept too
            with contextlib.suppress(OSError):
                self.look()
        if self.lost:
            raise Failed(self.lost)

    def look(self) -> None:
        """Reads the folder's owner and sets `lost` if it is no longer this run."""
        folder = self.file.parent
        content = read(self.file)
        if not folder.is_dir():
            self.lost = (
                f"{folder} is gone: the folder or its disk was removed, so nothing more can be "
                f"saved there."
            )
        elif self.owner["token"] not in content:
            self.lost = (
                f"{folder} was taken from this run ({format_owner(self.owner)}) by "
                f"{format_owner(parse_owner(content))}, because its lock was removed or it wrote "
                f"no heartbeat for {SILENT_S:.0f} s: this run exits without saving, and its new "
                f"owner makes the steps again."
            )
        self._looked = time.monotonic()

    def release(self) -> None:
        """Releases the lock, if it still belongs to this run."""
        self._done.set()
        self._thread.join()  # so that it does not write to a closed file
        with contextlib.suppress(OSError):
            self.look()
            if not self.lost:
                self.file.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        for descriptor in (self._owner_fd, self._lock_fd):
            if descriptor >= 0:
                os.close(descriptor)  # releases the flock
        self._owner_fd = -1
        self._lock_fd = -1

    def _take(self) -> None:
        locked = self._flock()
        while True:
            try:
                self._owner_fd = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
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

    def _flock(self) -> bool:
        """Tries to get the flock; whether this process has it.

        Raises:
          Refused: a live process of this machine has it.
        """
        self._lock_fd = os.open(self.file.with_name("lock"), os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            if not isinstance(error, BlockingIOError):
                raise
            owner = parse_owner(read(self.file))
            if owner.get("machine", self.owner["machine"]) == self.owner["machine"]:
                raise Refused(in_use(self.file.parent, owner)) from None
            # a file server keeps the flock of a dead machine for a while: its heartbeat decides
            return False
        return True

    def _wait_for_death(self, locked: bool) -> None:
        """Returns once the owner in the file is known to be dead.

        Raises:
          Refused: it writes a heartbeat.
        """
        content = read(self.file)
        owner = parse_owner(content)
        folder = self.file.parent
        if locked and owner.get("machine") == self.owner["machine"]:
            return  # if it lived, it would have the flock
        until = time.monotonic() + SILENT_S
        log.info(
            "%s is locked by %s: waiting %.0f s for a heartbeat",
            folder,
            format_owner(owner),
            SILENT_S,
        )
        while time.monotonic() < until:
            time.sleep(0.2)
            if (now := read(self.file)) != content:
                raise Refused(in_use(folder, parse_owner(now)))

    def _write(self) -> None:
        # to the open file: if another process has replaced it, the new one is not overwritten
        content = json.dumps({**self.owner, "beats": self._beats}).encode() + b"\n"
        os.pwrite(self._owner_fd, content, 0)
        os.fsync(self._owner_fd)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_S) and not self.lost:
            self._beats += 1
            # a full or failing disk, which the next save reports; or a file that another process
            # has replaced, which `look` finds
            with contextlib.suppress(OSError):
                self._write()
            with contextlib.suppress(OSError):
                self.look()


def machine() -> str:
    """An ID of this machine, this boot, and this container's view of its disks."""
    # two containers may each mount a folder on their own, without common locks
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/mnt')}"
    except OSError:
        return socket.gethostname()


def read(file: Path) -> str:
    """The content of a file; "" if it does not exist."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def parse_owner(text: str) -> dict[str, Any]:
    """The owner written in the file `owner`; empty if it cannot be parsed, as during a write."""
    with contextlib.suppress(ValueError):
        owner = json.loads(text)
        return owner if isinstance(owner, dict) else {}
    return {}


def format_owner(owner: dict[str, Any]) -> str:
    """`process 7 on host1`."""
    if {"process", "host"} <= set(owner):
        return f"process {owner['process']} on {owner['host']}"
    return "another process"


def in_use(workdir: Path, owner: dict[str, Any]) -> str:
    """The message for a folder that a live run owns."""
    return (
        f"{workdir} is in use by {format_owner(owner)}: stop that run, or give another --workdir."
    )
