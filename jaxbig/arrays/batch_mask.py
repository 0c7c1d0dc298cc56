"""The mask of a batch: which rows and positions are real and not padding.

A model receives its inputs alone. Which of them are padding, or replace a record that was skipped,
is known only from the batch's mask. The objective sets the mask around its call of the model, and a
layer that needs it reads it here. It is set while a function is traced, so the compiled function
stays a pure function of the batch."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
"""Arrays [B, ...] by field; among them `mask`, which is 0 for padding."""
_mask: ContextVar[jax.Array | None] = ContextVar("mask", default=None)
_every_row: ContextVar[bool] = ContextVar("every_row", default=False)


@contextlib.contextmanager
def batch_mask(mask: jax.Array | None) -> Iterator[None]:
    """Sets the mask while a model is called.

    Args:
      mask: 0 for what is not real: `[B]` of rows or `[B, L]` of the positions of the model's input.
    """
    token = _mask.set(mask)
    try:
        yield
    finally:
        _mask.reset(token)


@contextlib.contextmanager
def every_row_real(known: bool) -> Iterator[None]:
    """Declares before the program runs whether every row is real, so that no layer reads the mask.

    A program that reads the mask is compiled differently, and its results are rounded differently.
    """
    token = _every_row.set(known)
    try:
        yield
    finally:
        _every_row.reset(token)


@contextlib.contextmanager
def rows_only() -> Iterator[None]:
    """Reduces the mask to rows, for an input whose positions are not those of the mask."""
    mask = _mask.get()
    with batch_mask(mask if mask is None else of_rows(mask)):
        yield


def real_rows(batch: int) -> jax.Array | None:
    """Which of `batch` rows are real, bool `[B]`; None if all are or no mask is set for them."""
    mask = _mask.get()
    return None if mask is None or mask.shape[0] != batch or _every_row.get() else of_rows(mask)


def real_positions(batch: int, length: int) -> jax.Array | None:
    """Which positions are real, bool `[B, L]`; None if all are or no mask is set for them."""
    mask = _mask.get()
    rows = real_rows(batch)
    if mask is not None and mask.shape == (batch, length):
        return mask > 0
    return None if rows is None else jnp.broadcast_to(rows[:, None], (batch, length))


def of_rows(mask: jax.Array) -> jax.Array:
    """Which rows of a mask `[B, ...]` have a real position, bool `[B]`."""
    return jnp.any(mask > 0, axis=tuple(range(1, mask.ndim)))
