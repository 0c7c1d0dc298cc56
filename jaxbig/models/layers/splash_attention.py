"""The splash attention kernel for TPUs (Pallas, comes with jax), placed on the current mesh.

Letters in shape comments: B batch, T queries, S keys, H heads, G heads of keys and values, K width
of a head.
"""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as pallas
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.distributed.logical_axes import active_axes, platform
from jaxbig.errors import Refused
from jaxbig.models.layers.attention_mask import Segments


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool,
    window: int | None,
    segments: Segments,
    scale: float | None = None,
    cap: float | None = None,
    block: int = 1024,
    fused: bool = False,
) -> jax.Array:
    """As `attend`: [B, T, H, K] and [B, S, G, K] -> [B, T, H, K]. Elsewhere than on a TPU it is
    interpreted, slowly.

    A kernel is a program for one device, so under a mesh it is given each device's rows, queries
    and heads by shard_map, all keys of these, and its own part of the mask.

    block: the most queries, and the most keys, that a step of the kernel takes; fused: one kernel
    makes all gradients, and the queries' for each block of keys, which are then added.
    """
    lengths = query.shape[1], key.shape[1]
    queries: Any = nn.logical_to_mesh_axes(("batch", "length", "heads", None)) or (None,) * 4
    over = [math.prod(active_axes(names).values()) for names in queries]
    if lengths[0] % (128 * over[1]) or lengths[1] % 128:
        each = f", of queries on each of {over[1]} devices," if over[1] > 1 else ""
        raise Refused(
            f"kernel 'splash' takes lengths in 128s{each} not {lengths[0]} and {lengths[1]}."
        )
    if key.shape[2] > 1 and key.shape[2] % over[2]:
        raise Refused(
            f"kernel 'splash' cannot split {key.shape[2]} heads of keys over {over[2]} devices "
            f"(tensor)."
        )
    if not causal and (window is None or window >= max(lengths)):
        # the same for all queries: of such a mask jax 0.10.2 cannot make parts
        mask: masks.Mask = masks.FullMask((lengths[0] // over[1], lengths[1]))
        parts = 1
        place = None
    else:
        mask = masks.CausalMask(lengths) if causal else masks.FullMask(lengths)
        if window is not None:
            mask = mask & masks.LocalMask(lengths, (window - 1, 0 if causal else window - 1), 0)
        parts = over[1]
        place = queries[1]
    every_head = masks.MultiHeadMask([mask] * query.shape[2])
    kernel = pallas.make_splash_mha(
        every_head,
        head_shards=over[2],
        q_seq_shards=parts,
        block_sizes=block_sizes(lengths[0] // over[1], lengths[1], block, fused=fused),
        attn_logits_soft_cap=cap,
        interpret=platform() != "tpu",
    )
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if not nn.get_logical_axis_rules():
        return _local(kernel, query, key, value, segments)
    rows = queries[0]
    mesh = jax.sharding.get_abstract_mesh()
    keys = PartitionSpec(rows, None, None if key.shape[2] == 1 else queries[2])
    pair = None if segments is None else (PartitionSpec(*queries[:2]), PartitionSpec(rows))
    of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(queries[2], place)))
    placed = jax.shard_map(
        _local, in_specs=(of_kernel, queries, keys, keys, pair), out_specs=queries, check_vma=False
    )
    return placed(kernel, query, key, value, segments)


def block_sizes(queries: int, keys: int, most: int, *, fused: bool = False) -> pallas.BlockSizes:
    """The tiles of the three kernels (forward, gradients of queries, of keys and values).

    jax's own are 128, at which more than half of a step's time is the loop's overhead.

    Args:
      queries: how many a device has, in 128s.
      keys: how many a device has, in 128s.
      most: the largest tile; each is a divisor of its length, in 128s.
      fused: whether one kernel makes all gradients.
    """
    if most < 128:
        raise Refused(f"splash_block {most}: the kernel takes blocks in 128s, so at least 128.")

    def fitting(length: int) -> int:
        return max(size for size in range(128, min(most, length) + 1, 128) if not length % size)

    rows = fitting(queries)
    columns = fitting(keys)
    return pallas.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=None if fused else rows,
        block_kv_dq=None if fused else columns,
        use_fused_bwd_kernel=fused,
    )


def _local(kernel: Any, query: Any, key: Any, value: Any, segments: Any) -> jax.Array:
    heads_first = [each.swapaxes(1, 2) for each in (query, key, value)]  # [B, H or G, T or S, K]
    if segments is None:
        out = jax.vmap(kernel)(*heads_first)
    else:
        out = jax.vmap(lambda q, k, v, t, s: kernel(q, k, v, pallas.SegmentIds(t, s)))(
            *heads_first, *segments
        )
    return out.swapaxes(1, 2)
