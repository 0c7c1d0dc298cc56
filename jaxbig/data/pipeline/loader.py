"""Batches of a source, read when needed or ahead by threads or worker processes: the same bytes."""

from collections.abc import Generator

import numpy as np

from jaxbig.data.core.dataset import Rows, Source
from jaxbig.data.pipeline.batch_parts import PartReader, ReadAhead, Sampler
from jaxbig.data.pipeline.prefetch import read_with_threads
from jaxbig.data.pipeline.sampler import eval_indices, eval_steps, is_contiguous, train_indices
from jaxbig.data.pipeline.worker_processes import read_with_workers

RowSelection = np.ndarray | slice
"""Rows of a global batch: those of this process's devices."""
ALL_ROWS = slice(None)


def train_batch(
    source: Source, step: int, *, seed: int, batch: int, rows: RowSelection = ALL_ROWS
) -> Rows:
    """Reads the global training batch of a step, or some of its rows."""
    indices = train_indices(source, step, seed=seed, batch=batch)
    return part_reader(source, batch).read_batch(indices[rows])


def eval_batch(source: Source, step: int, *, batch: int, rows: RowSelection = ALL_ROWS) -> Rows:
    """Reads an evaluation batch, padded with `mask` 0, or some of its rows."""
    indices = eval_indices(source, step, batch=batch)
    return part_reader(source, batch).read_batch(indices[rows])


def train_batches(
    source: Source,
    steps: range,
    *,
    seed: int,
    batch: int,
    rows: RowSelection = ALL_ROWS,
    threads: int,
    workers: int = 0,
    read_ahead: int = 1024,
) -> Generator[Rows]:
    """Yields the training batches of those steps; closing the generator ends its readers.

    Args:
      source: The examples.
      steps: The steps, counted from 0.
      seed: Seed of the order of the examples.
      batch: Rows of the global batch.
      rows: The rows to read.
      threads: Threads that read ahead, in this process or in each worker. 0 without workers: each
        batch is read when it is needed.
      workers: Worker processes that read in place of this process.
      read_ahead: MiB of batches that are read ahead at most.
    """

    def sampler(step: int) -> np.ndarray:
        return train_indices(source, step, seed=seed, batch=batch)[rows]

    limits = ReadAhead(threads=threads, workers=workers, limit=read_ahead * 2**20)
    return load(part_reader(source, batch), sampler, steps, limits=limits)


def eval_batches(
    source: Source,
    *,
    batch: int,
    rows: RowSelection = ALL_ROWS,
    threads: int,
    read_ahead: int = 1024,
    max_batches: int | None = None,
) -> Generator[Rows]:
    """Yields the evaluation batches, or the first `max_batches` of them, read by threads."""

    def sampler(step: int) -> np.ndarray:
        return eval_indices(source, step, batch=batch)[rows]

    count = eval_steps(source, batch)
    steps = range(min(max_batches or count, count))
    limits = ReadAhead(threads=threads, limit=read_ahead * 2**20)
    return load(part_reader(source, batch), sampler, steps, limits=limits)


def part_reader(source: Source, batch: int) -> PartReader:
    """The reader of a source's batches."""
    if is_contiguous(source):
        return PartReader(source, track_length=eval_steps(source, batch))
    return PartReader(source)


def load(
    reader: PartReader, sampler: Sampler, steps: range, *, limits: ReadAhead
) -> Generator[Rows]:
    """Yields the batches of those steps, read by worker processes, by threads or when needed."""
    if not steps or not (limits.threads or limits.workers):
        return (reader.read_batch(sampler(step)) for step in steps)
    if limits.workers:
        return read_with_workers(reader, sampler, steps, limits=limits)
    return read_with_threads(reader, sampler, steps, limits=limits)
