"""Worker processes that read parts of batches into memory which they share with the run.

A worker is a fresh Python (a fork would copy the locks of JAX's threads) whose JAX sees the CPU alone. It gets the
source over a socket of its own, so that one that is killed blocks no other, and its end is noticed as the end of its
socket when the run next asks for a batch, however many are ahead: what it is in then, a step, an evaluation or a save,
is finished first. A worker ends itself when the run's end of the socket does, however that ended. The memory has no
name, so nothing is left of it. Signals are for the run to answer: workers ignore Ctrl-C and `signals.STOP`.
"""

import collections
import itertools
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Rows, Source
from jaxbig.data.pipeline.prefetch import Read, Readers, attempt, in_order, settled
from jaxbig.data.pipeline.worker_imports import loaded, look_there
from jaxbig.errors import Failed, Refused
from jaxbig.system.signals import STOP_SIGNALS

PROGRAM = "import sys; from jaxbig.data.pipeline.worker_processes import work; work(int(sys.argv[1]), int(sys.argv[2]))"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}
"""glibc keeps what is freed for the next image, instead of having it zeroed and mapped page by page each time."""
Task = tuple[int, int]
"""A step, and a part of its batch."""
Field = tuple[str, tuple[int, ...], np.dtype]
"""Name, shape and dtype of an array of a batch."""


def by_workers(
    read: Read, source: Source, steps: range, places: np.ndarray, readers: Readers
) -> Generator[Rows]:
    """The rows `places` of the batches of those steps, in order (feeding.py)."""
    workers = Workers(source)
    try:
        workers.start(read, readers)
        first = settled(source, [attempt(read, source, steps[0], places)])  # while they start
        ahead, parts = readers.plan(first)
        workers.share(first, ahead, np.array_split(places, parts))
        yield from in_order(first, steps, ahead, workers.submit, workers.collect)
    finally:
        workers.close()


class Shared:
    """Arrays in memory that processes share: `slots` batches of those fields, the batch of a step in slot
    `step % slots`; and `at` [slots, parts], which record each part is at, -1 before its first."""

    def __init__(self, file: int, fields: list[Field], slots: int, parts: int):
        self.slots = slots
        fields = [*fields, ("", (parts,), np.dtype(np.int64))]
        sizes = [
            -(-slots * math.prod(shape) * kind.itemsize // 64) * 64 for _, shape, kind in fields
        ]
        os.ftruncate(file, sum(sizes))
        memory, starts = mmap.mmap(file, 0), itertools.accumulate([0, *sizes])
        self.arrays = {
            name: np.ndarray((slots, *shape), kind, memory, start)
            for (name, shape, kind), start in zip(fields, starts, strict=False)
        }
        self.at = self.arrays.pop("")

    def batch(self, step: int) -> Rows:
        """The batch of a step, where it is or comes."""
        return {name: array[step % self.slots] for name, array in self.arrays.items()}


class Workers:
    """The run's side: processes, what they were asked for and what they answered."""

    def __init__(self, source: Source):
        self.source, self.file = source, unnamed()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sockets: list[Connection] = []
        self.asked: dict[Task, int] = {}  # the worker of each
        self.answers: dict[
            Task, tuple[list[Any], tuple[str, str] | None]
        ] = {}  # bad records; an error

    def start(self, read: Read, readers: Readers) -> None:
        """Starts them, and tells them what to read; they can be told so once."""
        environment = {
            **os.environ,
            **ALLOCATOR,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        for _ in range(readers.workers):
            here, there = Pipe()
            self.sockets.append(here)
            files = (there.fileno(), self.file)
            # -P: a file beside the run is no module. What is printed is no result.
            command = [sys.executable, "-P", "-X", "faulthandler", "-c", PROGRAM, *map(str, files)]
            masked = signal.pthread_sigmask(
                signal.SIG_BLOCK, {signal.SIGINT, *STOP_SIGNALS}
            )  # inherited
            try:
                self.processes.append(
                    subprocess.Popen(
                        command, pass_fds=files, stdin=subprocess.DEVNULL, stdout=2, env=environment
                    )
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            there.close()
        for number in range(readers.workers):
            self.send(number, loaded())
            self.send(number, (read, self.source, max(1, readers.threads)))

    def share(self, like: Rows, slots: int, pieces: list[np.ndarray]) -> None:
        """Makes room for `slots` batches like that one, each read in parts: the rows of `pieces`."""
        fields = [(name, rows.shape, rows.dtype) for name, rows in like.items()]
        self.memory, self.parts = Shared(self.file, fields, slots, len(pieces)), range(len(pieces))
        for number in range(len(self.sockets)):
            self.send(number, (fields, slots, pieces))

    def submit(self, step: int) -> None:
        """Asks for a batch, each part of it from a worker that has least to do."""
        for part in self.parts:
            busy = collections.Counter(self.asked.values())
            number = self.asked[step, part] = min(range(len(self.sockets)), key=busy.__getitem__)
            self.memory.at[step % self.memory.slots, part] = -1
            self.send(number, (step, part))

    def collect(self, step: int) -> Rows:
        """Waits for a batch that was asked for; its slot is free then."""
        tasks = [(step, part) for part in self.parts]
        self.drain()
        while not self.answers.keys() >= set(tasks):
            self.receive(None)
        answers = [self.answers.pop(task) for task in tasks]
        for error in (error for _, error in answers if error):
            raise raised(error, f"the batch of step {step + 1} cannot be read: ")
        rows = {name: rows.copy() for name, rows in self.memory.batch(step).items()}
        return settled(self.source, [(rows, [bad for found, _ in answers for bad in found])])

    def send(self, number: int, message: Any) -> None:
        try:
            self.sockets[number].send(message)
        except OSError:
            self.drain()  # what it told before it ended
            raise self.dead(number) from None
        except Exception as error:  # pickle has many
            raise Refused(
                f"the data set cannot be given to worker processes: {type(error).__name__}: {error}; with --workers 0 "
                f"threads of this process read it."
            ) from error

    def receive(self, seconds: float | None) -> bool:
        """Takes an answer from each worker that has one; waits so long for a first. Whether there was one."""
        for socket in (ready := wait(self.sockets, seconds)):
            number = self.sockets.index(socket)  # type: ignore[arg-type]
            try:
                task, bad, error = self.sockets[number].recv()
            except (EOFError, OSError):
                raise self.dead(number) from None
            if task is None:
                raise raised(error, "a worker process cannot begin: ")
            del self.asked[task]
            self.answers[task] = bad, error
        return bool(ready)

    def drain(self) -> None:
        """Takes all answers that are there: a worker's end stands behind them."""
        while self.receive(0):
            pass

    def dead(self, number: int) -> Failed:
        """What to say of a worker that is no more."""
        process = self.processes[number]
        try:
            code = process.wait(10)
            how = (
                f"was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"ended with exit code {code}"
            )
        except subprocess.TimeoutExpired:
            how = "closed its connection and has not ended yet"
        mine = sorted(task for task, worker in self.asked.items() if worker == number)
        records = [int(self.memory.at[step % self.memory.slots, part]) for step, part in mine]
        names = [
            self.source.where(record)  # type: ignore[attr-defined]
            for record in records
            if record >= 0 and hasattr(self.source, "where")
        ]
        what = f" while it read the batch of step {mine[0][0] + 1}" if mine else ""
        what += f", at or after {' or '.join(names)}" if names else ""
        return Failed(
            f"worker process {process.pid} {how}{what}: the machine may lack memory (fewer --workers need less), or a "
            f"record crashes what reads it."
        )

    def close(self) -> None:
        """Ends them; nothing of them is left."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        for socket in self.sockets:
            socket.close()
        os.close(self.file)
        vars(self).pop("memory", None)  # now, and not when the last traceback is forgotten


def work(channel: int, file: int) -> None:
    """What a worker process does: reads what it is asked for, until the run's end of the socket is closed."""
    socket, lock = Connection(channel), threading.Lock()

    def answer(*message: Any) -> None:
        with lock:
            socket.send(message)

    try:
        try:
            look_there(socket.recv())
            read, source, threads = socket.recv()
        except Exception as error:
            if isinstance(error, EOFError):
                raise
            return answer(None, [], told(error))
        fields, slots, pieces = socket.recv()
        memory, pool = Shared(file, fields, slots, len(pieces)), ThreadPoolExecutor(threads)
        starts = np.cumsum([0, *map(len, pieces)])

        def serve(step: int, part: int) -> None:
            def begin(record: int) -> None:
                memory.at[step % slots, part] = record

            try:
                rows, bad = attempt(read, source, step, pieces[part], begin)
                fill(
                    {
                        name: each[starts[part] : starts[part + 1]]
                        for name, each in memory.batch(step).items()
                    },
                    rows,
                )
                answer((step, part), bad, None)
            except BaseException as error:
                answer((step, part), [], told(error))

        while True:
            pool.submit(serve, *socket.recv())
    except (EOFError, OSError):
        os._exit(0)  # the run is over, whatever its threads read


def fill(room: Rows, rows: Rows) -> None:
    """Copies rows to where they are expected."""
    for name, array in room.items():
        if (array.shape, array.dtype) != (rows[name].shape, rows[name].dtype):
            raise Failed(
                f"{name} is {rows[name].dtype} {list(rows[name].shape)}, and was {array.dtype} {list(array.shape)} in "
                f"the first batch."
            )
        array[...] = rows[name]


def told(error: BaseException) -> tuple[str, str]:
    """An error as two texts, for the run to raise."""
    if isinstance(error, Refused | Failed):
        return type(error).__name__, str(error)
    return "", f"{type(error).__name__}: {error}"


def raised(error: tuple[str, str], before: str) -> Exception:
    """What to raise of what a worker told."""
    kind, text = error
    return Refused(text) if kind == "Refused" else Failed(text if kind else before + text)


def unnamed() -> int:
    """A file in memory, or else on the disk, that is gone when the last process that has it open is."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("jaxbig")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
