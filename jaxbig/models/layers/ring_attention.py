"""Ring attention (Liu et al., 2023): attention over a sequence that is split over devices.

Each device keeps its piece of the queries, while the pieces of keys and values go round all devices
that share a row's length. None ever holds a whole row of them, or the scores of more than a block.

Softmax is taken online, in float32 (Dao et al., 2022, FlashAttention, algorithm 1), and the
backward pass is a second ring in which the gradients of keys and values follow these home (appendix
B.4), so memory is O(T) in both. Blocks that no query here may see are skipped. With causal
attention the last piece's device then has the most to do and the others wait for it, which costs
about half of all time; pieces dealt out evenly (Brandon et al., 2023) would not.

Letters in shape comments: B batch, T queries and S keys of a piece, N pieces, H heads, G heads of
keys and values, R heads of queries for each of those (H / G), K width of a head, P blocks of keys
in a piece, C keys in a block.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbig.arrays.dtypes import accumulation_dtype
from jaxbig.distributed.logical_axes import active_axes
from jaxbig.errors import Refused
from jaxbig.models.layers.attention_mask import Segments, visible
from jaxbig.models.layers.basic import soft_cap

BLOCK = 512
"""Keys that are scored at a time, at most."""
PLACES = ("batch", "length", "heads", None)


def pieces() -> dict[str, int]:
    """The mesh axes that split the length of rows and heads, and into how many; none where nothing
    does."""
    return active_axes((nn.logical_to_mesh_axes(PLACES) or PLACES)[1])


def ring(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool,
    window: int | None,
    segments: Segments,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """As `attend`, where there are `pieces`: [B, N T, H, K] and twice [B, N S, G, K] -> [B, N T, H,
    K]."""
    over = pieces()
    lengths = (query.shape[1], key.shape[1])
    count = math.prod(over.values())
    if any(length % count for length in lengths) or (causal and lengths[0] != lengths[1]):
        names = " x ".join(f"{axis}={size}" for axis, size in over.items())
        raise Refused(
            f"kernel 'ring' takes lengths that {names} divides, equal ones if causal, not "
            f"{lengths[0]} queries and {lengths[1]} keys: change them, the mesh, or "
            f"--model.attention-kernel."
        )
    heads: Any = nn.logical_to_mesh_axes(PLACES)
    places = PartitionSpec(*heads[:2])
    few = places if key.shape[2] == 1 else heads  # a single head cannot be split
    factor = query.shape[3] ** -0.5 if scale is None else scale
    each = functools.partial(local, Round(tuple(over), count, causal, window, factor, cap))
    specs = heads, few, few, None if segments is None else (places, places)
    return jax.shard_map(each, in_specs=specs, out_specs=heads, check_vma=False)(
        query, key, value, segments
    )


@dataclasses.dataclass(frozen=True)
class Round:
    """Who passes what to whom, and who sees whom."""

    axes: tuple[str, ...]
    count: int
    causal: bool
    window: int | None
    scale: float = 1.0
    cap: float | None = None

    def turns(self, length: int) -> int:
        """Number of ring steps that a causal window needs, for chunks of `length` keys."""
        if not self.causal or self.window is None:
            return self.count
        return min(self.count, 1 - (1 - self.window) // length)

    def pass_on(self, tree: Any, by: int = 1) -> Any:
        """To the device that many pieces further: what was here `t` turns ago was made `t` pieces
        before."""
        to = [(device, (device + by) % self.count) for device in range(self.count)]
        return jax.lax.ppermute(tree, self.axes, to)

    def scores(
        self, query: Any, first: Any, query_segments: Any, at: Any, key: Any, segments: Any
    ) -> tuple[Any, Any]:
        """Queries [B, T, G, R, K] at positions from `first` on, and keys [B, C, G, K] from `at` on,
        of segments [B, T] and [B, C] or None -> scores, and which of them count: [B, G, R, T, C]
        and [1 or B, 1, 1, T, C]."""
        found = jnp.einsum(
            "btgrk,bcgk->bgrtc", query, key, preferred_element_type=accumulation_dtype(query.dtype)
        )
        found = soft_cap(found * self.scale, self.cap)
        pair = None if segments is None else (query_segments, segments)
        places = first + jnp.arange(query.shape[1]), at + jnp.arange(key.shape[1])
        seen = visible(*places, self.causal, self.window, pair)[:, :, None]
        return jnp.where(
            jnp.broadcast_to(seen, found.shape), found, -0.7 * jnp.finfo(found.dtype).max
        ), seen

    def near(self, first: Any, queries: int, at: Any, keys: int) -> Any:
        """Whether any of the queries from `first` on may see any of the keys from `at` on."""
        # distances, from query to key
        farthest = first + queries - 1 - at
        nearest = first - (at + keys - 1)
        near = farthest >= 0 if self.causal else True
        return (
            near
            if self.window is None
            else near & (nearest < self.window) & (farthest > -self.window)
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def local(
    round: Round, query: jax.Array, key: jax.Array, value: jax.Array, segments: Segments
) -> jax.Array:
    """A device's queries [B, T, H, K], keys and values [B, S, G, K] -> [B, T, H, K]."""
    return forward(round, query, key, value, segments)[0]


def forward(
    round: Round, query: Any, key: Any, value: Any, segments: Segments
) -> tuple[jax.Array, Any]:
    (batch, length, heads, width) = query.shape
    groups = key.shape[2]
    query_segments, key_segments = (None, None) if segments is None else segments
    q = query.reshape(batch, length, groups, heads // groups, width)
    here = jax.lax.axis_index(round.axes)
    dtype = accumulation_dtype(query.dtype)

    def turn(carry: Any, number: jax.Array) -> tuple[Any, None]:
        state, passed = carry
        following = round.pass_on(passed)  # is on its way while this is computed
        starts = first_keys(here - number, round.count, passed)
        state, _ = jax.lax.scan(block, state, (starts, *passed))
        return (state, following), None

    def block(state: Any, now: Any) -> tuple[Any, None]:
        at, key, value, key_segments = now  # [], twice [B, C, G, K], [B, C]

        def add(state: Any) -> Any:
            out, top, total = state
            scores, _ = round.scores(q, here * length, query_segments, at, key, key_segments)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))  # [B, G, R, T]
            powers = jnp.exp(scores - higher[..., None])
            shrunk = jnp.exp(top - higher)
            more = jnp.einsum(
                "bgrtc,bcgk->bgrtk", powers.astype(value.dtype), value, preferred_element_type=dtype
            )
            return out * shrunk[..., None] + more, higher, total * shrunk + jnp.sum(powers, axis=-1)

        return jax.lax.cond(
            round.near(here * length, length, at, key.shape[1]), add, lambda state: state, state
        ), None

    shape = batch, groups, heads // groups, length
    start = (
        jnp.zeros((*shape, width), dtype),
        jnp.full(shape, -jnp.inf, dtype),
        jnp.zeros(shape, dtype),
    )
    passed = blocks(key), blocks(value), blocks(key_segments)
    ((out, top, total), _), _ = jax.lax.scan(turn, (start, passed), jnp.arange(round.turns(length)))
    out = jnp.moveaxis(out / total[..., None], 3, 1).reshape(query.shape).astype(value.dtype)
    return out, (query, key, value, segments, out, top, total)


def backward(round: Round, saved: Any, gradient: jax.Array) -> tuple[Any, Any, Any, None]:
    query, key, value, segments, out, top, total = saved
    (batch, length, heads, width) = query.shape
    groups = key.shape[2]
    query_segments, key_segments = (None, None) if segments is None else segments
    here = jax.lax.axis_index(round.axes)
    dtype = accumulation_dtype(query.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    q, d_out, out = (
        x.reshape(batch, length, groups, heads // groups, width) for x in (query, gradient, out)
    )
    d_total = product("btgrk,btgrk->bgrt", d_out, out)

    def turn(carry: Any, number: jax.Array) -> tuple[Any, None]:
        d_query, passed, gradients = carry
        following = round.pass_on(passed)
        gradients = round.pass_on(gradients)
        starts = first_keys(here - number, round.count, passed)
        d_query, more = jax.lax.scan(block, d_query, (starts, *passed))
        return (d_query, following, jax.tree.map(jnp.add, gradients, more)), None

    def block(d_query: jax.Array, now: Any) -> tuple[jax.Array, Any]:
        at, key, value, key_segments = now

        def add(d_query: jax.Array) -> Any:
            scores, seen = round.scores(q, here * length, query_segments, at, key, key_segments)
            shares = jnp.exp(scores - top[..., None]) / total[..., None]  # [B, G, R, T, C]
            d_shares = product("btgrk,bcgk->bgrtc", d_out, value)
            d_scores = shares * (d_shares - d_total[..., None]) * round.scale
            if round.cap is not None:  # the derivative of the cap
                d_scores = d_scores * (1 - jnp.square(scores / round.cap))
            d_scores = jnp.where(seen, d_scores, 0).astype(q.dtype)
            d_value = product("bgrtc,btgrk->bcgk", shares.astype(d_out.dtype), d_out)
            d_key = product("bgrtc,btgrk->bcgk", d_scores, q)
            return d_query + product("bgrtc,bcgk->btgrk", d_scores, key), (d_key, d_value)

        none = jnp.zeros(key.shape, dtype)
        near = round.near(here * length, length, at, key.shape[1])
        return jax.lax.cond(near, add, lambda same: (same, (none, none)), d_query)

    passed = blocks(key), blocks(value), blocks(key_segments)
    start = jnp.zeros(q.shape, dtype), passed, (jnp.zeros(passed[0].shape, dtype),) * 2
    turns = round.turns(length)
    (d_query, _, there), _ = jax.lax.scan(turn, start, jnp.arange(turns))
    d_key, d_value = (jnp.moveaxis(each, 0, 1) for each in round.pass_on(there, 1 - turns))  # home
    d_key, d_value = (each.reshape(key.shape).astype(key.dtype) for each in (d_key, d_value))
    return d_query.reshape(query.shape).astype(query.dtype), d_key, d_value, None


local.defvjp(forward, backward)


def blocks(x: jax.Array | None) -> Any:
    """[B, S, ...] -> [P, B, C, ...], C the largest divisor of S up to `BLOCK`."""
    if x is None:
        return None
    size = next(size for size in range(min(BLOCK, x.shape[1]), 0, -1) if x.shape[1] % size == 0)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def first_keys(piece: jax.Array, count: int, passed: Any) -> jax.Array:
    """The positions of the first key of each block of a piece, which is counted from 0 round the
    ring: [P]."""
    many, _, size = passed[0].shape[:3]
    return (piece % count * many + jnp.arange(many)) * size
