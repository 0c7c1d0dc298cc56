"""Attention masks: which positions a query may attend to, by order, distance and segment.

A query sees the keys of its own segment's number. Padding is segment 0, so it sees and is seen by
padding alone; documents packed into one row have numbers of their own.

Letters in shape comments: B batch, T queries, S keys.
"""

import jax
import jax.numpy as jnp

from jaxbig.models.layers.basic import length_mask

Segments = tuple[jax.Array, jax.Array] | None
"""Of the queries [B, T] and of the keys [B, S]."""


def from_lengths(lengths: jax.Array, length: int) -> jax.Array:
    """Segments [B, L] of rows of those lengths [B]: 1, then 0 for padding."""
    return length_mask(lengths, length).astype(jnp.int32)


def visible(
    queries: jax.Array, keys: jax.Array, causal: bool, window: int | None, segments: Segments
) -> jax.Array:
    """Which keys at positions [S] each query at [T] sees: [1 or B, 1, T, S]."""
    distance = queries[:, None] - keys[None]  # [T, S]
    seen = distance >= 0 if causal else jnp.full(distance.shape, True)
    if window is not None:
        seen &= jnp.abs(distance) < window
    if segments is None:
        return seen[None, None]
    same = segments[0][:, :, None] == segments[1][:, None]  # [B, T, S]
    return (jnp.broadcast_to(seen[None], same.shape) & same)[:, None]


def without_padding(seen: jax.Array, padding: jax.Array) -> jax.Array:
    """`visible` [1 or B, 1, T, S] without each row's first padding [B] keys: [B, 1, T, S]."""
    real = jnp.arange(seen.shape[3])[None] >= padding[:, None]  # [B, S]
    return seen & real[:, None, None]


def places(
    query: jax.Array, key: jax.Array, offset: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Positions of queries [T] and of keys [S]."""
    return jnp.arange(query.shape[1]) + (0 if offset is None else offset), jnp.arange(key.shape[1])
