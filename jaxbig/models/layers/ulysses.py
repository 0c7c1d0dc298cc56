"""Ulysses (Jacobs et al., 2023): attention over a split length, with heads split in its place.

All-to-alls give each device every position of some heads, any kernel attends to these, and one more
all-to-all brings each position's outputs home. Over N pieces of a length T each device has B T / N
(2 H + 2 G) K numbers in the four of them (section 3.2: O(T / N), where gathered keys and values
are O(T)), and in the backward pass as many again. A head of keys and values that N does not divide
is sent several times, G being then the least multiple that N divides.

Letters in shape comments: B batch, T queries, S keys, H heads, G heads of keys and values, K width
of a head.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbig.distributed.logical_axes import active_axes, as_tuple
from jaxbig.errors import Refused


def sized(axes: dict[str, int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in axes.items())


def by_heads(
    attend: Callable[..., jax.Array], query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
    """`attend` of [B, T, H, K] and twice [B, S, G, K], all split by length, while each device has
    all positions of its heads -> [B, T, H, K]."""
    places: Any = nn.logical_to_mesh_axes(("batch", "length", "heads", None))
    rows, length, heads, _ = places
    over = active_axes(length)
    count = math.prod(over.values())
    both = active_axes(heads) | over
    if query.shape[2] % math.prod(both.values()):
        raise Refused(
            f"kernel 'ulysses' splits heads over {sized(both)}, which does not divide "
            f"{query.shape[2]} heads: change them, the mesh, or take --model.attention-kernel ring."
        )
    lengths = (query.shape[1], key.shape[1])
    if any(each % count for each in lengths):
        raise Refused(
            f"kernel 'ulysses' takes lengths that {sized(over)} divides, not {lengths[0]} queries "
            f"and {lengths[1]} keys: change them, or the mesh."
        )
    by_length = PartitionSpec(rows, length, heads)
    everywhere = (*as_tuple(heads), *as_tuple(length))
    by_head = PartitionSpec(rows, None, everywhere)
    few = PartitionSpec(rows, length) if key.shape[2] == 1 else by_length  # one cannot be split

    def to_heads(x: jax.Array) -> jax.Array:
        repeats = math.lcm(x.shape[2], count) // x.shape[2]
        x = jnp.repeat(x, repeats, axis=2) if repeats > 1 else x
        return jax.lax.all_to_all(x, as_tuple(length), split_axis=2, concat_axis=1, tiled=True)

    def to_length(x: jax.Array) -> jax.Array:
        return jax.lax.all_to_all(x, as_tuple(length), split_axis=1, concat_axis=2, tiled=True)

    def exchanged(function: Any, before: PartitionSpec, after: PartitionSpec) -> Any:
        return jax.shard_map(function, in_specs=(before,), out_specs=after)

    with nn.logical_axis_rules([("length", None), ("batch", rows), ("heads", everywhere)]):
        out = attend(
            exchanged(to_heads, by_length, by_head)(query),
            exchanged(to_heads, few, by_head)(key),
            exchanged(to_heads, few, by_head)(value),
        )
    return exchanged(to_length, by_head, by_length)(out)
