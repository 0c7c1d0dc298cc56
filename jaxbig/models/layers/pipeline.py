"""Pipeline parallelism: microbatches pass through stages of layers (GPipe; Huang et al., 2019).

Each device over the mesh's `stage` has the layers of one stage. At each of M + S - 1 ticks all S
stages work, each on another one of M microbatches, and hand what they made to the next stage. So
S - 1 of the ticks are a stage's wait for its first microbatch and after its last one: the bubble.

Letters in shape comments: B batch, S stages, M microbatches, N = B / M rows of a microbatch.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbig.arrays.row_parts import strided, unstrided
from jaxbig.distributed.logical_axes import STAGE, active_axes, rules_without
from jaxbig.models.layers.parameters import constrain


def stages() -> int:
    """The number of stages of the active mesh; 1 without one."""
    return active_axes(STAGE).get(STAGE, 1)


@jax.custom_vjp
def handed_on(x: jax.Array) -> jax.Array:
    """[S, ...] -> what each stage gets from the one before it, and the first from the last."""
    return jnp.roll(x, 1, axis=0)


# jax's own gradient is a sum of two padded slices, each of which would be sent
handed_on.defvjp(lambda x: (handed_on(x), None), lambda _, dx: (jnp.roll(dx, -1, axis=0),))


def through_stages(
    function: Callable[..., tuple[jax.Array, jax.Array]],
    layers: Any,
    x: jax.Array,
    rows: Any,
    microbatches: int,
) -> tuple[jax.Array, jax.Array]:
    """Applies layers to the rows of a batch, a microbatch at a time, on all stages at once.

    Which rows a microbatch has does not depend on the mesh.

    Args:
      function: `(layers, x, rows, number) -> (x, losses)`, consecutive layers applied to microbatch
        `number` [] of x [N, L, D]; losses: [], a sum over its tokens.
      layers: arrays with an axis of the layers first, a multiple of the stages.
      x: [B, L, D], B a multiple of the microbatches.
      rows: other inputs of the function, arrays [B] or [B, L, ...].
      microbatches: M.

    Returns:
      [B, L, D] and the sum of the losses.
    """
    count = stages()
    ticks = microbatches + count - 1
    inner = rules_without(STAGE)
    inner = (("layers", STAGE), *inner) if inner else ()

    def place(x: jax.Array, *first: str | None) -> jax.Array:
        axes = (*first, "batch", "length", *[None] * x.ndim)
        return constrain(x, *axes[: x.ndim])

    def of_stages(leaf: jax.Array) -> jax.Array:
        leaf = leaf.reshape(count, -1, *leaf.shape[1:])  # [S, depth / S, ...]
        if count == 1:
            return leaf
        free = [PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(STAGE, *free))

    with nn.logical_axis_rules(inner):
        layers = jax.tree.map(of_stages, layers)
        # over `stage` all rows are gathered, of which the first stage alone uses x
        rows = jax.tree.map(lambda leaf: place(strided(microbatches, place(leaf)), None), rows)
        waiting = strided(microbatches, place(x))  # [M, N, L, D]
        waiting = jnp.broadcast_to(waiting, (count, *waiting.shape))
        waiting = place(waiting, "layers", None)  # [S, M, N, L, D]
        every = jnp.arange(count)
        first = (every == 0).reshape(count, *[1] * x.ndim)
        work = jax.vmap(function, spmd_axis_name=STAGE if count > 1 else None)

        def tick(carry: Any, turn: jax.Array) -> tuple[Any, None]:
            given, waiting, losses = carry
            mine = turn - every  # [S], the microbatch of each stage
            number = mine % microbatches  # before its first and after its last: another one
            next_one = jax.lax.dynamic_index_in_dim(waiting, turn % microbatches, 1, keepdims=False)
            given = place(jnp.where(first, next_one, given), "layers")  # [S, N, L, D]
            theirs = jax.tree.map(
                lambda leaf: place(jnp.take(leaf, number, axis=0), "layers"), rows
            )
            made, more = work(layers, given, theirs, number)
            losses += jnp.sum(jnp.where((mine >= 0) & (mine < microbatches), more, 0))
            given = place(handed_on(made), "layers")
            done = turn - (count - 1)  # which is this microbatch
            at = done % microbatches
            old = jax.lax.dynamic_index_in_dim(waiting, at, 1, keepdims=False)
            new = jnp.where(first & (done >= 0), given, old)
            waiting = jax.lax.dynamic_update_index_in_dim(waiting, new, at, 1)
            return (given, place(waiting, "layers", None), losses), None

        # a stage that waits for its first microbatch works on the embedding of one: on real numbers
        given = place(waiting[:, 0], "layers")
        sum_type = jax.eval_shape(
            function,
            *(jax.tree.map(lambda leaf: leaf[0], each) for each in (layers, given)),
            jax.tree.map(lambda leaf: leaf[0], rows),
            jnp.int32(0),
        )[1]
        start = (given, waiting, jnp.zeros((), sum_type.dtype))
        (_, waiting, losses), _ = jax.lax.scan(tick, start, jnp.arange(ticks))
        # a sum, as the partitioner would gather what is of all stages to take that of the first
        x = place(unstrided(jnp.sum(jnp.where(first[:, None], waiting, 0), axis=0)))
    return constrain(x, "batch", "length", None), losses
