"""Checksums of the copies that devices have of the same part of the state, to compare them.

A step that lacks a sum over devices, and a chip that computes wrongly, leave copies that differ;
the loss does not show it for long.

Letters in shape comments: D devices, N leaves of the state with copies.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxbig.arrays.tree import flatten_with_paths


def copied_leaves(state: Any) -> dict[str, Any]:
    """The leaves, by path, of which several devices have the same part in their memory.

    Args:
      state: arrays, or their shapes, with shardings over a mesh.
    """
    leaves = flatten_with_paths(state)
    return {path: leaf for path, leaf in leaves.items() if _has_copies(leaf.sharding, leaf.shape)}


def _has_copies(sharding: jax.sharding.NamedSharding, shape: tuple[int, ...]) -> bool:
    on_host = sharding.memory_kind not in (None, "device", "unpinned_host")
    parts = math.prod(shape) // max(math.prod(sharding.shard_shape(shape)), 1)
    return not on_host and parts < sharding.mesh.size


def make_checksums(state: Any, mesh: jax.sharding.Mesh) -> Callable[[Any], jax.Array]:
    """Returns the compiled `state -> checksums` [D, N] of what each device of the mesh has, uint32.

    Args:
      state: arrays or shapes, as of `copied_leaves`.
      mesh: of the state.
    """
    copied = copied_leaves(state)
    specs = [leaf.sharding.spec for leaf in copied.values()]

    def of_device(leaves: list[jax.Array]) -> jax.Array:
        sums = jnp.stack([checksum(leaf) for leaf in leaves])  # [N]
        return jax.lax.all_gather(sums, mesh.axis_names)  # [D, N]

    @jax.jit
    def of_all(state: Any) -> jax.Array:
        mapped = jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=PartitionSpec(),
            check_vma=False,  # copies may differ: that is what is asked
        )
        leaves = flatten_with_paths(state)
        return mapped([leaves[path] for path in copied])

    return of_all


def checksum(x: jax.Array) -> jax.Array:
    """The sum of an array's bits in words, each times an odd number by its place, modulo 2^32: no
    change of one word leaves it as it was; uint32."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32).ravel()
    places = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
    return jnp.sum(words * places, dtype=jnp.uint32)


def differing(state: Any, mesh: jax.sharding.Mesh, checksums: np.ndarray) -> dict[str, list[Any]]:
    """The leaves whose copies differ, by path: the devices that have another one than most, or all
    where no copy is that of most.

    Args:
      state: arrays or shapes, as of `copied_leaves`.
      mesh: of the state.
      checksums: [D, N], of `make_checksums`.
    """
    number = {device: row for row, device in enumerate(mesh.devices.flat)}
    found: dict[str, list[Any]] = {}
    for column, (path, leaf) in enumerate(copied_leaves(state).items()):
        groups: dict[str, list[Any]] = defaultdict(list)
        for device, part in leaf.sharding.devices_indices_map(leaf.shape).items():
            groups[str(part)].append(device)
        for devices in groups.values():
            sums = [int(checksums[number[device], column]) for device in devices]
            [(most, count)] = Counter(sums).most_common(1)
            if 2 * count <= len(sums):
                most = -1
            others = [device for device, of in zip(devices, sums, strict=True) if of != most]
            if others:
                found.setdefault(path, []).extend(others)
    return found
