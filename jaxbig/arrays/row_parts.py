"""Parts of the rows of a batch, of which each device keeps those it has."""

import jax
import jax.numpy as jnp


def strided(count: int, x: jax.Array) -> jax.Array:
    """[B, ...] -> [count, B / count, ...]: every count-th pair of rows, or row where parts are odd.

    So each device keeps the rows it has.
    """
    rows = x.shape[0] // count
    pair = 2 if rows % 2 == 0 else 1
    x = jnp.moveaxis(x.reshape(rows // pair, count, pair, *x.shape[1:]), 1, 0)
    return x.reshape(count, rows, *x.shape[3:])


def unstrided(x: jax.Array) -> jax.Array:
    """The inverse: [count, B / count, ...] -> [B, ...]."""
    count, rows = x.shape[:2]
    pair = 2 if rows % 2 == 0 else 1
    x = jnp.moveaxis(x.reshape(count, rows // pair, pair, *x.shape[2:]), 0, 1)
    return x.reshape(-1, *x.shape[3:])
