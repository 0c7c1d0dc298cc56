"""The device mesh, and the rules that say which mesh axes a logical axis is split over.

Models name logical axes (`batch`, `embed`, `mlp`, ...); moving a run to other hardware changes the `Mesh` of
its experiment and no model.
"""

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
    """Rows over `ROWS`, the other axes whole; fits an array of any rank."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def host_memory_shardings(shapes: Any, shardings: Any, mesh: jax.sharding.Mesh) -> Any:
    """The shardings of arrays that lie in their hosts' memory, numbers aside; `Refused` if a device cannot reach it."""
    kinds = [memory.kind for memory in mesh.devices.flat[0].addressable_memories()]
    if HOST not in kinds:
        raise Refused(
            f"--offload: this platform has no {HOST} memory, only {', '.join(kinds)}: leave it out."
        )
    return jax.tree.map(
        lambda x, at: at.with_memory_kind(HOST) if x.ndim else at, shapes, shardings
    )


def local_rows(mesh: jax.sharding.Mesh, batch: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold, in order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique([np.arange(batch)[index] for index in held if index is not None])


def device_put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, those of `local_rows`, as global arrays, rows split over the mesh."""
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    mine = len(local_rows(mesh, parts))

    def place(rows: np.ndarray) -> jax.Array:
        size = len(rows) // mine * parts
        places = local_rows(mesh, size)

        def part(index: Any) -> np.ndarray:
            begin, end, _ = index[0].indices(size)
            return rows[slice(*np.searchsorted(places, (begin, end)))]

        return jax.make_array_from_callback((size, *rows.shape[1:]), batch_sharding(mesh), part)

    return {name: place(rows) for name, rows in batch.items()}


def check_batch(batch: int, mesh: jax.sharding.Mesh) -> None:
    """`Refused` unless the rows of a batch divide over the mesh."""
    over = math.prod(mesh.shape[axis] for axis in ROWS)
    if batch % over:
        text = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in ROWS if mesh.shape[axis] > 1)
        raise Refused(
            f"--data.batch {batch} does not divide over {text} = {over} devices: "
            f"make it a multiple of {over}, or change the mesh."
        )


def check_length(length: int, mesh: jax.sharding.Mesh) -> None:
    """`Refused` unless the places of a row divide over the mesh."""
    if length % mesh.shape["sequence"]:
        raise Refused(
            f"--data.length {length} does not divide over sequence={mesh.shape['sequence']}: make it a multiple, or "
            f"change the mesh."
        )


def parameter_shardings(boxed: Any, mesh: jax.sharding.Mesh, rules: Rules = RULES) -> Any:
    """A `NamedSharding` a leaf, from variables boxed with their axes' names; `Refused` if a name has no rule, two axes
    want the same mesh axis, or a size does not divide."""
    logical = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(logical, mesh, rules)
    asked = dict(reversed(rules))  # the first rule of each name
    names, placed = flatten_with_paths(logical), flatten_with_paths(shardings)
    box = nn.meta.AxisMetadata
    # `nn.meta.unbox` would place what has no place yet, where another program's mesh is active
    shapes = jax.tree.map(
        lambda x: x.value if isinstance(x, box) else x,  # type: ignore[attr-defined]
        boxed,
        is_leaf=lambda x: isinstance(x, box),
    )
    for path, leaf in flatten_with_paths(shapes).items():
        for size, name, axes in zip(leaf.shape, names[path], placed[path].spec, strict=False):
            said = f"parameter {path} of shape {tuple(leaf.shape)}: its axis '{name}' of {size}"
            if name is not None and name not in asked:
                raise Refused(f"{said} has no rule; {', '.join(asked)} have.")
            if name is not None and asked[name] != axes:
                raise Refused(
                    f"{said} is to be split over {'+'.join(as_tuple(asked[name]))}, some of which another of its axes "
                    f"{', '.join(map(str, names[path]))} takes: change one's rule with --mesh.overrides."
                )
            over = {axis: mesh.shape[axis] for axis in as_tuple(axes)}
            if size % math.prod(over.values()):
                raise Refused(
                    f"{said} does not divide over {' x '.join(f'{axis}={n}' for axis, n in over.items())}: "
                    f"change that size or the mesh."
                )
    return shardings
