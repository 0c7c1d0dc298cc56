"""The gradient of the mean loss over a batch: at once, in parts one after another, or in chunks of a fixed order.

The gradient of a mean is the sum of the parts' gradients of the total loss over the sum of their weights, so parts
of unequal weight (padding) change nothing. Each part draws dropout of its own; BatchNorm sees each part by itself.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbig.arrays.batch_mask import every_row_real
from jaxbig.arrays.dtypes import upcast
from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Data
from jaxbig.distributed.logical_axes import ROWS
from jaxbig.errors import Refused
from jaxbig.models.layers.mixture_of_experts import LOSSES
from jaxbig.objectives.base import Batch, Sum, Sums
from jaxbig.program import rng
from jaxbig.program.float32_reductions import float32_sums

PLACE = "place"
"""The field of a batch that says where in the whole batch each row is."""
BY_ROW = "carry"
"""The collection whose arrays have a row for each row of the batch."""
SMALL = 2**16
"""How many numbers a leaf has at most whose chunks `reproducible` gathers whole."""
Gradient = Callable[..., tuple[Any, Sums, Any]]
"""`(params, variables, batch, step, scale) -> (gradient, sums, new variables)`; scale: what the loss is multiplied by
on the way, and the gradient divided by at its end, if it is not None."""


def make_loss(
    experiment: Experiment, mean: bool = True
) -> Callable[..., tuple[jax.Array, tuple[Sums, Any]]]:
    """`(params, variables, batch, step, part, scale) -> (mean or total loss, (sums, new variables))` in training."""

    def loss(
        params: Any,
        variables: Any,
        batch: Batch,
        step: jax.Array,
        part: Any = None,
        scale: Any = None,
    ) -> tuple[jax.Array, tuple[Sums, Any]]:
        key = rng.at_step(experiment.seed, "objective", step)
        dropout = rng.at_step(experiment.seed, "dropout", step)
        rngs = {"dropout": dropout if part is None else jax.random.fold_in(dropout, part)}
        rows = dict(batch)
        if (places := rows.pop(PLACE, None)) is not None:
            rows = experiment.data.transform(
                rows, row_keys(experiment, "augment", step, places), True
            )
        objective = lambda forward: experiment.objective(forward, rows, key, True)  # noqa: E731
        apply = nn.apply(objective, experiment.model, mutable=[*variables, LOSSES])
        with every_row_real(not experiment.data.may_leave_out()):
            sums, variables = apply({"params": params, **variables}, rngs=rngs)
        sums = with_losses(sums, variables.pop(LOSSES, {}))
        value = sums["loss"].mean_or_zero() if mean else sums["loss"].total
        return value if scale is None else value * scale, (sums, variables)

    return loss


def row_keys(
    experiment: Experiment, name: str, step: jax.Array | int, places: jax.Array
) -> jax.Array:
    """The key of each row of a batch by its place there, [B]."""
    key = rng.at_step(experiment.seed, name, step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


def with_losses(sums: Sums, terms: Any) -> Sums:
    """The sums with what parts of the model have added to the loss, which are sums over tokens too."""
    if not (each := jax.tree.leaves(terms)):
        return sums
    loss, added = sums["loss"], functools.reduce(jnp.add, map(jnp.sum, each))
    whole = {
        "loss": Sum(loss.total + added, loss.weight),
        "auxiliary_loss": Sum(added, loss.weight),
    }
    return {"cross_entropy": loss, **sums, **whole}


def make_gradient(experiment: Experiment, mesh: jax.sharding.Mesh) -> Gradient:
    """The one that the experiment asks for."""
    if experiment.reproducible:
        find = with_places(in_fixed_order(experiment, mesh), experiment)
    else:
        find = with_places(
            in_parts(experiment) if experiment.accumulate > 1 else at_once(experiment), experiment
        )
    return float32_sums(find) if experiment.precision.sums == "float32" else find


def with_places(find: Gradient, experiment: Experiment) -> Gradient:
    """The same, of batches whose rows know their places, if the data does something to them in the step."""
    if not transforms(experiment.data):
        return find

    def gradient(params: Any, variables: Any, batch: Batch, *rest: Any) -> Any:
        return find(params, variables, {**batch, PLACE: jnp.arange(batch["mask"].shape[0])}, *rest)

    return gradient


def transforms(data: Data) -> bool:
    """Whether the data does something to its batches in the step."""
    return type(data).transform is not Data.transform


def check_parts(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """`Refused` unless the batch divides into the parts or chunks that are asked for."""
    batch, parts, chunks = experiment.data.batch, experiment.accumulate, experiment.reproducible
    rows, data = math.prod(mesh.shape[axis] for axis in ROWS), mesh.shape["data"]
    if batch % (rows * parts):
        raise Refused(
            f"--data.batch {batch} does not divide over {rows} devices of {', '.join(ROWS)} times "
            f"--accumulate {parts}: make it a multiple of {rows * parts}."
        )
    if chunks and (parts > 1 or mesh.size != data or chunks % data or batch % chunks):
        raise Refused(
            f"--reproducible {chunks} with --data.batch {batch}, --accumulate {parts} and the mesh "
            f"{dict(mesh.shape)}: it must divide the batch and be a multiple of data, the only axis above 1, and "
            f"accumulate must be 1."
        )


def at_once(experiment: Experiment) -> Gradient:
    """The whole batch, its sums as the partitioner adds them up."""

    def gradient(params: Any, variables: Any, batch: Batch, step: Any, scale: Any = None) -> Any:
        find = jax.grad(make_loss(experiment), has_aux=True)
        found, (sums, variables) = find(params, variables, batch, step, None, scale)
        return unscaled(found, scale), sums, variables

    return gradient


def in_parts(experiment: Experiment) -> Gradient:
    """`accumulate` parts one after another, so that only one part's activations are in memory at a time."""
    count = experiment.accumulate
    total = jax.grad(make_loss(experiment, mean=False), has_aux=True)

    def gradient(params: Any, variables: Any, batch: Batch, step: Any, scale: Any = None) -> Any:
        def part(so_far: tuple[Any, Any], now: Any) -> tuple[Any, Any]:
            number, rows, carry = now
            gradient, others = so_far
            more, (sums, variables) = total(params, {**others, **carry}, rows, step, number, scale)
            carry, others = by_row(variables)
            return (jax.tree.map(jnp.add, gradient, more), others), (sums, carry)

        scale, (carry, others) = of_total(scale, batch), by_row(variables)
        rows, carry = (
            jax.tree.map(functools.partial(strided, count), each) for each in (batch, carry)
        )
        start = jax.tree.map(lambda leaf: jnp.zeros_like(upcast(leaf)), params), others
        (gradient, others), (sums, carry) = jax.lax.scan(
            part, start, (jnp.arange(count), rows, carry)
        )
        sums = jax.tree.map(lambda each: jnp.sum(each, axis=0), sums)
        return (
            unscaled(mean(gradient, sums), scale),
            sums,
            {**others, **jax.tree.map(unstrided, carry)},
        )

    return gradient


def in_fixed_order(experiment: Experiment, mesh: jax.sharding.Mesh) -> Gradient:
    """`reproducible` equal chunks of consecutive rows, each the same program on one device, added up in their order:
    so the bits do not depend on how many devices share the chunks. BatchNorm's running statistics are averaged."""
    count, rows, whole = experiment.reproducible, PartitionSpec(("data",)), PartitionSpec()
    share = count // mesh.shape["data"]
    total = jax.grad(make_loss(experiment, mean=False), has_aux=True)

    def local(
        params: Any, others: Any, carry: Any, batch: Batch, step: jax.Array, scale: Any
    ) -> Any:
        def chunk(now: Any) -> Any:
            number, rows, carry = jax.lax.optimization_barrier(now)
            gradient, (sums, variables) = total(
                params, {**others, **carry}, rows, step, number, scale
            )
            return jax.lax.optimization_barrier((gradient, sums, *by_row(variables)))

        numbers = jax.lax.axis_index("data") * share + jnp.arange(share)
        with nn.logical_axis_rules(()):  # each chunk is on one device: there is nothing to place
            gradient, sums, carry, others = jax.lax.map(
                chunk, (numbers, *map(chunks, (batch, carry)))
            )
        gradient, sums, others = in_turn(added_over("data"), (gradient, sums, others))
        others = jax.tree.map(lambda each: each / count, others)
        return (
            mean(gradient, sums),
            sums,
            others,
            jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carry),
        )

    def chunks(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(share, x.shape[0] // share, *x.shape[1:]), tree)

    def gradient(params: Any, variables: Any, batch: Batch, step: Any, scale: Any = None) -> Any:
        placed = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(whole, whole, rows, rows, whole, whole),
            out_specs=(whole, whole, whole, rows),
            check_vma=False,
        )
        scale, (carry, others) = of_total(scale, batch), by_row(variables)
        found, sums, others, carry = jax.lax.optimization_barrier(
            placed(params, others, carry, batch, step, scale)
        )
        return unscaled(found, scale), sums, {**others, **carry}

    return gradient


def by_row(variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The collection with a row for each of the batch's, and the others."""
    return {k: v for k, v in variables.items() if k == BY_ROW}, {
        k: v for k, v in variables.items() if k != BY_ROW
    }


def mean(gradient: Any, sums: Sums) -> Any:
    """The gradient of the mean loss, of the total's; 0 over nothing.

    One number is made for all leaves before they are divided by it: else XLA fuses one division in another way on one
    device than on several, and the last bits differ (`Experiment.reproducible`).
    """
    weight = sums["loss"].weight
    weight = jnp.where(weight > 0, weight, 1)
    return jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient)


def of_total(scale: jax.Array | None, batch: Batch) -> jax.Array | None:
    """The scale of a total loss that is as large as the scale makes the mean."""
    return None if scale is None else scale / batch["mask"].size


def unscaled(gradient: Any, scale: jax.Array | None) -> Any:
    return gradient if scale is None else jax.tree.map(lambda leaf: upcast(leaf) / scale, gradient)


def strided(count: int, x: jax.Array) -> jax.Array:
    """[B, ...] -> [count, B / count, ...], every count-th pair of rows, or row where parts are odd: each device keeps
    the rows it has."""
    rows = x.shape[0] // count
    pair = 2 if rows % 2 == 0 else 1
    x = jnp.moveaxis(x.reshape(rows // pair, count, pair, *x.shape[1:]), 1, 0)
    return x.reshape(count, rows, *x.shape[3:])


def unstrided(x: jax.Array) -> jax.Array:
    """The inverse: [count, B / count, ...] -> [B, ...]."""
    count, rows = x.shape[:2]
    pair = 2 if rows % 2 == 0 else 1
    return jnp.moveaxis(x.reshape(count, rows // pair, pair, *x.shape[2:]), 0, 1).reshape(
        -1, *x.shape[2:]
    )


def in_turn(function: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """The function of each leaf, one after another, so that memory holds what it needs for one at a time."""
    leaves, structure = jax.tree.flatten(tree)
    done: list[jax.Array] = []
    for leaf in leaves:
        if done:
            leaf, done[-1] = jax.lax.optimization_barrier((leaf, done[-1]))
        done.append(function(leaf))
    return jax.tree.unflatten(structure, done)


def added_over(axis: str) -> Callable[[jax.Array], jax.Array]:
    """[share, ...] on each device of that axis, the first chunks on the first -> the sum of all chunks [...] on each,
    added from the first chunk to the last.

    Each device adds its own slice of all chunks, and gives that to the others, so that none ever has all chunks of a
    big leaf. A small one is gathered whole: XLA would add up a bias's gradient in another order to have it in slices.
    """

    def add(x: jax.Array) -> jax.Array:
        devices, size = jax.lax.axis_size(axis), math.prod(x.shape[1:])
        if size <= SMALL:
            return added(jax.lax.all_gather(x, axis, tiled=True))
        flat = jnp.pad(x.reshape(len(x), size), ((0, 0), (0, -size % devices)))
        slices = jax.lax.all_to_all(
            flat, axis, split_axis=1, concat_axis=0, tiled=True
        )  # [count, size / devices]
        return jax.lax.all_gather(added(slices), axis, tiled=True)[:size].reshape(x.shape[1:])

    return add


def added(x: jax.Array) -> jax.Array:
    """[count, ...] -> [...], from the first to the last."""
    return functools.reduce(jnp.add, [upcast(x[i]) for i in range(x.shape[0])])
