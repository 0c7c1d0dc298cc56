"""Ring attention (Liu et al., 2023): attention over a sequence that is split over devices.

Each device keeps its piece of the queries, while the pieces of keys and values go round all devices
that share a row's length. None ever holds a whole row of them, or the scores of more than a block.

Softmax is taken online, in float32 (Dao et al., 2022, FlashAttention, algorithm 1), and the
backward pass is a second ring in which the gradients of keys and values follow these home (appendix
B.4), so memory is O(T) in both. Blocks that no query here may see are skipped. With causal
attention the last piece's device then has the most to do and the others wait for it, which costs
about half of all time. Zigzag deals the row out evenly (Dubey et al., 2024, section 3.3.2): of its
2 N halves of pieces, device d takes number d and, from the end, number d again; outputs go home.

Each device sends its keys and values, 2 B T G K numbers, N times forward and N times backward, and
their gradients, as many in float32, N + 1 times. Zigzag sends queries, keys, values and outputs
once more each way: B T (2 H + 2 G) K numbers forward, and backward again.

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
    zigzag: bool = False,
) -> jax.Array:
    """As `attend`, where there are `pieces`: [B, N T, H, K] and twice [B, N S, G, K] -> [B, N T, H,
    K]. Zigzag is for causal attention of which no window ends the round; else work is even as it
    is."""
    over = pieces()
    lengths = (query.shape[1], key.shape[1])
    count = math.prod(over.values())
    names = " x ".join(f"{axis}={size}" for axis, size in over.items())
    if any(length % count for length in lengths) or (causal and lengths[0] != lengths[1]):
        raise Refused(
            f"kernel {'zigzag' if zigzag else 'ring'!r} takes lengths that {names} divides, equal "
            f"ones if causal, not {lengths[0]} queries and {lengths[1]} keys: change them, the "
            f"mesh, or --model.attention-kernel."
        )
    heads: Any = nn.logical_to_mesh_axes(PLACES)
    places = PartitionSpec(*heads[:2])
    few = places if key.shape[2] == 1 else heads  # a single head cannot be split
    factor = query.shape[3] ** -0.5 if scale is None else scale
    round = Round(tuple(over), count, causal, window, factor, cap)
    if zigzag and causal and round.turns(lengths[0] // count) == count:
        if lengths[0] % (2 * count):
            raise Refused(
                f"kernel 'zigzag' takes lengths that two times {names} divides, not {lengths[0]}: "
                f"change it, the mesh, or take --model.attention-kernel ring."
            )
        round = dataclasses.replace(round, zigzag=True)
    each = functools.partial(even if round.zigzag else local, round)
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
    zigzag: bool = False

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

    def starts(self, device: Any, length: int) -> list[Any]:
        """The position of each run of consecutive ones among the `length` that a device has."""
        if not self.zigzag:
            return [device * length]
        mirrored = 2 * self.count - 1 - device
        even = jnp.where(device % 2 == 0, device, mirrored)  # of the two one is even, one odd
        return [even * (length // 2), (2 * self.count - 1 - even) * (length // 2)]

    def first_keys(self, piece: Any, passed: Any) -> Any:
        """The position of the first key of each block of a piece, which is counted from 0 round the
        ring: [P]."""
        many, _, size = passed[0].shape[:3]
        starts = self.starts(piece % self.count, many * size)
        each = jnp.arange(many // len(starts)) * size
        return jnp.concatenate([start + each for start in starts])

    def runs(self, x: Any, axis: int) -> list[Any]:
        """The runs of consecutive positions in an array of a device's positions, or None each."""
        many = 2 if self.zigzag else 1
        return [None] * many if x is None else jnp.split(x, many, axis)

    def deal(self, x: Any) -> Any:
        """A piece [B, T, ...] -> the two halves of pieces at the device's `starts`."""
        return self.swap(x, lambda here, there: (here, there))

    def collect(self, x: Any) -> Any:
        """What `deal` gave -> a piece."""
        return self.swap(x, lambda here, there: (there, here))

    def swap(self, x: Any, order: Any) -> Any:
        """Sends each half from a device that has it to its owner, or from there, as `order`
        says."""
        if x is None:
            return None
        halves = []
        for odd, half in enumerate(jnp.split(x, 2, 1)):
            numbers = [2 * device + odd for device in range(self.count)]
            owners = [min(number, 2 * self.count - 1 - number) for number in numbers]
            to = [order(device, owner) for device, owner in enumerate(owners)]
            halves.append(jax.lax.ppermute(half, self.axes, to))
        return jnp.concatenate(halves, axis=1)

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


def even(
    round: Round, query: jax.Array, key: jax.Array, value: jax.Array, segments: Segments
) -> jax.Array:
    """As `local`, with the row dealt out evenly before, and its outputs collected after."""
    return round.collect(
        local(
            round, *(round.deal(x) for x in (query, key, value)), jax.tree.map(round.deal, segments)
        )
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
        starts = round.first_keys(here - number, passed)
        state, _ = jax.lax.scan(block, state, (starts, *passed))
        return (state, following), None

    def block(states: Any, now: Any) -> tuple[Any, None]:
        at, key, value, key_segments = now  # [], twice [B, C, G, K], [B, C]

        def add(run: Any, state: Any) -> Any:
            q, first, query_segments = run
            out, top, total = state
            scores, _ = round.scores(q, first, query_segments, at, key, key_segments)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))  # [B, G, R, T]
            powers = jnp.exp(scores - higher[..., None])
            shrunk = jnp.exp(top - higher)
            more = jnp.einsum(
                "bgrtc,bcgk->bgrtk", powers.astype(value.dtype), value, preferred_element_type=dtype
            )
            return out * shrunk[..., None] + more, higher, total * shrunk + jnp.sum(powers, axis=-1)

        def add_where_near(run: Any, state: Any) -> Any:
            q, first, _ = run
            near = round.near(first, q.shape[1], at, key.shape[1])
            return jax.lax.cond(near, functools.partial(add, run), lambda state: state, state)

        return [add_where_near(*each) for each in zip(runs, states, strict=True)], None

    starts = round.starts(here, length)
    runs = list(zip(round.runs(q, 1), starts, round.runs(query_segments, 1), strict=True))
    shape = batch, groups, heads // groups, length // len(runs)
    start = (
        jnp.zeros((*shape, width), dtype),
        jnp.full(shape, -jnp.inf, dtype),
        jnp.zeros(shape, dtype),
    )
    passed = [blocks(x, len(runs)) for x in (key, value, key_segments)]
    (states, _), _ = jax.lax.scan(
        turn, ([start] * len(runs), passed), jnp.arange(round.turns(length))
    )
    out, top, total = (jnp.concatenate(each, axis=3) for each in zip(*states, strict=True))
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
        starts = round.first_keys(here - number, passed)
        d_query, more = jax.lax.scan(block, d_query, (starts, *passed))
        return (d_query, following, jax.tree.map(jnp.add, gradients, more)), None

    def block(d_queries: Any, now: Any) -> tuple[Any, Any]:
        at, key, value, key_segments = now

        def add(run: Any, of_run: Any, d_query: jax.Array) -> Any:
            q, first, query_segments = run
            d_out, top, total, d_total = of_run
            scores, seen = round.scores(q, first, query_segments, at, key, key_segments)
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

        def add_where_near(run: Any, of_run: Any, d_query: jax.Array) -> Any:
            q, first, _ = run
            near = round.near(first, q.shape[1], at, key.shape[1])
            added = functools.partial(add, run, of_run)
            return jax.lax.cond(near, added, lambda same: (same, (none, none)), d_query)

        each = zip(runs, of_runs, d_queries, strict=True)
        d_queries, more = zip(*[add_where_near(*of_run) for of_run in each], strict=True)
        return list(d_queries), functools.reduce(functools.partial(jax.tree.map, jnp.add), more)

    starts = round.starts(here, length)
    runs = list(zip(round.runs(q, 1), starts, round.runs(query_segments, 1), strict=True))
    saved_of_runs = [round.runs(x, 3) for x in (top, total, d_total)]
    of_runs = list(zip(round.runs(d_out, 1), *saved_of_runs, strict=True))
    passed = [blocks(x, len(runs)) for x in (key, value, key_segments)]
    d_queries = [jnp.zeros(run.shape, dtype) for run, _, _ in runs]
    start = d_queries, passed, (jnp.zeros(passed[0].shape, dtype),) * 2
    turns = round.turns(length)
    (d_queries, _, there), _ = jax.lax.scan(turn, start, jnp.arange(turns))
    d_query = jnp.concatenate(d_queries, axis=1)
    d_key, d_value = (jnp.moveaxis(each, 0, 1) for each in round.pass_on(there, 1 - turns))  # home
    d_key, d_value = (each.reshape(key.shape).astype(key.dtype) for each in (d_key, d_value))
    return d_query.reshape(query.shape).astype(query.dtype), d_key, d_value, None


local.defvjp(forward, backward)


def blocks(x: jax.Array | None, runs: int) -> Any:
    """[B, S, ...] -> [P, B, C, ...], C the largest divisor of a run's length up to `BLOCK`."""
    if x is None:
        return None
    length = x.shape[1] // runs
    size = next(size for size in range(min(BLOCK, length), 0, -1) if length % size == 0)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)
