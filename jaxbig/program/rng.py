"""PRNG keys: named streams from one seed, each key a pure function of (seed, name, step).

No random state is stored: the key of a stream at a step is a pure function of (seed, name, step).
So a run that is resumed, moved or replayed draws the same numbers.
"""

import zlib

import jax


def stream(seed: int | jax.Array, name: str) -> jax.Array:
    """The key of the stream `name`, as "init"; the streams of one seed are independent."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def at_step(seed: int, name: str, step: jax.Array | int) -> jax.Array:
    """The key of the stream `name` at a step."""
    return jax.random.fold_in(stream(seed, name), step)
