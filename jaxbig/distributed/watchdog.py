"""Notices that a run is stuck: says which process and where, dumps every thread's stack, and ends the run."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxbig.distributed.peer_monitor import WAITS_FOR_OTHERS, PeerMonitor, current, waiting

Heartbeat = Callable[[int, str], None]
"""at(step, doing): what is being done now, as "evaluates", called again whenever a part of it is done."""
WAITS, COMPILES = "waits for the devices", "compiles"
PREPARES, OPENS, RESTORES = "prepares the data", "opens the data", "restores a checkpoint"
UNLIMITED = "", COMPILES
"""What may take as long as it likes."""
BY_ACTIVITY = PREPARES, OPENS, RESTORES
"""What other libraries do in one long call: it goes on as long as this process computes, reads or writes, which one
that is blocked in a file system does not."""
ACTIVE = 0.02, 2**16
"""Seconds of CPU, bytes: more than this between two looks is activity; this thread and those that beat take less."""
TICK, SILENT = 0.5, 5.0
"""Seconds: between two looks; after which a process that says nothing, not even that it waits, is the late one."""


@contextlib.contextmanager
def watchdog(limit: float) -> Iterator[Heartbeat]:
    """Watches while inside; gives what is to be told whenever something is begun. limit: seconds, `Watchdog`'s."""
    dog = Watchdog(limit, current())
    try:
        yield dog.at
    finally:
        dog.stop.set()


class Watchdog:
    """Ends the process, by `bite`, where nothing was begun for `limit` seconds; 0: never."""

    def __init__(self, limit: float, lifeline: PeerMonitor | None = None):
        self.limit, self.lifeline, self.stop = limit, lifeline, threading.Event()
        self.step, self.doing, self.begun = 0, "", 0
        self.used = activity()
        if lifeline is not None:
            lifeline.stuck = self.bite
        if limit:
            threading.Thread(target=self.watch, daemon=True, name="watchdog").start()

    def at(self, step: int, doing: str) -> None:
        """Something is begun, or a part of it done: a few assignments, since it is called several times a step."""
        self.step, self.doing = step, doing
        self.begun += 1
        if self.lifeline is not None:
            self.lifeline.doing = (step, doing)

    def watch(self) -> None:
        """Looks every `TICK`; time in which this process was stopped itself is not counted."""
        since, begun, last = 0.0, self.begun, time.monotonic()
        while not self.stop.wait(TICK):
            now = time.monotonic()
            since, last = since + min(now - last, 4 * TICK), now
            if begun != self.begun or self.doing in UNLIMITED or waiting.is_set() or self.active():
                since, begun = 0.0, self.begun
            if since >= self.limit:
                text = f"nothing has moved for {since:.0f} s (--guard.stuck-after): {self.place()}"
                if self.lifeline is not None:
                    self.lifeline.say_stuck(text)
                return self.bite(text)

    def active(self) -> bool:
        """Whether a call of another library is seen to go on, since the last look."""
        if self.doing not in BY_ACTIVITY:
            return False
        before, self.used = self.used, activity()
        return any(
            now - old > least for now, old, least in zip(self.used, before, ACTIVE, strict=True)
        )

    def place(self) -> str:
        """Which processes are late, as far as is known here, and what each does."""
        if self.lifeline is None:
            return f"the run {self.doing} at step {self.step}"
        doing = WAITS_FOR_OTHERS if waiting.is_set() else self.doing
        now, known = time.monotonic(), {self.lifeline.process: (0.0, self.step, doing)}
        known |= {
            process: (now - when, step, doing)
            for process, (when, step, doing) in self.lifeline.heard.items()
        }
        silent = [process for process, (ago, _, _) in known.items() if ago > SILENT]
        busy = [
            process
            for process, (_, _, doing) in known.items()
            if doing not in (WAITS, WAITS_FOR_OTHERS)
        ]
        least = min(step for _, step, _ in known.values())
        late = (
            silent or busy or [process for process, (_, step, _) in known.items() if step == least]
        )
        told = [
            f"process {process} {doing} at step {step}"
            + (f", silent for {ago:.0f} s" if ago > SILENT else "")
            for process, (ago, step, doing) in sorted(
                known.items(), key=lambda item: (item[0] not in late, item[0])
            )
        ]
        return f"{'; '.join(told[: len(late)])} (late); {'; '.join(told[len(late) :][:3]) or 'no other'}"

    def bite(self, text: str) -> None:
        """Says it, dumps the stacks of all threads, and ends the process; the coordinator last, for others to speak."""
        print(f"jaxbig: {text}; where each thread stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if self.lifeline is not None and self.lifeline.process == 0:
            time.sleep(1)
        os._exit(1)


def activity() -> tuple[float, int]:
    """Seconds of CPU that this process has used, and bytes that it has read and written, where its system tells."""
    moved = 0
    with contextlib.suppress(OSError):
        told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        moved = int(told["rchar"]) + int(told["wchar"])
    return time.process_time(), moved
