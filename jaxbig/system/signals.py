"""The signals that ask a command to stop, and what answers them before there is anything to save."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jaxbig.system.exit_codes import INTERRUPTED

STOP_SIGNALS = signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
"""From a scheduler or `kill`; from a terminal or connection that closes; from Slurm's `--signal=USR1`."""


def exit_on_stop_signals() -> None:
    """From now on each of `STOP` ends the process at once with exit code 75, also while the main thread is inside C++
    code, such as a connection that JAX waits for, where Python's handlers do not run.

    Code that has something to save installs its own handlers (`processes.interruptible`), which replace these.
    """
    for number in stop_signals():
        signal.signal(number, exit_resumable)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="signals").start()


@contextlib.contextmanager
def exit_on_ctrl_c() -> Iterator[None]:
    """While inside, Ctrl-C ends the process as `STOP` does: as a KeyboardInterrupt it would end an import in a long
    traceback, and wait until C++ code returns, such as a connection that JAX waits for."""
    before = signal.getsignal(signal.SIGINT)
    answered = (
        before is signal.default_int_handler
    )  # else it is ignored, or somebody else answers it
    if answered:
        signal.signal(signal.SIGINT, exit_resumable)
    try:
        yield
    finally:
        if answered:
            signal.signal(signal.SIGINT, before)


def stop_signals() -> list[signal.Signals]:
    """Those of `STOP` that this process may answer: one that was ignored when it started stays so, as SIGHUP under
    nohup."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def exit_resumable(number: int, frame: Any = None) -> None:
    """The handler: nothing is lost, so nothing is saved."""
    write_stderr(
        f"jaxbig: {signal.Signals(number).name}: stopped; nothing had to be saved: run the same command to resume\n"
    )
    os._exit(INTERRUPTED)


def write_stderr(text: str) -> None:
    """Writes to standard error. A handler must not print, since it may have interrupted a print; and what it writes to
    may be the terminal that is gone."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _watch(file: int) -> None:
    while numbers := os.read(file, 64):
        for number in numbers:
            if signal.getsignal(number) is exit_resumable:
                exit_resumable(number)
