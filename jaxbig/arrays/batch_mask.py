"""Which rows and positions of a batch are real, for layers whose sums are over a batch and not over one example.

A model is given its inputs alone. What of them is padding, or stands for a record that was left out, only the batch's
mask says; the objective sets it around its call of the model, and a layer that needs it reads it here. It is set while
a function is traced, so what is compiled stays a pure function of the batch.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

_mask: ContextVar[jax.Array | None] = ContextVar("mask", default=None)
_every_row: ContextVar[bool] = ContextVar("every_row", default=False)


@contextlib.contextmanager
def batch_mask(mask: jax.Array | None) -> Iterator[None]:
    """Sets the mask while a model is called: [B] of rows, or [B, L] of the positions of its input; 0: not real."""
    token = _mask.set(mask)
    try:
        yield
    finally:
        _mask.reset(token)


@contextlib.contextmanager
def every_row_real(known: bool) -> Iterator[None]:
    """Inside, it is known before anything runs that every row is real, so that no layer has to look: a program that
    looks is another one, and rounds otherwise."""
    token = _every_row.set(known)
    try:
        yield
    finally:
        _every_row.reset(token)


@contextlib.contextmanager
def rows_only() -> Iterator[None]:
    """Inside, the mask says which rows are real alone: for an input whose positions are not those of the mask."""
    mask = _mask.get()
    with batch_mask(mask if mask is None else of_rows(mask)):
        yield


def real_rows(batch: int) -> jax.Array | None:
    """Which of that many rows are real, bool [B]; None where all are, or no mask is set for them."""
    mask = _mask.get()
    return None if mask is None or len(mask) != batch or _every_row.get() else of_rows(mask)


def real_positions(batch: int, length: int) -> jax.Array | None:
    """Which positions of rows are real, bool [B, L]; None where all are, or no mask is set for them."""
    mask, rows = _mask.get(), real_rows(batch)
    if mask is not None and mask.shape == (batch, length):
        return mask > 0
    return None if rows is None else jnp.broadcast_to(rows[:, None], (batch, length))


def of_rows(mask: jax.Array) -> jax.Array:
    """[B, ...] -> whether a row has anything real, bool [B]."""
    return jnp.any(mask > 0, axis=tuple(range(1, mask.ndim)))
