"""Trees of arrays (pytrees): paths of their leaves, and copies of leaves on the host."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

HOST = "pinned_host"
"""JAX's name for host memory that devices can access."""


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text, as in `params/layers_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_with_paths(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, in path order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return dict(sorted((path_name(path), leaf) for path, leaf in flat))


def to_host(leaf: Any) -> np.ndarray:
    """Copies a whole leaf to this host; every process of a run must call this."""
    # a sharded array in host memory is not fully visible to any process
    if isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == HOST:
        leaf = jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
    here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    return np.asarray(leaf if here else multihost_utils.process_allgather(leaf, tiled=True))


def copy_host_leaves(state: Any) -> Any:
    """Copies those leaves of the state that are in host memory, to be read while training
    continues.

    Reading such a leaf directly makes no copy but holds its buffer, and a GPU then refuses to
    donate the buffer to the next step ("Donation requested for buffer with external reference", jax
    0.11.2)."""

    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.sharding.memory_kind != HOST:
            return leaf
        shards = []
        for shard in leaf.addressable_shards:
            here = jax.sharding.SingleDeviceSharding(shard.device, memory_kind=HOST)
            shards.append(jax.device_put(np.array(shard.data, copy=True), here))
        return jax.make_array_from_single_device_arrays(
            leaf.shape, leaf.sharding, shards, dtype=leaf.dtype
        )

    return jax.tree.map(copy, state)
