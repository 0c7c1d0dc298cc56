"""The whole of what training changes, and the digest that says two runs are the same run."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

HOST = "pinned_host"
"""JAX's name of the memory of a host that its devices reach."""


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text: `params/layers_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, in path order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return dict(sorted((path_name(path), leaf) for path, leaf in flat))


def whole(leaf: Any) -> np.ndarray:
    """A leaf on this host; of several processes all must ask for it."""
    if (
        isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == HOST
    ):  # of which no process sees all
        leaf = jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
    here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    return np.asarray(leaf if here else multihost_utils.process_allgather(leaf, tiled=True))


def apart_on_host(state: Any) -> Any:
    """The state with its leaves in host memory copied, for whoever reads them while training goes on.

    Reading such a leaf makes no copy: it holds the buffer itself, and a GPU then refuses to let the next step reuse it
    ("Donation requested for buffer with external reference", jax 0.11.2).
    """

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
