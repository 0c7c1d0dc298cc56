"""Checks a run and prints the commands of its processes on this machine; `--submit` starts them.

    python -m jaxbig.launch.local pytext_transformer --processes 4 --submit -- --steps 100

Each line of output starts with the number of its process. One Ctrl-C (or SIGTERM) lets all save and
exit (exit code 75); a second ends them at once. If one fails, the others have `GRACE_S` seconds to
exit, and the last output of the failed one is printed at the end.
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
from jaxbig.launch.common import Launcher, at_least, main
from jaxbig.system.child_processes import Process, StopSignals, collect_stop_signals, kill, spawn
from jaxbig.system.exit_codes import DONE, INTERRUPTED, PEER_LOST, STOPPED
from jaxbig.system.local_gpus import gpus

GRACE_S = 10.0
"""Seconds in which the others can exit after one has failed."""
_writing = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local(Launcher):
    """One run as several processes on this machine."""

    processes: int = 0
    """Number of processes; default: one per GPU, or one."""
    devices_per_process: int = 1
    """CPU devices per process, or GPUs if the machine has any."""
    port: int = dataclasses.field(default_factory=lambda: free_port())
    """Port on which process 0 listens; default: a free one."""

    def check(self) -> None:
        super().check()
        at_least("--processes", self.processes, 0)
        at_least("--devices-per-process", self.devices_per_process)
        wanted = self.count * self.devices_per_process
        available = len(gpus())
        if available and wanted > available:
            raise Refused(
                f"--processes {self.count} of {self.devices_per_process} GPUs each are {wanted} "
                f"and {available} are here: ask for fewer, or set JAX_PLATFORMS=cpu."
            )

    @property
    def count(self) -> int:
        """The number of processes."""
        return self.processes or len(gpus()) // self.devices_per_process or 1

    def commands(self) -> list[tuple[dict[str, str], list[str]]]:
        """The added environment and the command of each process."""
        python = [sys.executable, "-m"]
        each = self.devices_per_process
        visible = gpus()
        together = [
            "--coordinator",
            f"127.0.0.1:{self.port}",
            "--processes",
            str(self.count),
            "--process",
        ]
        commands = []
        for number in range(self.count):
            if visible:
                own = ",".join(visible[number * each : (number + 1) * each])
                environment = {"CUDA_VISIBLE_DEVICES": own}
            else:
                environment = {"JAX_NUM_CPU_DEVICES": str(each)}
            command = self.command(*([*together, str(number)] if self.count > 1 else []))
            commands.append((environment, python + command))
        return commands

    def render(self) -> str:
        lines = [
            f"{name}={value} {shlex.join(command)}"
            for environment, command in self.commands()
            for name, value in environment.items()
        ]
        return "\n".join(lines)

    def start(self) -> int:
        with collect_stop_signals() as signals:
            pipes = (subprocess.PIPE, subprocess.PIPE)
            processes = [
                spawn(command, environment, *pipes) for environment, command in self.commands()
            ]
            children = [Child(number, process) for number, process in enumerate(processes)]
            try:
                wait(children, signals)
            finally:
                kill(processes)
        for each in children:
            each.close()
        failed = [each for each in children if each.process.returncode]
        first = min(failed, key=Child.order, default=None)
        if first is None:
            return DONE
        code = first.process.returncode
        if len(signals) > 1:
            print("jaxbig.launch.local: ended at once", file=sys.stderr)
            return STOPPED
        if code != INTERRUPTED and len(children) > 1:
            print(
                f"jaxbig.launch.local: process {first.number} failed first (exit {code}); "
                f"its last output:",
                file=sys.stderr,
            )
            print("".join(first.last_lines), end="", file=sys.stderr, flush=True)
        return code if code > 0 else 128 - code


def free_port() -> int:
    """A port that no process listens on now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


class Child:
    """A process whose output is printed as it arrives; the last lines are kept."""

    def __init__(self, number: int, process: Process):
        self.number = number
        self.process = process
        self.failed_at = 0.0
        self.ended_at = 0.0
        self.last_lines: collections.deque[str] = collections.deque(maxlen=200)
        streams = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        self.readers = [
            threading.Thread(target=self.show, args=pair, daemon=True) for pair in streams
        ]
        for reader in self.readers:
            reader.start()

    def show(self, stream: IO[bytes], shown: IO[str]) -> None:
        """Prints each line after the process's number; the kept lines start with its traceback."""
        for line in stream:
            text = line.decode(errors="replace")
            if shown is sys.stderr:
                if text.startswith("Traceback") and not self.failed_at:
                    self.failed_at = time.monotonic()
                    self.last_lines.clear()
                self.last_lines.append(text)
            with _writing:
                shown.write(f"[{self.number}] {text.rstrip()}\n")
                shown.flush()

    def order(self) -> tuple[bool, float]:
        """Sort key of the first failure; processes that only followed another come last."""
        return self.process.returncode == PEER_LOST, self.failed_at or self.ended_at or math.inf

    def close(self) -> None:
        """Waits for the rest of the output."""
        for reader in self.readers:
            reader.join(timeout=5)


def wait(children: list[Child], signals: StopSignals) -> None:
    """Waits until all have ended; forwards signals, and ends the others after one has failed."""
    processes = [each.process for each in children]
    ends_at = math.inf
    while any(each.process.poll() is None for each in children):
        time.sleep(0.05)
        now = time.monotonic()
        signals.pass_on(processes)
        for each in children:
            if each.process.poll() is not None and not each.ended_at:
                each.ended_at = now
                if each.process.returncode not in (DONE, INTERRUPTED):
                    ends_at = min(ends_at, now + GRACE_S)
        if now > ends_at:
            kill(processes)


if __name__ == "__main__":
    sys.exit(main(Local, "jaxbig.launch.local"))
