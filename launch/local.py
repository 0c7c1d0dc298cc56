"""Several processes on this machine that make one run: on CPU devices, or one a GPU.

    python -m launch.local pytext_transformer --processes 4 --submit -- --steps 100

Each line is shown behind the number of the process that wrote it. One Ctrl-C (or SIGTERM) lets them save and leave
(exit 75), a second ends them at once. If one fails, the others have `GRACE` seconds to leave, and its last words are
the last that you see.
"""

import collections
import dataclasses
import math
import shlex
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from jaxbig.errors import Refused
from jaxbig.system.exit_codes import DONE, INTERRUPTED, PEER_LOST, STOPPED
from jaxbig.system.process_group import Process, collect_stop_signals, gpus, kill, spawn, terminate
from launch.common import Launcher, at_least, main

GRACE = 10.0
_writing = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Launcher):
    """Processes on this machine that make one run."""

    processes: int = 0
    """How many; if it is not given, one a GPU, or one where there are none."""
    devices_per_process: int = 1
    """CPU devices of each, or GPUs where there are such."""
    port: int = dataclasses.field(default_factory=lambda: free_port())
    """Where process 0 listens; one that is free now if it is not given."""

    def check(self) -> None:
        super().check()
        at_least("--processes", self.processes, 0)
        at_least("--devices-per-process", self.devices_per_process)
        wanted, found = self.count * self.devices_per_process, len(gpus())
        if found and wanted > found:
            raise Refused(
                f"--processes {self.count} of {self.devices_per_process} GPUs each are {wanted} and {found} are here: "
                f"ask for fewer, or set JAX_PLATFORMS=cpu."
            )

    @property
    def count(self) -> int:
        return self.processes or len(gpus()) // self.devices_per_process or 1

    def commands(self) -> list[tuple[dict[str, str], list[str]]]:
        """What is set in the environment of each process, and its command."""
        here, each, visible = [sys.executable, "-m"], self.devices_per_process, gpus()
        together = [
            "--coordinator",
            f"127.0.0.1:{self.port}",
            "--processes",
            str(self.count),
            "--process",
        ]
        made = []
        for number in range(self.count):
            mine = {"CUDA_VISIBLE_DEVICES": ",".join(visible[number * each : (number + 1) * each])}
            command = self.command(*([*together, str(number)] if self.count > 1 else []))
            made.append((mine if visible else {"JAX_NUM_CPU_DEVICES": str(each)}, here + command))
        return made

    def render(self) -> str:
        lines = [
            f"{name}={value} {shlex.join(c)}"
            for environment, c in self.commands()
            for name, value in environment.items()
        ]
        return "\n".join(lines)

    def start(self) -> int:
        with collect_stop_signals() as asked:
            pipes = subprocess.PIPE, subprocess.PIPE
            processes = [
                spawn(command, environment, *pipes) for environment, command in self.commands()
            ]
            watched = [Watched(number, process) for number, process in enumerate(processes)]
            try:
                wait(watched, asked)
            finally:
                kill(processes)
        for each in watched:
            each.close()
        failed = [each for each in watched if each.process.returncode]
        first = min(failed, key=Watched.order, default=None)
        if first is None:
            return DONE
        code = first.process.returncode
        if len(asked) > 1:
            print("launch.local: ended at once", file=sys.stderr)
            return STOPPED
        if code != INTERRUPTED and len(watched) > 1:
            print(
                f"launch.local: process {first.number} failed first (exit {code}); its last words:",
                file=sys.stderr,
            )
            print("".join(first.last_words), end="", file=sys.stderr, flush=True)
        return code if code > 0 else 128 - code


def free_port() -> int:
    """One where nothing listens now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


class Watched:
    """A process whose lines are shown as they come, and the last of them kept."""

    def __init__(self, number: int, process: Process):
        self.number, self.process = number, process
        self.failed_at, self.ended_at = 0.0, 0.0
        self.last_words: collections.deque[str] = collections.deque(maxlen=200)
        streams = (process.stdout, sys.stdout), (process.stderr, sys.stderr)
        self.readers = [
            threading.Thread(target=self.show, args=pair, daemon=True) for pair in streams
        ]
        for reader in self.readers:
            reader.start()

    def show(self, stream: IO[bytes], shown: IO[str]) -> None:
        """Passes on each line behind the process's number. Its words in a failure begin with its first traceback."""
        for line in stream:
            text = line.decode(errors="replace")
            if shown is sys.stderr:
                if text.startswith("Traceback") and not self.failed_at:
                    self.failed_at = time.monotonic()
                    self.last_words.clear()
                self.last_words.append(text)
            with _writing:
                shown.write(f"[{self.number}] {text.rstrip()}\n")
                shown.flush()

    def order(self) -> tuple[bool, float]:
        """By which the first failure is found: those that only followed another come last."""
        return self.process.returncode == PEER_LOST, self.failed_at or self.ended_at or math.inf

    def close(self) -> None:
        for reader in self.readers:
            reader.join(timeout=5)


def wait(watched: list[Watched], asked: list[int]) -> None:
    """Until all have ended; passes on what is asked, and ends those that stay after one has failed."""
    told, ends_at = 0, math.inf
    while any(each.process.poll() is None for each in watched):
        time.sleep(0.05)
        now, processes = time.monotonic(), [each.process for each in watched]
        if len(asked) > told:
            told = len(asked)
            (terminate if told == 1 else kill)(processes)
        for each in watched:
            if each.process.poll() is not None and not each.ended_at:
                each.ended_at = now
                if each.process.returncode not in (DONE, INTERRUPTED):
                    ends_at = min(ends_at, now + GRACE)
        if now > ends_at:
            kill(processes)


if __name__ == "__main__":
    sys.exit(main(Local, "launch.local"))
