"""The whole of what training changes, and the digest that says two runs are the same run."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import struct
from jax.experimental import multihost_utils

HOST = "pinned_host"
"""JAX's name of the memory of a host that its devices reach."""
PIECE = 2**22
"""Bytes that are hashed at once."""


@struct.dataclass
class TrainState:
    """Every mutable thing of a run; all leaves are arrays.

    step: how many updates were made, int32 scalar. params: the model's parameters.
    variables: its other collections (`batch_stats`, recurrent carries, ...). opt_state: optax's state.
    """

    step: Any
    params: Any
    variables: Any
    opt_state: Any


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


def digests(state: Any, progress: Callable[[], None] = lambda: None) -> tuple[dict[str, str], str]:
    """The sha256 of each leaf's bytes by path, and `state_sha256`, over all leaves' bytes in path order.

    progress: called before each leaf, which may have to be gathered, and before each `PIECE` of its bytes.
    """
    all_leaves, each = hashlib.sha256(), {}
    for path, leaf in leaves(state).items():
        progress()
        data = np.ascontiguousarray(whole(leaf)).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256()
        for begin in range(0, len(data), PIECE):
            progress()
            digest.update(data[begin : begin + PIECE])
            all_leaves.update(data[begin : begin + PIECE])
        each[path] = digest.hexdigest()
    return each, all_leaves.hexdigest()


def without_optimizer(state: Any) -> Any:
    """A state, or what describes one, with all that an evaluation needs and no more."""
    return state.replace(step=None, opt_state=None)
