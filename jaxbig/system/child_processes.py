"""Child processes that end with this one: a stop signal asks them to save, a second kills them."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxbig.system.signals import handled, stop_signals

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
Process = subprocess.Popen[bytes]


def spawn(command: Sequence[str], environment: dict[str, str], stdout: Any, stderr: Any) -> Process:
    """Starts a command in its own process group; it is killed when this process dies.

    The terminal's Ctrl-C does not reach it. Call this before this process has threads (but that of
    signals.py, which takes no lock): they are unsafe with code between fork and exec.

    Args:
      command: the program and its arguments.
      environment: variables added to this process's.
      stdout: as of `subprocess.Popen`.
      stderr: likewise.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=functools.partial(_die_with, os.getpid()),
        stdout=stdout,
        stderr=stderr,
    )


def _die_with(parent: int) -> None:
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before this was asked for
            os.kill(os.getpid(), signal.SIGKILL)


def terminate(processes: Iterable[Process]) -> None:
    """Sends SIGTERM to the running processes: save and exit."""
    for process in processes:
        if process.poll() is None:
            process.terminate()


def kill(processes: Iterable[Process]) -> None:
    """Kills the processes and their children."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class StopSignals(list[int]):
    """The signals that were received, and how many of them were passed on."""

    passed_on = 0

    def pass_on(self, processes: Iterable[Process]) -> None:
        """Asks processes to save and exit at the first signal, and kills them at the second."""
        if len(self) > self.passed_on:
            self.passed_on = len(self)
            stop = terminate if self.passed_on == 1 else kill
            stop(processes)


@contextlib.contextmanager
def collect_stop_signals() -> Iterator[StopSignals]:
    """Yields a list of received signals: Ctrl-C and `signals.STOP_SIGNALS` only append to it."""
    received = StopSignals()
    with handled((signal.SIGINT, *stop_signals()), lambda number, _: received.append(number)):
        yield received
