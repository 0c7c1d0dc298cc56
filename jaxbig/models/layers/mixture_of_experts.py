"""The mixture-of-experts layer, dropless: a router sends each token to some MLPs, over any mesh.

Letters in shape comments: B batch, L length, D width, F hidden width, E experts, K experts a token,
T tokens here, N rows that are multiplied, C copies of tokens here (T K), M devices of a group over
`expert`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbig.arrays.batch_mask import real_positions
from jaxbig.arrays.dtypes import HIGHEST, upcast
from jaxbig.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, choose
from jaxbig.distributed.logical_axes import as_tuple, platform
from jaxbig.errors import Refused
from jaxbig.models.layers.basic import ACTIVATIONS
from jaxbig.models.layers.parameters import (
    Axes,
    chunked_sum,
    constrain,
    parameter,
    sharded_parameter,
)

INWARD = ("experts", "embed", "mlp")
OUTWARD = ("experts", "mlp", "embed")
LOSSES = "losses"
"""The collection of what a model adds to the loss in training: sums over tokens, as losses are."""
Dispatch = Literal["gather", "all_to_all"]
TILE = 32
"""Rows that one expert is given at a time on a CPU, where a ragged product is ten times slower than
tiles."""


class Experts(nn.Module):
    """Each token's vector goes through the `chosen` experts that its router scores highest, and
    their outputs are added by the softmax of those scores (Jiang et al., 2024, Mixtral, section
    2.1). Dropless: every copy is computed.

    In training two terms are added to the loss, sums over tokens, so that parts and devices change
    nothing. Balance: `load_balance_loss * E / K * sum_e f_e P_e`, f_e the share of a row's copies
    that expert e gets (times K), P_e its mean probability: Fedus et al. (2021, eq. 4), taken in
    each row as DeepSeek-AI (2024, V3, eq. 17 to 20) do; it is `load_balance_loss` where all are
    even. And `router_z_loss * logsumexp(scores)^2` (Zoph et al., 2022, eq. 5).
    """

    experts: NonNegativeInt
    """Number of experts."""
    chosen: PositiveInt
    """Number of experts that each token is routed to."""
    hidden: PositiveInt
    """Hidden width of each expert."""
    activation: str
    """Nonlinearity of the hidden layer."""
    gated: bool
    """Multiply the hidden layer by a gate (Shazeer, 2020)."""
    chunks: NonNegativeInt = 0
    """Chunks of the hidden width that are computed one at a time; 0: all at once."""
    load_balance_loss: NonNegativeFloat = 0.0
    """Weight of the load-balancing loss."""
    router_z_loss: NonNegativeFloat = 0.0
    """Weight of the router's z-loss."""
    scale: float = 1.0
    """Of the last product's initial values."""
    dispatch: Dispatch = "gather"
    """How tokens reach experts on other devices."""
    weigh_hidden: bool = False
    """Multiply the hidden activations by the router's weight, not the output."""

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """[B, L, D], and segments [B, L], 0 for padding -> [B, L, D], 0 at padding.

        Without segments the batch's mask says what is padding. No expert computes it, and the added
        terms leave it out.
        """
        if not 1 <= self.chosen <= self.experts:
            raise Refused(
                f"experts_per_token {self.chosen} of experts {self.experts}: make it 1 to "
                f"{self.experts}."
            )
        width = x.shape[-1]
        router = parameter(
            self,
            "router_kernel",
            nn.initializers.normal(width**-0.5),
            (width, self.experts),
            ("embed", None),
        )
        # router in float32: top-k is sensitive to rounding
        scores = jnp.tensordot(upcast(x), router, axes=1, precision=HIGHEST)  # [B, L, E]
        scores = constrain(scores, "batch", "length", None)
        best, numbers = jax.lax.top_k(scores, self.chosen)  # [B, L, K] each
        real = real_positions(*x.shape[:2]) if segments is None else segments > 0  # [B, L]
        if not self.is_initializing():
            self._add_losses(scores, numbers, real)
        if real is not None:
            numbers = jnp.where(real[..., None], numbers, self.experts)  # none of them
        names = ["up_kernel", "gate_kernel"] if self.gated else ["up_kernel"]
        kernels = [
            sharded_parameter(self, name, _initial(1.0), (self.experts, width, self.hidden), INWARD)
            for name in names
        ]
        last = sharded_parameter(
            self, "down_kernel", _initial(self.scale), (self.experts, self.hidden, width), OUTWARD
        )
        y = over_mesh(self._mix, self.dispatch)(x, nn.softmax(best), numbers, *kernels, last)
        return constrain(y, "batch", "length", None)

    def _add_losses(self, scores: jax.Array, numbers: jax.Array, real: jax.Array | None) -> None:
        seen = True if real is None else real
        real = jnp.broadcast_to(seen, scores.shape[:2]).astype(scores.dtype)  # [B, L]
        count = jnp.sum(real, axis=1)[:, None]  # [B, 1]
        taken = (
            jnp.sum(jax.nn.one_hot(numbers, self.experts), axis=2) * real[:, :, None]
        )  # [B, L, E]
        share = jnp.sum(taken, axis=1) / jnp.maximum(count, 1)  # [B, E]
        mean = jnp.sum(nn.softmax(scores) * real[:, :, None], axis=1) / jnp.maximum(
            count, 1
        )  # [B, E]
        even = (
            jnp.sum(share * mean, axis=1, keepdims=True) * self.experts / self.chosen
        )  # [B, 1], 1 where even
        square = jnp.square(nn.logsumexp(scores, axis=-1)) * real
        terms = self.load_balance_loss * jnp.sum(even * count) + self.router_z_loss * jnp.sum(
            square
        )
        self.sow(
            LOSSES, "router", terms, init_fn=lambda: jnp.zeros((), terms.dtype), reduce_fn=jnp.add
        )

    def _mix(
        self,
        x: jax.Array,
        weights: jax.Array,
        numbers: jax.Array,
        *kernels: jax.Array,
        first: Any,
        gather: Any,
    ) -> jax.Array:
        """Rows [B, L, D], the weights and numbers [B, L, K] of their experts, and the experts from
        `first` on, [E, D, F] and [E, F, D] as they are stored -> what these make of the rows [B, L,
        D]."""
        # [T, D]
        tokens = x.reshape(-1, x.shape[-1])
        experts = len(kernels[0])
        places, here, sizes, count = route(numbers.reshape(-1) - first, experts)
        chosen = numbers.shape[-1]
        copies = jnp.arange(places.shape[0]) // chosen
        source = jnp.zeros(count, jnp.int32).at[places].set(copies)  # the token in each row
        real = (
            jnp.zeros(count, bool).at[places].set(here)[:, None]
        )  # what no expert here is given must not be read
        rows = jnp.where(real, tokens[source], 0)  # [N, D]
        of_rows = None
        if self.weigh_hidden:
            of_rows = jnp.zeros((count, 1), weights.dtype).at[places, 0].set(weights.reshape(-1))

        def work(rows: jax.Array, *kernels: jax.Array) -> jax.Array:
            # [N, F]
            y = grouped_matmul(rows, kernels[0], sizes)
            act = ACTIVATIONS[self.activation]
            y = y * act(grouped_matmul(rows, kernels[1], sizes)) if self.gated else act(y)
            if of_rows is not None:
                y = (upcast(y) * of_rows).astype(y.dtype)
            return grouped_matmul(y, kernels[-1], sizes)  # [N, D]

        axes = [INWARD] * (len(kernels) - 1) + [OUTWARD]
        y = chunked_sum(
            self.chunks, "mlp", work, rows, list(zip(kernels, axes, strict=True)), gather
        )
        y = upcast(y[places])  # [T K, D]
        y = jnp.where(here[:, None], y, 0)
        if not self.weigh_hidden:
            y = y * weights.reshape(-1, 1)
        return jnp.sum(y.reshape(-1, chosen, y.shape[-1]), axis=1).reshape(x.shape).astype(x.dtype)


def _initial(scale: float) -> Any:
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal", batch_axis=0)


def route(numbers: jax.Array, experts: int) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """The expert of each copy [T K], 0 to E or another -> the place of each copy in rows that are
    sorted by expert, whether it is one of these experts', how many rows each expert has [E], and
    N."""
    tile = TILE if platform() == "cpu" else 1
    here = (numbers >= 0) & (numbers < experts)
    numbers = jnp.where(here, numbers, experts)
    sizes = jnp.bincount(numbers, length=experts + 1)
    rooms = -(-sizes // tile) * tile  # whole tiles
    order = jnp.argsort(numbers, stable=True)
    rank = (
        jnp.arange(numbers.shape[0]) - (jnp.cumsum(sizes) - sizes)[numbers[order]]
    )  # within its expert
    places = jnp.zeros_like(order).at[order].set((jnp.cumsum(rooms) - rooms)[numbers[order]] + rank)
    count = -(-(numbers.shape[0] + (experts + 1) * (tile - 1)) // tile) * tile
    return places, here, rooms[:experts], count


def grouped_matmul(rows: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows [N, D], the first sizes[0] of the first expert and so on, times kernels [E, D, F] -> [N,
    F]."""
    if platform() != "cpu":
        return jax.lax.ragged_dot(rows, kernels, sizes.astype(jnp.int32))
    tiles = rows.reshape(-1, TILE, rows.shape[-1])
    whose = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(tiles.shape[0]) * TILE, side="right")
    each = kernels[jnp.minimum(whose, len(kernels) - 1)]  # [N / TILE, D, F]
    return jnp.einsum("ntd,ndf->ntf", tiles, each).reshape(rows.shape[0], -1)


def over_mesh(
    mix: Callable[..., jax.Array], dispatch: Dispatch = "gather"
) -> Callable[..., jax.Array]:
    """`mix` on each device, with the rows of its group over `expert` and the experts that are here.

    A product of ragged groups cannot be split by the partitioner, so it is said who does what: over
    `expert` the tokens are gathered and the outputs scattered again, or each copy of a token goes
    to its expert's device and home (`exchanged`); over the axes of `mlp` each has a piece of the
    hidden width. To gather, a device has M T D numbers in each of the two collectives.
    """
    choose("expert_dispatch", dispatch, Dispatch)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not nn.get_logical_axis_rules():
        return lambda *arguments: mix(
            *arguments, first=0, gather=lambda kernel, _, dtype: kernel.astype(dtype)
        )
    placed: Any = map(nn.logical_to_mesh_axes, (INWARD, OUTWARD, ("batch", "length", "mlp")))
    inward, outward, tokens = placed
    rows = PartitionSpec(*tokens[:2])
    spread = as_tuple(inward[0])
    wide = tuple(axis for axis in as_tuple(inward[2]) if axis != "fsdp")
    if spread not in ((), ("expert",)) or set(wide) & {
        axis for each in rows for axis in as_tuple(each)
    }:
        raise Refused(
            f"a mixture's experts are split over expert or none, and their mlp over no axis of the "
            f"tokens, not over {'+'.join(spread)} and {'+'.join(wide)}: change --mesh.overrides."
        )

    sends = spread and mesh.shape["expert"] > 1 and dispatch == "all_to_all"

    def local(
        x: jax.Array, weights: jax.Array, numbers: jax.Array, *kernels: jax.Array
    ) -> jax.Array:
        if sends:
            given = functools.partial(mix, first=0, gather=gather)
            return jax.lax.psum(exchanged(given, x, weights, numbers, *kernels), wide)
        first = jax.lax.axis_index("expert") * len(kernels[0]) if spread else jnp.int32(0)
        if apart := spread and mesh.shape["expert"] > 1:
            x, weights, numbers = (
                jax.lax.all_gather(each, "expert", axis=0, tiled=True)
                for each in (x, weights, numbers)
            )
        y = jax.lax.psum(mix(x, weights, numbers, *kernels, first=first, gather=gather), wide)
        return jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True) if apart else y

    def gather(kernel: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
        kernel = kernel.astype(dtype)
        for at, names in enumerate(nn.logical_to_mesh_axes(axes) or ()):
            if "fsdp" in as_tuple(names):
                kernel = jax.lax.all_gather(kernel, "fsdp", axis=at, tiled=True)
        return kernel

    def mapped(
        x: jax.Array, weights: jax.Array, numbers: jax.Array, *kernels: jax.Array
    ) -> jax.Array:
        specs = (rows, rows, rows, *[inward] * (len(kernels) - 1), outward)
        # jax 0.10.2 takes the result of a ragged all-to-all for the same on all devices, and sums
        # its gradient over them if it checks what varies
        placed = jax.shard_map(local, in_specs=specs, out_specs=rows, check_vma=not sends)
        return placed(x, weights, numbers, *kernels)

    return mapped


def exchanged(
    mix: Callable[..., jax.Array],
    x: jax.Array,
    weights: jax.Array,
    numbers: jax.Array,
    *kernels: jax.Array,
) -> jax.Array:
    """Like `mix`, of rows [B, L, D] and all experts, with each copy sent to the device of its
    expert, and what that makes of it sent home (Lepikhin et al., 2020, section 3.2; dropless as
    Gale et al., 2022).

    A device sends C D numbers there and C D back, and again in the backward pass: less than it
    gathers where K is below M. There is room for all copies of the group, which may want one
    expert.

    Args:
      mix: of rows [1, M C, D], their weights and numbers [1, M C, 1], and the kernels.
      x: [B, L, D].
      weights: [B, L, K].
      numbers: [B, L, K], of all experts; as many as there are: none.
      *kernels: of this device's experts.
    """
    here = len(kernels[0])
    devices = jax.lax.axis_size("expert")
    wanted = numbers.reshape(-1)  # [C]
    copies = wanted.shape[0]
    order = jnp.argsort(wanted, stable=True)
    sizes = jnp.bincount(wanted, length=devices * here + 1)[:-1].reshape(devices, here)
    arriving = jax.lax.all_to_all(sizes, "expert", 0, 0)  # [M, E / M], of each device
    paths = Paths(sizes.sum(1).astype(jnp.int32), arriving.sum(1).astype(jnp.int32), copies)
    rows = paths.there(x.reshape(-1, x.shape[-1])[order // numbers.shape[-1]])  # [M C, D]
    ends = jnp.cumsum(arriving, axis=1)
    whose = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(copies), side="right"))(ends)
    one = jnp.ones((1, devices * copies, 1), weights.dtype)
    made = mix(rows[None], one, whose.reshape(1, -1, 1), *kernels)[0]
    places = jnp.zeros_like(order).at[order].set(jnp.arange(copies))
    y = upcast(paths.home(made)[places])  # [C, D]
    y = jnp.where((wanted < devices * here)[:, None], y, 0) * weights.reshape(-1, 1)
    y = jnp.sum(y.reshape(-1, numbers.shape[-1], y.shape[-1]), axis=1)
    return y.reshape(x.shape).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Paths:
    """Rows [C, D], sorted by the device over `expert` that they go to, as each receives them: from
    each device C, those that were sent first [M C, D].

    XLA for CPUs has no ragged all-to-all: there each device sends all others room for C rows.
    """

    sent: jax.Array
    """How many of the rows go to each device: [M]; those after them to none."""
    received: jax.Array
    """How many rows come from each device: [M]."""
    copies: int
    """C."""

    def there(self, rows: jax.Array) -> jax.Array:
        """[C, D] -> [M C, D]; what was not sent has any value."""
        begins = jnp.cumsum(self.sent) - self.sent
        if platform() == "cpu":
            at = begins[:, None] + jnp.arange(self.copies)[None]
            padded = jnp.take(rows, at, axis=0, mode="clip")  # [M, C, D]
            return jax.lax.all_to_all(padded, "expert", 0, 0).reshape(-1, rows.shape[-1])
        room = jnp.zeros((len(self.sent) * self.copies, rows.shape[-1]), rows.dtype)
        mine = jnp.full_like(self.sent, jax.lax.axis_index("expert") * self.copies)
        return jax.lax.ragged_all_to_all(
            rows, room, begins, self.sent, mine, self.received, axis_name="expert"
        )

    def home(self, rows: jax.Array) -> jax.Array:
        """[M C, D] -> [C, D]; what was not sent has any value."""
        ends = jnp.cumsum(self.sent)
        begins = ends - self.sent
        devices = len(self.sent)
        if platform() == "cpu":
            back = jax.lax.all_to_all(rows.reshape(devices, self.copies, -1), "expert", 0, 0)
            row = jnp.arange(self.copies)
            device = jnp.minimum(jnp.searchsorted(ends, row, side="right"), devices - 1)
            return back[device, row - begins[device]]
        room = jnp.zeros((self.copies, rows.shape[-1]), rows.dtype)
        blocks = jnp.arange(devices, dtype=jnp.int32) * self.copies
        theirs = jax.lax.all_to_all(begins, "expert", 0, 0, tiled=True)
        return jax.lax.ragged_all_to_all(
            rows, room, blocks, self.received, theirs, self.sent, axis_name="expert"
        )
