"""Signals that ask a run to stop (Ctrl-C, SIGTERM), and what happens before it has started."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxbig.system.exit_codes import INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""From a scheduler or `kill`; from a closed terminal; from Slurm's `--signal=USR1`."""


def exit_on_stop_signals() -> None:
    """Makes each of `STOP_SIGNALS` end the process at once with exit code 75.

    It works while the main thread is inside C++ code too, such as a connection that JAX waits for,
    where Python's handlers do not run. Code that has something to save replaces these handlers
    (`multihost.interruptible`).
    """
    for number in stop_signals():
        signal.signal(number, exit_resumable)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True, name="signals").start()


@contextlib.contextmanager
def exit_on_ctrl_c() -> Iterator[None]:
    """While inside, Ctrl-C ends the process like one of `STOP_SIGNALS`.

    A KeyboardInterrupt would end an import in a long traceback, and wait for C++ code to return.
    """
    # else it is ignored, or handled by other code
    replaced = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with handled([signal.SIGINT] if replaced else [], exit_resumable):
        yield


@contextlib.contextmanager
def handled(numbers: Sequence[int], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """A context in which a function handles these signals; the handlers before it come back.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_signals() -> list[signal.Signals]:
    """`STOP_SIGNALS` without those ignored at the start, as SIGHUP is under nohup."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def exit_resumable(number: int, frame: Any = None) -> None:
    """Signal handler: exits at once, as there is nothing to save."""
    write_stderr(
        f"jaxbig: {signal.Signals(number).name}: stopped; nothing had to be saved: run the same "
        f"command to resume\n"
    )
    os._exit(INTERRUPTED)


def write_stderr(text: str) -> None:
    """Writes to standard error from a signal handler; does nothing if the terminal is gone.

    A handler must not print, as it may have interrupted a print.
    """
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _watch(file: int) -> None:
    while numbers := os.read(file, 64):
        for number in numbers:
            if signal.getsignal(number) is exit_resumable:
                exit_resumable(number)
