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
from collections.abc import Iterator

import grain
import numpy as np

from jaxbig.data.base import Rows, Source

Places = np.ndarray | slice
"""Which rows of a global batch: those that this process's devices hold."""
EVERY = slice(None)


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch: a permutation [size], from the Philox generator's raw stream (Salmon et al., 2011),
    which NumPy promises not to change."""
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    permutation = np.argsort(raw, kind="stable")
    permutation.setflags(write=False)
    return permutation


def train_indices(seed: int, step: int, batch: int, size: int) -> np.ndarray:
    """Which examples make the global batch at a step, [batch]; each epoch holds every example exactly once."""
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), size)
    return np.concatenate([order(seed, int(epoch), size)[places[epochs == epoch]] for epoch in np.unique(epochs)])


def train_batch(source: Source, seed: int, step: int, batch: int, places: Places = EVERY) -> Rows:
    """The rows of the global batch at a step; with `places` those alone."""
    if getattr(source, "contiguous", False):
        return track_batch(source, step, batch, places)
    return source.rows(train_indices(seed, step, batch, len(source))[places])


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
    source: Source, seed: int, start: int, stop: int, batch: int, readers: int, places: Places = EVERY
) -> Iterator[Rows]:
    """The batches of steps start to stop, read ahead by `readers` threads (0: in this one, none ahead)."""

    def read(step: int) -> Rows:
        return train_batch(source, seed, step, batch, places)

    if readers == 0:
        return map(read, range(start, stop))
    options = grain.ReadOptions(num_threads=readers, prefetch_buffer_size=2 * readers)
    return iter(grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options))
