"""Worker processes that read parts of batches into memory shared with the run.

A worker is a fresh Python process (a fork would copy the locks of JAX's threads) whose JAX sees
only the CPU. Each worker has a socket of its own, so one that is killed blocks no other. The run
notices a worker's end when it next asks for a batch, however many are ahead; the step, evaluation
or save it is in is finished first. A worker exits when the run's end of the socket is closed,
however the run ended. The shared memory has no name, so nothing of it is left. Signals are for the
run to handle: workers ignore Ctrl-C and `signals.STOP_SIGNALS`.
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
from jaxbig.data.pipeline.batch_parts import PartReader, ReadAhead, Sampler, in_order
from jaxbig.data.pipeline.worker_imports import install_import_hook, loaded_modules
from jaxbig.errors import Failed, Refused
from jaxbig.system.signals import STOP_SIGNALS

PROGRAM = (
    "import sys; from jaxbig.data.pipeline.worker_processes import work; "
    "work(int(sys.argv[1]), int(sys.argv[2]))"
)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}
"""glibc keeps freed memory for the next image, instead of zeroing and mapping it each time."""
EXIT_TIMEOUT_S = 10
"""How long a worker that closed its socket may take to exit, in seconds."""
Task = tuple[int, int]
"""A step, and a part of its batch."""
Field = tuple[str, tuple[int, ...], np.dtype]
"""Name, shape and dtype of an array of a batch."""
ErrorTexts = tuple[str, str]
"""The type of an error, "" for a foreign one, and its message."""
Answer = tuple[list[Any], ErrorTexts | None]
"""The bad records of a part, and the error that ended its reading."""


def read_with_workers(
    reader: PartReader, sampler: Sampler, steps: range, *, limits: ReadAhead
) -> Generator[Rows]:
    """Yields the batches of those steps in order; closing the generator ends the workers."""
    workers = Workers(reader)
    try:
        workers.start(limits)
        first = reader.read_batch(sampler(steps[0]))  # while the workers start
        ahead, parts = limits.plan(first)
        workers.share_memory(first, slots=ahead, parts=parts)

        def submit(step: int) -> None:
            workers.submit(step, sampler(step))

        yield from in_order(first, steps, ahead=ahead, submit=submit, collect=workers.collect)
    finally:
        workers.close()


class SharedBatches:
    """Arrays in memory shared by processes.

    There are `slots` batches of the given fields; the batch of a step is in slot `step % slots`.
    `at` [slots, parts] holds the record that each part is at, -1 before its first.
    """

    def __init__(self, file: int, fields: list[Field], *, slots: int, parts: int):
        self.slots = slots
        fields = [*fields, ("", (parts,), np.dtype(np.int64))]
        sizes = [
            -(-slots * math.prod(shape) * dtype.itemsize // 64) * 64 for _, shape, dtype in fields
        ]
        os.ftruncate(file, sum(sizes))
        memory = mmap.mmap(file, 0)
        starts = itertools.accumulate([0, *sizes])
        self.arrays = {
            name: np.ndarray((slots, *shape), dtype, memory, start)
            for (name, shape, dtype), start in zip(fields, starts, strict=False)
        }
        self.at = self.arrays.pop("")

    def batch(self, step: int) -> Rows:
        """The batch of a step, in its place in the shared memory."""
        return {name: array[step % self.slots] for name, array in self.arrays.items()}


class Workers:
    """The run's side: the processes, the tasks they were given and their answers."""

    def __init__(self, reader: PartReader):
        self.reader = reader
        self.source: Source = reader.source
        self.file = anonymous_file()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sockets: list[Connection] = []
        self.pending: dict[Task, int] = {}  # the worker of each task
        self.answers: dict[Task, Answer] = {}

    def start(self, limits: ReadAhead) -> None:
        """Starts the processes and sends each the modules and the reader."""
        environment = {
            **os.environ,
            **ALLOCATOR,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        for _ in range(limits.workers):
            here, there = Pipe()
            self.sockets.append(here)
            files = (there.fileno(), self.file)
            # -P: files in the current folder are no modules.
            command = [sys.executable, "-P", "-X", "faulthandler", "-c", PROGRAM, *map(str, files)]
            # The worker inherits the blocked signals.
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *STOP_SIGNALS})
            try:
                # stdout=2: what a worker prints is not a result of the command.
                process = subprocess.Popen(
                    command, pass_fds=files, stdin=subprocess.DEVNULL, stdout=2, env=environment
                )
                self.processes.append(process)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            there.close()
        for number in range(limits.workers):
            self.send(number, loaded_modules())
            self.send(number, (self.reader, max(1, limits.threads)))

    def share_memory(self, first: Rows, *, slots: int, parts: int) -> None:
        """Allocates memory for `slots` batches like `first`, each read in `parts` parts."""
        fields = [(name, rows.shape, rows.dtype) for name, rows in first.items()]
        self.parts = range(parts)
        self.memory = SharedBatches(self.file, fields, slots=slots, parts=parts)
        for number in range(len(self.sockets)):
            self.send(number, (fields, slots, parts))

    def submit(self, step: int, indices: np.ndarray) -> None:
        """Requests a batch, each part of it from the worker with the fewest tasks."""
        for part, piece in enumerate(np.array_split(indices, len(self.parts))):
            busy = collections.Counter(self.pending.values())
            number = min(range(len(self.sockets)), key=busy.__getitem__)
            self.pending[step, part] = number
            self.memory.at[step % self.memory.slots, part] = -1
            self.send(number, (step, part, piece))

    def collect(self, step: int) -> Rows:
        """Waits for a batch that was requested and frees its slot."""
        tasks = [(step, part) for part in self.parts]
        self.drain()
        while not self.answers.keys() >= set(tasks):
            self.receive(None)
        answers = [self.answers.pop(task) for task in tasks]
        for _, error in answers:
            if error:
                raise parse_error(error, f"the batch of step {step + 1} cannot be read: ")
        rows = {name: rows.copy() for name, rows in self.memory.batch(step).items()}
        bad = [record for records, _ in answers for record in records]
        return self.reader.merge([(rows, bad)])

    def send(self, number: int, message: Any) -> None:
        try:
            self.sockets[number].send(message)
        except OSError:
            self.drain()  # the answers it sent before it ended
            raise self.dead_worker(number) from None
        except Exception as error:  # pickle raises many types
            raise Refused(
                f"the data set cannot be given to worker processes: {type(error).__name__}: "
                f"{error}; with --workers 0 threads of this process read it."
            ) from error

    def receive(self, timeout: float | None) -> bool:
        """Takes one answer from each worker that has one; returns whether there was any.

        Args:
          timeout: Seconds to wait for the first; None: no limit.
        """
        ready = wait(self.sockets, timeout)
        for socket in ready:
            number = self.sockets.index(socket)  # type: ignore[arg-type]
            try:
                task, bad, error = self.sockets[number].recv()
            except (EOFError, OSError):
                raise self.dead_worker(number) from None
            if task is None:
                raise parse_error(error, "a worker process cannot start: ")
            del self.pending[task]
            self.answers[task] = bad, error
        return bool(ready)

    def drain(self) -> None:
        """Takes all answers that have arrived: a worker's end is noticed after its answers."""
        while self.receive(0):
            pass

    def dead_worker(self, number: int) -> Failed:
        """The error for a worker that ended."""
        process = self.processes[number]
        try:
            code = process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            how = "closed its connection and has not ended yet"
        else:
            how = f"ended with exit code {code}"
            if code < 0:
                how = f"was killed by {signal.Signals(-code).name}"
        tasks = sorted(task for task, worker in self.pending.items() if worker == number)
        what = ""
        if tasks:
            what = f" while it read the batch of step {tasks[0][0] + 1}"
        if names := self.records_of(tasks):
            what += f", at or after {' or '.join(names)}"
        return Failed(
            f"worker process {process.pid} {how}{what}: the machine may lack memory (fewer "
            f"--workers need less), or a record crashes the code that reads it."
        )

    def records_of(self, tasks: list[Task]) -> list[str]:
        """Names of the records that the parts are at."""
        where: Any = getattr(self.source, "where", None)
        if where is None:
            return []
        records = [int(self.memory.at[step % self.memory.slots, part]) for step, part in tasks]
        return [where(record) for record in records if record >= 0]

    def close(self) -> None:
        """Ends the workers and frees the memory."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        for socket in self.sockets:
            socket.close()
        os.close(self.file)
        vars(self).pop("memory", None)  # now, not when the last traceback is freed


def work(channel: int, file: int) -> None:
    """The main function of a worker process: reads parts until the run closes its socket."""
    socket = Connection(channel)
    lock = threading.Lock()

    def answer(*message: Any) -> None:
        with lock:
            socket.send(message)

    try:
        try:
            install_import_hook(socket.recv())
            reader, threads = socket.recv()
        except EOFError:
            raise
        except Exception as error:
            return answer(None, [], serialize_error(error))
        fields, slots, parts = socket.recv()
        memory = SharedBatches(file, fields, slots=slots, parts=parts)
        pool = ThreadPoolExecutor(threads)
        rows = np.arange(fields[0][1][0])
        starts = [int(piece[0]) for piece in np.array_split(rows, parts)]

        def serve(step: int, part: int, indices: np.ndarray) -> None:
            def begin(record: int) -> None:
                memory.at[step % slots, part] = record

            try:
                rows, bad = reader.read(indices, begin)
                place = slice(starts[part], starts[part] + len(indices))
                batch = memory.batch(step)
                copy_rows(rows, {name: array[place] for name, array in batch.items()})
                answer((step, part), bad, None)
            except BaseException as error:
                answer((step, part), [], serialize_error(error))

        while True:
            pool.submit(serve, *socket.recv())
    except (EOFError, OSError):
        os._exit(0)  # the run is over, whatever the threads are reading


def copy_rows(rows: Rows, target: Rows) -> None:
    """Copies rows into the shared memory; raises if shapes or dtypes differ."""
    for name, array in target.items():
        if (array.shape, array.dtype) != (rows[name].shape, rows[name].dtype):
            raise Failed(
                f"{name} is {rows[name].dtype} {list(rows[name].shape)}, and was {array.dtype} "
                f"{list(array.shape)} in the first batch."
            )
        array[...] = rows[name]


def serialize_error(error: BaseException) -> ErrorTexts:
    """An error as two texts, for the run to raise."""
    if isinstance(error, Refused | Failed):
        return type(error).__name__, str(error)
    return "", f"{type(error).__name__}: {error}"


def parse_error(error: ErrorTexts, prefix: str) -> Exception:
    """The error of a worker; the prefix is for foreign ones."""
    name, text = error
    if name == "Refused":
        return Refused(text)
    return Failed(text if name else prefix + text)


def anonymous_file() -> int:
    """A file in memory, or else on disk, that vanishes when the last process closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("jaxbig")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
