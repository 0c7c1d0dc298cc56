"""Which examples make a batch: indices as a pure function of (seed, step).

The global batch of a step is the same rows in the same order for any number of processes and
readers. So a checkpoint holds no position in the data, a resumed run reads exactly what it would
have read, and it may resume on other hosts.

The examples of a contiguous source are windows of one text. The text is cut into as many tracks as
a batch has rows, and row b reads track b from its start to its end, again and again: a pass over
the windows takes `ceil(windows / batch)` steps. Where the windows do not divide evenly, tracks
extend past the text. Indices from `len(source)` up are padding: the reader gives them `mask` 0, so
a pass holds each window exactly once, in training as in evaluation.
"""

import functools
import math

import numpy as np

from jaxbig.data.core.dataset import Source
from jaxbig.data.core.permutation import permuted
from jaxbig.errors import Failed

MAX_TABLE = 2**20
"""Largest epoch whose order is a sorted table; larger ones are computed (permutation.py)."""


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch: a permutation [size].

    It sorts the raw stream of the Philox generator (Salmon et al., 2011), which NumPy promises
    not to change.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    permutation = np.argsort(raw, kind="stable")
    permutation.setflags(write=False)
    return permutation


def shuffled_indices(positions: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Maps global sample positions [N] to indices of `size` examples, reshuffled each epoch."""
    epochs, offsets = np.divmod(positions, size)
    if size > MAX_TABLE:
        return permuted(offsets, size, seed, epochs)
    return np.concatenate(
        [
            epoch_order(seed, int(epoch), size)[offsets[epochs == epoch]]
            for epoch in np.unique(epochs)
        ]
    )


def train_indices(source: Source, step: int, *, seed: int, batch: int) -> np.ndarray:
    """The examples of the global training batch of a step, [batch].

    Each epoch holds every example exactly once, unless the source draws its own order (`draw`).
    """
    if is_contiguous(source):
        return track_indices(source, step, batch)
    positions = np.arange(step * batch, (step + 1) * batch)
    if hasattr(source, "draw"):
        drawn: np.ndarray = source.draw(seed, positions)  # type: ignore[attr-defined]
        if drawn.min() < 0 or drawn.max() >= len(source):
            raise Failed(
                f"{type(source).__name__}.draw gave examples {drawn.min()} to {drawn.max()}: "
                f"they must be 0 to {len(source) - 1}."
            )
        return drawn
    return shuffled_indices(positions, len(source), seed)


def eval_indices(source: Source, step: int, *, batch: int) -> np.ndarray:
    """The examples of an evaluation batch in order, [batch]; past the last example is padding."""
    if is_contiguous(source):
        return track_indices(source, step, batch)
    return np.arange(step * batch, (step + 1) * batch)


def eval_steps(source: Source, batch: int) -> int:
    """The number of evaluation batches that hold every example once."""
    return math.ceil(len(source) / batch)


def is_contiguous(source: Source) -> bool:
    """Whether each row of a batch continues where it ended a step before."""
    return getattr(source, "contiguous", False)


def track_indices(source: Source, step: int, batch: int) -> np.ndarray:
    """The window that each track is at, [batch]; past the last window is padding."""
    length = eval_steps(source, batch)
    return np.arange(batch) * length + step % length
