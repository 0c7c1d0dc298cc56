"""Processes that are started, told and ended together, and leave nothing behind."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxbig.system.signals import stop_signals

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
Process = subprocess.Popen[bytes]


def spawn(command: Sequence[str], environment: dict[str, str], stdout: Any, stderr: Any) -> Process:
    """Starts a command in a group of its own, which the terminal's Ctrl-C does not reach; it dies with this process.

    Must be called before this process has threads but that of signals.py, which holds no lock: they and what runs
    between fork and exec do not go together.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,
        stdout=stdout,
        stderr=stderr,
    )


def _die_with_parent() -> None:
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def terminate(processes: Iterable[Process]) -> None:
    """Asks those that live to save and leave."""
    for process in processes:
        if process.poll() is None:
            process.terminate()


def kill(processes: Iterable[Process]) -> None:
    """Ends them at once, and what they have started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Gives a list, to which Ctrl-C and the signals of `signals.STOP` add in place of what they do."""
    asked: list[int] = []
    numbers = signal.SIGINT, *stop_signals()
    before = {each: signal.signal(each, lambda number, _: asked.append(number)) for each in numbers}
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def gpus() -> list[str]:
    """The GPUs here that JAX may use, by number; none where JAX_PLATFORMS leaves them out."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("", "cuda", "gpu", "rocm"):
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each for each in visible.split(",") if each not in ("", "-1")]
    found = [
        match[1]
        for file in Path("/dev").glob("nvidia*")
        if (match := re.fullmatch(r"nvidia(\d+)", file.name))
    ]
    return sorted(found, key=int)
