"""Shardings of batches and parameters on a mesh, and the transfer of a batch to the devices."""

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.arrays.tree import HOST, flatten_with_paths
from jaxbig.distributed.logical_axes import ROWS, RULES, Rules, as_tuple
from jaxbig.errors import Refused


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Splits axis 0 over `ROWS`, replicates the others; for an array of any rank."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def host_memory_shardings(shapes: Any, shardings: Any, mesh: jax.sharding.Mesh) -> Any:
    """The same shardings in the hosts' memory; scalars stay on the devices.

    Raises:
      Refused: the platform has no such memory.
    """
    kinds = [memory.kind for memory in mesh.devices.flat[0].addressable_memories()]
    if HOST not in kinds:
        raise Refused(
            f"--offload: this platform has no {HOST} memory, only {', '.join(kinds)}: leave it out."
        )
    return jax.tree.map(
        lambda x, at: at.with_memory_kind(HOST) if x.ndim else at, shapes, shardings
    )


def local_rows(mesh: jax.sharding.Mesh, batch: int) -> np.ndarray:
    """The rows of a batch on this process's devices, in order."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique([np.arange(batch)[index] for index in indices if index is not None])


def device_put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch (see `local_rows`) on its devices, as global arrays."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    mine = len(local_rows(mesh, parts))

    def put(rows: np.ndarray) -> jax.Array:
        size = len(rows) // mine * parts
        positions = local_rows(mesh, size)

        def part(index: Any) -> np.ndarray:
            start, end, _ = index[0].indices(size)
            return rows[slice(*np.searchsorted(positions, (start, end)))]

        return jax.make_array_from_callback((size, *rows.shape[1:]), batch_sharding(mesh), part)

    return {name: put(rows) for name, rows in batch.items()}


def check_batch(batch: int, mesh: jax.sharding.Mesh) -> None:
    """Raises `Refused` unless the rows of a batch divide over the mesh."""
    over = math.prod(mesh.shape[axis] for axis in ROWS)
    if batch % over:
        text = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in ROWS if mesh.shape[axis] > 1)
        raise Refused(
            f"--data.batch {batch} does not divide over {text} = {over} devices: "
            f"make it a multiple of {over}, or change the mesh."
        )


def check_length(length: int, mesh: jax.sharding.Mesh, option: str = "--data.length") -> None:
    """Raises `Refused` unless the length of a row divides over the mesh."""
    if length % mesh.shape["sequence"]:
        raise Refused(
            f"{option} {length} does not divide over sequence={mesh.shape['sequence']}: "
            f"make it a multiple, or change the mesh."
        )


def parameter_shardings(boxed: Any, mesh: jax.sharding.Mesh, rules: Rules = RULES) -> Any:
    """The `NamedSharding` of each parameter.

    Args:
      boxed: variables boxed with the names of their axes.
      mesh: the device mesh.
      rules: logical axis -> mesh axes.

    Raises:
      Refused: a name has no rule, two axes need the same mesh axis, or a size does not divide.
    """
    logical = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(logical, mesh, rules)
    first_rules = dict(reversed(rules))  # of each name
    names = flatten_with_paths(logical)
    chosen = flatten_with_paths(shardings)
    box = nn.meta.AxisMetadata
    # `nn.meta.unbox` would put arrays on the devices of another program's active mesh
    shapes = jax.tree.map(
        lambda x: x.value if isinstance(x, box) else x,  # type: ignore[attr-defined]
        boxed,
        is_leaf=lambda x: isinstance(x, box),
    )
    for path, leaf in flatten_with_paths(shapes).items():
        for size, name, axes in zip(leaf.shape, names[path], chosen[path].spec, strict=False):
            what = f"parameter {path} of shape {tuple(leaf.shape)}: its axis '{name}' of {size}"
            if name is not None and name not in first_rules:
                raise Refused(f"{what} has no rule; {', '.join(first_rules)} have.")
            if name is not None and first_rules[name] != axes:
                raise Refused(
                    f"{what} is to be split over {'+'.join(as_tuple(first_rules[name]))}, some of "
                    f"which another of its axes {', '.join(map(str, names[path]))} takes: change "
                    f"one's rule with --mesh.overrides."
                )
            over = {axis: mesh.shape[axis] for axis in as_tuple(axes)}
            if size % math.prod(over.values()):
                text = " x ".join(f"{axis}={size}" for axis, size in over.items())
                raise Refused(f"{what} does not divide over {text}: change that size or the mesh.")
    return shardings
