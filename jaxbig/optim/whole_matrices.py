"""Applies a function to whole matrices that a mesh shards: each device gets some of them.

Where a matrix is in shards, products of matrices would need a collective each. Here the matrices of
one shape and sharding, of all layers, experts and parameters, are one stack [N, rows, columns]; one
all-to-all for each sharded side makes N / devices whole matrices on each device, and its inverse
puts the results back.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbig.arrays.tree import path_name
from jaxbig.optim.matrix_axes import Axes, Layout, layout, matrix_shape

MeshAxes = tuple[str, ...]


class Kind(NamedTuple):
    """Matrices that are in one stack: their size, and the mesh axes that split each side."""

    rows: int
    columns: int
    dtype: Any
    split_stack: MeshAxes
    split_rows: MeshAxes
    split_columns: MeshAxes


def on_whole_matrices(function: Callable[[jax.Array], jax.Array], tree: Any, axes: Axes) -> Any:
    """A tree of matrices, each replaced by the function's result for it.

    The active mesh and rules say how the leaves are sharded.

    Args:
      function: [N, rows, columns] -> the same shape; it treats each matrix by itself, and permuted
        rows or columns as the same matrix so permuted.
      tree: parameters, or arrays of their shapes; none of them is a vector.
      axes: their logical axes.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    kinds: dict[Kind, list[int]] = {}
    layouts: list[Layout] = []
    for at, (path, leaf) in enumerate(leaves):
        found = layout(path_name(path), leaf.shape, axes)
        layouts.append(found)
        _, rows, columns = matrix_shape(leaf.shape, found)
        split = mesh_axes(axes.get(path_name(path), ()), leaf.ndim)
        sides = [
            tuple(name for axis in side for name in split[axis])
            for side in (found.stack, found.rows, found.columns)
        ]
        kinds.setdefault(Kind(rows, columns, leaf.dtype, *sides), []).append(at)
    done: dict[int, jax.Array] = {}
    for kind, members in kinds.items():
        arrays = [leaves[at][1] for at in members]
        names = [axes.get(path_name(leaves[at][0]), ()) for at in members]
        results = of_one_kind(function, kind, arrays, [layouts[at] for at in members], names)
        done |= dict(zip(members, results, strict=True))
    return jax.tree.unflatten(structure, [done[at] for at in range(len(leaves))])


def mesh_axes(names: Any, ndim: int) -> list[MeshAxes]:
    """The axes of the active mesh, larger than 1, that split each axis of a parameter."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return [()] * ndim
    spec = tuple(nn.logical_to_mesh_axes(tuple(names)) or ())
    spec += (None,) * (ndim - len(spec))
    split = [(each,) if isinstance(each, str) else tuple(each or ()) for each in spec]
    return [tuple(name for name in each if mesh.shape[name] > 1) for each in split]


def of_one_kind(
    function: Callable[[jax.Array], jax.Array],
    kind: Kind,
    arrays: list[jax.Array],
    layouts: list[Layout],
    names: list[Any],
) -> list[jax.Array]:
    """The function's results for arrays of one kind, each sharded as it was."""
    mesh = jax.sharding.get_abstract_mesh()
    sharded = {*kind.split_stack, *kind.split_rows, *kind.split_columns}
    copied = (
        ()
        if mesh.empty
        else tuple(name for name in mesh.axis_names if mesh.shape[name] > 1 and name not in sharded)
    )

    def local(*shards: jax.Array) -> tuple[jax.Array, ...]:
        stacks = [to_stack(shard, found) for shard, found in zip(shards, layouts, strict=True)]
        sizes = [len(stack) for stack in stacks]
        x = jnp.concatenate(stacks)
        parts = math.prod(
            mesh.shape[name] for name in (*copied, *kind.split_rows, *kind.split_columns)
        )
        x = jnp.pad(x, ((0, -len(x) % parts), (0, 0), (0, 0)))
        if copied:
            count = math.prod(mesh.shape[name] for name in copied)
            x = x.reshape(count, -1, *x.shape[1:])[jax.lax.axis_index(copied)]
        for side, over in ((1, kind.split_rows), (2, kind.split_columns)):
            x = jax.lax.all_to_all(x, over, 0, side, tiled=True) if over else x
        x = function(x)
        for side, over in ((2, kind.split_columns), (1, kind.split_rows)):
            x = jax.lax.all_to_all(x, over, side, 0, tiled=True) if over else x
        if copied:
            x = jax.lax.all_gather(x, copied, tiled=True)
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        pieces = jnp.split(x[: ends[-1]], ends[:-1])
        return tuple(
            from_stack(piece, shard.shape, found)
            for piece, shard, found in zip(pieces, shards, layouts, strict=True)
        )

    if mesh.empty:
        return list(local(*arrays))
    specs = tuple(
        PartitionSpec(*mesh_axes(each, array.ndim))
        for each, array in zip(names, arrays, strict=True)
    )
    return list(jax.shard_map(local, in_specs=specs, out_specs=specs, check_vma=False)(*arrays))


def to_stack(x: jax.Array, found: Layout) -> jax.Array:
    """A parameter as its matrices [N, rows, columns]."""
    x_of = (*found.stack, *found.rows, *found.columns)
    return x.transpose(x_of).reshape(matrix_shape(x.shape, found))


def from_stack(matrices: jax.Array, shape: tuple[int, ...], found: Layout) -> jax.Array:
    """The inverse: matrices [N, rows, columns] as a parameter of that shape."""
    order = (*found.stack, *found.rows, *found.columns)
    back = sorted(range(len(order)), key=order.__getitem__)
    return matrices.reshape([shape[at] for at in order]).transpose(back)
