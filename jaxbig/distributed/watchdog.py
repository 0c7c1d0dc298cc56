"""A thread that notices a hang: names the process and place, dumps all stacks, ends the run.

What has no end of its own has a fixed limit. What a run does again and again has a lower one too, a
multiple of the longest that it took in this run before.
"""

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
STARTS = "starts a step"
WAITS = "waits for the devices"
COMPILES = "compiles"
PREPARES = "prepares the data"
OPENS = "opens the data"
RESTORES = "restores a checkpoint"
EVALUATORS = "runs an evaluator"
CALLS = "calls a callback"
BY_ACTIVITY = (COMPILES, PREPARES, OPENS, RESTORES, EVALUATORS)
"""Long calls of other libraries. They make progress while this process computes, reads or writes,
which a process that is blocked in a file system does not."""
LEARNED = (
    STARTS,
    WAITS,
    "reads the next batch",
    "evaluates",
    "saves",
    "waits for its save of step ",
)
"""Activities that take about as long each time. Compiling, and a user's own code, do not."""
HANG_S = 120.0
"""Seconds below which no learned limit is: file servers that fail over, and stores that are asked
again, take less (NFS 4 gives its clients 90 s to return)."""
LATE = 3.0
"""How many times slower than the slowest before an activity is when it is named."""
LATE_S = 5.0
"""Seconds below which nothing is named."""
ACTIVE = (0.02, 2**16)
"""Seconds of CPU, and bytes, between two checks: more is activity. The watchdog and the heartbeat
threads use less."""
CHECK_S = 0.5
"""Seconds between two checks."""
SILENT_S = 5.0
"""Seconds after which a process that sends no status is the late one."""


@contextlib.contextmanager
def watchdog(limit: float, factor: float = 0.0) -> Iterator[Heartbeat]:
    """Starts a watchdog (`Watchdog` has the arguments); yields its heartbeat callback."""
    dog = Watchdog(limit, current(), factor)
    try:
        yield dog.heartbeat
    finally:
        dog.stop.set()


class Watchdog:
    """Ends the process if no heartbeat arrives for too long.

    An activity lasts from its heartbeat to the next one. One of `LEARNED` is named once it has
    taken `LATE` times as long as the slowest of its kind before, and ends the process at `factor`
    times. A kind is known when another has followed it: the first evaluation, with all its batches
    and its end, has the fixed limit alone.

    Of several processes the first applies what it has learned, as its steps wait for all others;
    and not while one of them does what has no known time, such as a callback.
    """

    def __init__(self, limit: float, monitor: PeerMonitor | None = None, factor: float = 0.0):
        """
        Args:
          limit: seconds that anything may take; 0: no limit at all.
          monitor: connections to the other processes, if there are any.
          factor: how many times slower than the slowest before is a hang; 0: learns nothing.
        """
        self.limit = limit
        self.monitor = monitor
        self.factor = factor
        self.stop = threading.Event()
        self.step = 0
        self.activity = ""
        self.kind = ""
        """The activity without a number at its end."""
        self.clock = 0.0
        """Seconds in which this process was not stopped, as of the last check."""
        self.began = 0.0
        """When the last heartbeat came, or when there was progress without one."""
        self.named = -1.0
        """`began` of what was named last."""
        self.slowest: dict[str, float] = {}
        """Seconds of the slowest of each kind, rounded up by a check or two."""
        self.known: set[str] = set()
        """The kinds that another one has followed."""
        self.used = resources_used()
        if monitor is not None:
            monitor.on_hang = self.end_process
        if limit:
            threading.Thread(target=self.watch, daemon=True, name="watchdog").start()

    def heartbeat(self, step: int, activity: str) -> None:
        """Records progress. Cheap, as it is called several times a step."""
        took = self.clock - self.began + 2 * CHECK_S
        if took > self.slowest.get(self.kind, 0.0):
            self.slowest[self.kind] = took
        kind = activity.rstrip("0123456789")
        if kind != self.kind:
            self.known.add(self.kind)
            self.kind = kind
        self.step = step
        self.activity = activity
        self.began = self.clock + CHECK_S  # at most so late
        if self.monitor is not None:
            self.monitor.doing = (step, activity)

    def watch(self) -> None:
        """Checks every `CHECK_S`; time in which this process was stopped does not count."""
        last = time.monotonic()
        while not self.stop.wait(CHECK_S):
            now = time.monotonic()
            text = self.check(min(now - last, 4 * CHECK_S))
            last = now
            if text:
                if self.monitor is not None:
                    self.monitor.announce_hang(text)
                return self.end_process(text)

    def check(self, passed: float) -> str:
        """Names what is late; the message of a hang, "" if there is none.

        Args:
          passed: seconds since the last check.
        """
        self.clock += passed
        if not self.activity or waiting.is_set() or self.active():
            self.began = self.clock
        still = self.clock - self.began
        if still >= self.limit:
            return f"nothing has moved for {still:.0f} s (--guard.stuck-after): {self.describe()}"
        if not self.knows():
            return ""
        usual = self.slowest[self.kind]
        limit = min(self.limit, max(HANG_S, self.factor * usual))
        before = f"nothing has moved for {still:.0f} s, and the slowest before took {usual:.1f} s"
        if still >= limit:
            return f"{before} (--guard.stuck-factor): {self.describe()}"
        if still >= max(LATE_S, LATE * usual) and self.named != self.began:
            self.named = self.began
            ends = f"the run ends after {limit:.0f} s"
            print(f"jaxbig: {before}: {self.describe()}; {ends}", file=sys.stderr, flush=True)
        return ""

    def knows(self) -> bool:
        """Whether what is done now takes about as long as it did before."""
        if not self.factor or self.kind not in LEARNED or self.kind not in self.known:
            return False
        if self.monitor is None:
            return True
        now = time.monotonic()
        return self.monitor.process == 0 and not any(
            now - status.received < SILENT_S
            and status.activity.rstrip("0123456789") not in (*LEARNED, WAITS_FOR_OTHERS)
            for status in list(self.monitor.statuses.values())
        )

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
