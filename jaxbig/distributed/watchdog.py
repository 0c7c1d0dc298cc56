"""A thread that notices a hang: names the process and place, dumps all stacks, ends the run."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxbig.distributed.peer_monitor import (
    WAITS_FOR_OTHERS,
    PeerMonitor,
    PeerStatus,
    current,
    waiting,
)

Heartbeat = Callable[[int, str], None]
"""heartbeat(step, activity): called when an activity starts, and again as it makes progress. An
empty activity suspends the timeout."""
WAITS = "waits for the devices"
COMPILES = "compiles"
PREPARES = "prepares the data"
OPENS = "opens the data"
RESTORES = "restores a checkpoint"
UNLIMITED = ("", COMPILES)
"""Activities without a timeout."""
BY_ACTIVITY = (PREPARES, OPENS, RESTORES)
"""Long calls of other libraries. They make progress while this process computes, reads or writes,
which a process that is blocked in a file system does not."""
ACTIVE = (0.02, 2**16)
"""Seconds of CPU, and bytes, between two checks: more is activity. The watchdog and the heartbeat
threads use less."""
CHECK_S = 0.5
"""Seconds between two checks."""
SILENT_S = 5.0
"""Seconds after which a process that sends no status is the late one."""


@contextlib.contextmanager
def watchdog(limit: float) -> Iterator[Heartbeat]:
    """Starts a watchdog for `limit` seconds (0: never); yields its heartbeat callback."""
    dog = Watchdog(limit, current())
    try:
        yield dog.heartbeat
    finally:
        dog.stop.set()


class Watchdog:
    """Ends the process if no heartbeat arrives for `limit` seconds; 0: never."""

    def __init__(self, limit: float, monitor: PeerMonitor | None = None):
        self.limit = limit
        self.monitor = monitor
        self.stop = threading.Event()
        self.step = 0
        self.activity = ""
        self.beats = 0
        self.used = resources_used()
        if monitor is not None:
            monitor.on_hang = self.end_process
        if limit:
            threading.Thread(target=self.watch, daemon=True, name="watchdog").start()

    def heartbeat(self, step: int, activity: str) -> None:
        """Records progress. Cheap, as it is called several times a step."""
        self.step = step
        self.activity = activity
        self.beats += 1
        if self.monitor is not None:
            self.monitor.doing = (step, activity)

    def watch(self) -> None:
        """Checks every `CHECK_S`; time in which this process was stopped does not count."""
        since = 0.0
        beats = self.beats
        last = time.monotonic()
        while not self.stop.wait(CHECK_S):
            now = time.monotonic()
            since += min(now - last, 4 * CHECK_S)
            last = now
            progress = beats != self.beats or self.activity in UNLIMITED
            if progress or waiting.is_set() or self.active():
                since = 0.0
                beats = self.beats
            if since >= self.limit:
                text = (
                    f"nothing has moved for {since:.0f} s (--guard.stuck-after): {self.describe()}"
                )
                if self.monitor is not None:
                    self.monitor.announce_hang(text)
                return self.end_process(text)

    def active(self) -> bool:
        """Whether a call of another library has made progress since the last check."""
        if self.activity not in BY_ACTIVITY:
            return False
        before = self.used
        self.used = resources_used()
        return any(
            now - old > least for now, old, least in zip(self.used, before, ACTIVE, strict=True)
        )

    def describe(self) -> str:
        """Which processes are late, as far as this one knows, and what each does."""
        if self.monitor is None:
            return f"the run {self.activity} at step {self.step}"
        now = time.monotonic()
        activity = WAITS_FOR_OTHERS if waiting.is_set() else self.activity
        known = {self.monitor.process: PeerStatus(now, self.step, activity)}
        known |= self.monitor.statuses
        late = late_processes(known, now)
        lines = {process: format_status(process, known[process], now) for process in sorted(known)}
        others = [line for process, line in lines.items() if process not in late]
        return (
            f"{'; '.join(lines[process] for process in late)} (late); "
            f"{'; '.join(others[:3]) or 'no other'}"
        )

    def end_process(self, text: str) -> None:
        """Prints the message and the stacks of all threads, and ends the process.

        The coordinator ends last, so that the others can print first.
        """
        print(f"jaxbig: {text}; the stack of each thread:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if self.monitor is not None and self.monitor.process == 0:
            time.sleep(1)
        os._exit(1)


def late_processes(known: dict[int, PeerStatus], now: float) -> list[int]:
    """The processes that are silent; else those that do not wait; else those furthest behind."""
    processes = sorted(known)
    silent = [each for each in processes if now - known[each].received > SILENT_S]
    if silent:
        return silent
    busy = [each for each in processes if known[each].activity not in (WAITS, WAITS_FOR_OTHERS)]
    if busy:
        return busy
    least = min(status.step for status in known.values())
    return [each for each in processes if known[each].step == least]


def format_status(process: int, status: PeerStatus, now: float) -> str:
    """`process 1 evaluates at step 300, silent for 9 s`."""
    text = f"process {process} {status.activity} at step {status.step}"
    silence = now - status.received
    return f"{text}, silent for {silence:.0f} s" if silence > SILENT_S else text


def resources_used() -> tuple[float, int]:
    """Seconds of CPU that this process has used, and bytes that it has read and written.

    The bytes are 0 where the system does not report them.
    """
    moved = 0
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/io").read_text().splitlines()
        counters = dict(line.split(": ") for line in lines)
        moved = int(counters["rchar"]) + int(counters["wchar"])
    return time.process_time(), moved
