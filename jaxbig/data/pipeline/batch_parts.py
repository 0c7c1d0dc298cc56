"""Parts of batches: what threads and worker processes share when they read ahead.

A batch is read as one part, or as several where so few batches fit into memory that readers would
be idle. Records that cannot be read are counted when the parts are merged, in the order of steps,
so the count is the same whether threads or processes read.
"""

import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from jaxbig.data.core.dataset import Rows, Source

Sampler = Callable[[int], np.ndarray]
"""`sampler(step)` returns the indices [B] of the examples that this process reads at a step."""
Part = tuple[Rows, list[Any]]
"""Rows of a batch, and the bad records among them, which are not counted yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadAhead:
    """How many threads and processes read ahead, and how far."""

    threads: int = 1
    """Threads in this process, or in each worker; 0 without workers: nothing is read ahead."""
    workers: int = 0
    """Worker processes that read in place of this process."""
    limit: int = 2**30
    """Bytes of batches that are read ahead at most; at least one batch is."""

    def plan(self, rows: Rows) -> tuple[int, int]:
        """The number of batches like this one to read ahead, and of parts to split each into.

        Four batches a thread, so that few threads wait while one is slow.
        """
        threads = max(1, self.threads) * max(1, self.workers)
        size = max(1, sum(array.nbytes for array in rows.values()))
        ahead = max(1, min(4 * threads, self.limit // size))
        parts = min(-(-threads // ahead), len(rows["mask"]))
        return ahead, parts


@dataclasses.dataclass(frozen=True)
class PartReader:
    """Reads the examples with given indices; sent to worker processes."""

    source: Source
    track_length: int = 0
    """Windows in each track of a contiguous source; 0: the source is not contiguous."""

    def read(self, indices: np.ndarray, begin: Callable[[int], None] = lambda index: None) -> Part:
        """Reads one part of a batch.

        Args:
          indices: Examples to read, [N]. Those past the last example are padding: any example
            with `mask` 0.
          begin: Called with the index of each record before it is read.

        Returns:
          The rows, with `starts` [N] for a contiguous source (1 where a track starts again), and
          the bad records among them.
        """
        padding = indices >= len(self.source)
        real = np.minimum(indices, len(self.source) - 1) if padding.any() else indices
        rows, bad = self.read_real(real, begin)
        if padding.any():
            shape = (-1, *[1] * (rows["mask"].ndim - 1))
            rows = {**rows, "mask": rows["mask"] * ~padding.reshape(shape)}
        if self.track_length:
            rows = {**rows, "starts": (indices % self.track_length == 0).astype(np.int32)}
        return rows, bad

    def read_real(self, indices: np.ndarray, begin: Callable[[int], None]) -> Part:
        read_rows: Any = getattr(self.source, "read_rows", None)
        if read_rows is None:
            return self.source.rows(indices), []
        return read_rows(indices, begin)

    def merge(self, parts: list[Part]) -> Rows:
        """Joins the parts of a batch and counts its bad records; raises if they are too many."""
        for _, bad in parts:
            if bad:
                self.source.leave_out(bad)  # type: ignore[attr-defined]
        rows = [rows for rows, _ in parts]
        if len(rows) == 1:
            return rows[0]
        return {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}

    def read_batch(self, indices: np.ndarray) -> Rows:
        """Reads a whole batch in the calling thread."""
        return self.merge([self.read(indices)])


def in_order(
    first: Rows,
    steps: range,
    *,
    ahead: int,
    submit: Callable[[int], None],
    collect: Callable[[int], Rows],
) -> Generator[Rows]:
    """Yields the first batch, then the others as they are collected.

    Args:
      first: The batch of the first step.
      steps: All steps.
      ahead: The most batches that are submitted and not collected.
      submit: Requests the batch of a step.
      collect: Waits for the batch of a step.
    """
    for step in steps[1 : 1 + ahead]:
        submit(step)
    yield first
    for step in steps[1:]:
        rows = collect(step)
        if step + ahead in steps:
            submit(step + ahead)
        yield rows
