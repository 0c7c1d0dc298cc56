"""The splash attention kernel for TPUs (Pallas, comes with jax), placed on a mesh.

Letters in shape comments: B batch, T queries, S keys, H heads, G heads of keys and values, K width of a head.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as pallas
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jaxbig.errors import Refused
from jaxbig.mesh import platform


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    window: int | None,
    segments: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """As `attend`: [B, T, H, K] and [B, S, G, K] -> [B, T, H, K]. Elsewhere than on a TPU it is interpreted, slowly.

    A kernel is a program for one device, so under a mesh it is given each device's rows and heads by shard_map.
    """
    if query.shape[1] % 128 or key.shape[1] % 128:
        raise Refused(f"kernel 'splash' takes lengths in 128s, not {query.shape[1]} and {key.shape[1]}.")
    mesh = jax.sharding.get_abstract_mesh()
    if not nn.get_logical_axis_rules():
        return _local(query, key, value, segments, causal, window)
    rows = nn.logical_to_mesh_axes(("batch", None))
    heads = nn.logical_to_mesh_axes(("batch", None, "heads", None))

    def local(query: Any, key: Any, value: Any, segments: Any) -> jax.Array:
        return _local(query, key, value, segments, causal, window)

    few = nn.logical_to_mesh_axes(("batch", None, None, None)) if key.shape[2] == 1 else heads
    specs = heads, few, few, None if segments is None else (rows, rows)
    placed = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return placed(query, key, value, segments)


def _local(query: Any, key: Any, value: Any, segments: Any, causal: bool, window: int | None) -> jax.Array:
    shape = query.shape[1], key.shape[1]
    mask: masks.Mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    if window is not None:
        mask = mask & masks.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
    every_head = masks.MultiHeadMask([mask] * query.shape[2])
    interpret = platform() != "tpu"
    kernel = pallas.make_splash_mha(every_head, head_shards=1, q_seq_shards=1, interpret=interpret)
    query = query * query.shape[-1] ** -0.5
    heads_first = [each.swapaxes(1, 2) for each in (query, key, value)]  # [B, H or G, T or S, K]
    run: Any = kernel
    if segments is None:
        out = jax.vmap(run)(*heads_first)
    else:
        out = jax.vmap(lambda q, k, v, t, s: run(q, k, v, pallas.SegmentIds(t, s)))(*heads_first, *segments)
    return out.swapaxes(1, 2)
