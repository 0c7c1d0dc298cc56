"""Batches read ahead of a run, by threads of this process or by worker processes (workers.py), the same bytes by all.

What is ahead is bounded in bytes. A batch is read by one thread, or shared out in parts where so few fit that threads
would be idle. What cannot be read is counted here, in the order of steps, so it is the same whoever read it.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Rows, Source

Read = Callable[..., Rows]
"""read(source, step=..., places=...) gives those rows [len(places), ...] of the batch of a step."""
Part = tuple[Rows, list[Any]]
"""Rows, and what could not be read of them, to be left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readers:
    """Who reads ahead, and how far."""

    threads: int = 1
    """How many threads read, in this process or in each worker; 0 without workers: each batch when it is needed."""
    workers: int = 0
    """How many processes read in place of this one."""
    limit: int = 2**30
    """Bytes of batches ahead at most; one batch at least."""

    def plan(self, rows: Rows) -> tuple[int, int]:
        """How many batches like this one are ahead, and in how many parts each is read. Four a thread, so that few wait
        while one is slow."""
        threads = max(1, self.threads) * max(1, self.workers)
        ahead = max(
            1, min(4 * threads, self.limit // max(1, sum(each.nbytes for each in rows.values())))
        )
        return ahead, min(-(-threads // ahead), len(rows["mask"]))


class Noting:
    """A source that notes what cannot be read, instead of counting it; for one batch."""

    def __init__(self, source: Source, begin: Callable[[int], None]):
        self.source, self.begin, self.bad = source, begin, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: np.ndarray) -> Rows:
        attempt: Any = getattr(self.source, "attempt", None)
        if attempt is None:
            return self.source.rows(indices)
        rows, bad = attempt(indices, self.begin)
        self.bad += bad
        return rows


def attempt(
    read: Read,
    source: Source,
    step: int,
    places: np.ndarray,
    begin: Callable[[int], None] = lambda index: None,
) -> Part:
    """Those rows of the batch of a step; `begin` is told of each record before it is read."""
    noting = Noting(source, begin)
    return read(noting, step=step, places=places), noting.bad


def batches(
    read: Read, source: Source, steps: range, places: np.ndarray, readers: Readers
) -> Generator[Rows]:
    """The rows `places` of the batches of those steps, read ahead. Closing it ends the threads and processes."""
    if not steps or not (readers.threads or readers.workers):
        return (settled(source, [attempt(read, source, step, places)]) for step in steps)
    if readers.workers:
        from jaxbig.data.pipeline.worker_processes import by_workers  # here: it knows this module

        return by_workers(read, source, steps, places, readers)
    return by_threads(read, source, steps, places, readers)


def by_threads(
    read: Read, source: Source, steps: range, places: np.ndarray, readers: Readers
) -> Generator[Rows]:
    """The same, by threads."""
    pool, waiting = ThreadPoolExecutor(readers.threads), deque[list[Future[Part]]]()
    try:
        first = settled(source, [attempt(read, source, steps[0], places)])
        ahead, parts = readers.plan(first)

        def submit(step: int) -> None:
            pieces = np.array_split(places, parts)
            waiting.append([pool.submit(attempt, read, source, step, piece) for piece in pieces])

        def collect(step: int) -> Rows:
            return settled(source, [part.result() for part in waiting.popleft()])

        yield from in_order(first, steps, ahead, submit, collect)
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    first: Rows,
    steps: range,
    ahead: int,
    submit: Callable[[int], None],
    collect: Callable[[int], Rows],
) -> Generator[Rows]:
    """The first batch, then those that are collected, each after `ahead` more at most were submitted."""
    for step in steps[1 : 1 + ahead]:
        submit(step)
    yield first
    for step in steps[1:]:
        rows = collect(step)
        if step + ahead in steps:
            submit(step + ahead)
        yield rows


def settled(source: Source, parts: list[Part]) -> Rows:
    """A batch of its parts; what could not be read is counted now, and `Failed` if it is too much."""
    for _, bad in parts:
        if bad:
            source.leave_out(bad)  # type: ignore[attr-defined]
    rows = [rows for rows, _ in parts]
    return (
        rows[0]
        if len(rows) == 1
        else {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}
    )
