"""Batches as a pure function of (seed, step).

The global batch at a step is the same rows in the same order for any number of processes and readers, so a
checkpoint holds no position, a resume is exact, and a run may continue on other hosts with the same examples.

The examples of a contiguous source are windows of one text. It is cut into as many tracks as a batch has rows, and
row b reads track b from its beginning to its end, again and again: a pass over the windows is
`ceil(windows / batch)` steps, and at its first step `starts` is 1. Tracks reach beyond the text where its windows do
not divide: there `mask` is 0, so a pass too holds each window exactly once, in training as in evaluation.
"""

import functools
import math
from collections.abc import Generator

import numpy as np

from jaxbig.data.core.dataset import Rows, Source
from jaxbig.data.core.permutation import permuted
from jaxbig.data.pipeline.prefetch import Readers, batches

Places = np.ndarray | slice
"""Which rows of a global batch: those that this process's devices hold."""
EVERY = slice(None)
TABLE = 2**20
"""Up to so many examples an epoch's order is a table, sorted once; beyond, it is computed (permutation.py)."""


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch: a permutation [size], from the Philox generator's raw stream (Salmon et al., 2011),
    which NumPy promises not to change."""
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    permutation = np.argsort(raw, kind="stable")
    permutation.setflags(write=False)
    return permutation


def drawn(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which of `size` entries stand at those positions [N] of an endless row of epochs, each in an order of its own."""
    epochs, places = np.divmod(positions, size)
    if size > TABLE:
        return permuted(places, size, seed, epochs)
    return np.concatenate(
        [order(seed, int(epoch), size)[places[epochs == epoch]] for epoch in np.unique(epochs)]
    )


def train_indices(source: Source, seed: int, step: int, batch: int) -> np.ndarray:
    """Which examples make the global batch at a step, [batch]; each epoch holds every example exactly once."""
    positions = np.arange(step * batch, (step + 1) * batch)
    if hasattr(source, "draw"):
        return source.draw(seed, positions)  # type: ignore[attr-defined]
    return drawn(positions, len(source), seed)


def train_batch(source: Source, seed: int, step: int, batch: int, places: Places = EVERY) -> Rows:
    """The rows of the global batch at a step; with `places` those alone."""
    if getattr(source, "contiguous", False):
        return track_batch(source, step, batch, places)
    return source.rows(train_indices(source, seed, step, batch)[places])


def eval_batch(source: Source, step: int, batch: int, places: Places = EVERY) -> Rows:
    """The rows of an evaluation batch: examples in order, the last batch padded with `mask` 0."""
    if getattr(source, "contiguous", False):
        return track_batch(source, step, batch, places)
    return within(source, np.arange(step * batch, (step + 1) * batch)[places])


def track_batch(source: Source, step: int, batch: int, places: Places = EVERY) -> Rows:
    """The rows of a batch of tracks, with `starts` [B]: 1 where a track begins anew."""
    windows = eval_steps(source, batch)  # of each track
    rows = within(source, (np.arange(batch) * windows + step % windows)[places])
    return {**rows, "starts": np.full(len(rows["mask"]), step % windows == 0, np.int32)}


def within(source: Source, places: np.ndarray) -> Rows:
    """The examples at those places; beyond the last example any, with `mask` 0."""
    rows = source.rows(np.minimum(places, len(source) - 1))
    real = (places < len(source)).reshape(-1, *[1] * (rows["mask"].ndim - 1))
    return {**rows, "mask": rows["mask"] * real}


def eval_steps(source: Source, batch: int) -> int:
    """How many evaluation batches see every example once."""
    return math.ceil(len(source) / batch)


def train_batches(
    source: Source,
    seed: int,
    start: int,
    stop: int,
    batch: int,
    readers: int,
    places: Places = EVERY,
    workers: int = 0,
    read_ahead: int = 1024,
) -> Generator[Rows]:
    """The batches of steps start to stop, read ahead by `readers` threads, in this process or in each of `workers`
    processes, at most `read_ahead` MiB of them; closing it ends those. 0 and 0: each is read when it is needed."""
    read = functools.partial(train_batch, seed=seed, batch=batch)
    who = Readers(threads=readers, workers=workers, limit=read_ahead * 2**20)
    return batches(read, source, range(start, stop), np.arange(batch)[places], who)


def eval_batches(
    source: Source,
    batch: int,
    readers: int,
    places: Places = EVERY,
    read_ahead: int = 1024,
    most: int | None = None,
) -> Generator[Rows]:
    """The evaluation batches, or the first `most` of them, read ahead by threads."""
    read, who = (
        functools.partial(eval_batch, batch=batch),
        Readers(threads=readers, limit=read_ahead * 2**20),
    )
    count = eval_steps(source, batch)
    steps = range(min(most or count, count))
    return batches(read, source, steps, np.arange(batch)[places], who)
