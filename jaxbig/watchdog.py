"""Notices that a run is stuck: says which process and where, dumps every thread's stack, and ends the run."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jaxbig.lifeline import Lifeline, mine

At = Callable[[int, str], None]
"""at(step, doing): what is being done now, as "evaluates"; "" while it may take as long as it likes."""
WAITS = "waits for the devices"
TICK, SILENT = 0.5, 5.0
"""Seconds: between two looks; after which a process that says nothing, not even that it waits, is the late one."""


@contextlib.contextmanager
def watchdog(limit: float) -> Iterator[At]:
    """Watches while inside; gives what is to be told whenever something is begun. limit: seconds, `Watchdog`'s."""
    dog = Watchdog(limit, mine())
    try:
        yield dog.at
    finally:
        dog.stop.set()


class Watchdog:
    """Ends the process, by `bite`, where nothing was begun for `limit` seconds; 0: never."""

    def __init__(self, limit: float, lifeline: Lifeline | None = None):
        self.limit, self.lifeline, self.stop = limit, lifeline, threading.Event()
        self.step, self.doing, self.begun = 0, "", 0
        if lifeline is not None:
            lifeline.stuck = self.bite
        if limit:
            threading.Thread(target=self.watch, daemon=True, name="watchdog").start()

    def at(self, step: int, doing: str) -> None:
        """Something is begun: a few assignments, since it is called several times a step."""
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
            if begun != self.begun or not self.doing:
                since, begun = 0.0, self.begun
            if since >= self.limit:
                text = f"nothing has moved for {since:.0f} s (--guard.stuck-after): {self.place()}"
                if self.lifeline is not None:
                    self.lifeline.say_stuck(text)
                return self.bite(text)

    def place(self) -> str:
        """Which processes are late, as far as is known here, and what each does."""
        if self.lifeline is None:
            return f"the run {self.doing} at step {self.step}"
        now, known = time.monotonic(), {self.lifeline.process: (0.0, self.step, self.doing)}
        known |= {process: (now - when, step, doing) for process, (when, step, doing) in self.lifeline.heard.items()}
        silent = [process for process, (ago, _, _) in known.items() if ago > SILENT]
        busy = [process for process, (_, _, doing) in known.items() if doing != WAITS]
        least = min(step for _, step, _ in known.values())
        late = silent or busy or [process for process, (_, step, _) in known.items() if step == least]
        told = [
            f"process {process} {doing} at step {step}" + (f", silent for {ago:.0f} s" if ago > SILENT else "")
            for process, (ago, step, doing) in sorted(known.items(), key=lambda item: (item[0] not in late, item[0]))
        ]
        return f"{'; '.join(told[: len(late)])} (late); {'; '.join(told[len(late) :][:3]) or 'no other'}"

    def bite(self, text: str) -> None:
        """Says it, dumps the stacks of all threads, and ends the process; the coordinator last, for others to speak."""
        print(f"jaxbig: {text}; where each thread stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if self.lifeline is not None and self.lifeline.process == 0:
            time.sleep(1)
        os._exit(1)
