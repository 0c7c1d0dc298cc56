"""Functions traced into the train step: a batch's loss and gradient, at once or in parts.

The gradient of a mean is the sum of the parts' gradients of the total loss over the sum of their
weights, so parts of unequal weight (padding) change nothing. Each part draws its own dropout;
BatchNorm sees each part by itself.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbig.adapt import lora
from jaxbig.adapt.weights import FROZEN, adapts, beside_model, of_model
from jaxbig.adapt.weights import scale as adapt_scale
from jaxbig.arrays.batch_mask import every_row_real
from jaxbig.arrays.dtypes import upcast
from jaxbig.arrays.row_parts import strided, unstrided
from jaxbig.config.experiment import Experiment
from jaxbig.distributed.logical_axes import ROWS, STAGE
from jaxbig.errors import Refused
from jaxbig.models.base import model_class
from jaxbig.models.layers.mixture_of_experts import LOSSES
from jaxbig.objectives.base import Batch, Sum, Sums, sums_of
from jaxbig.program import rng
from jaxbig.program.apply_model import make_apply
from jaxbig.program.float32_reductions import float32_sums

PLACE = "place"
"""The field of a batch with each row's index in the global batch."""
BY_ROW = "carry"
"""The collection of variables with a row for each row of the batch."""
SMALL = 2**16
"""Under `reproducible`, leaves of at most this many numbers are all-gathered, then summed."""
Gradient = Callable[..., tuple[Any, Sums, Any]]
"""`(params, variables, batch, step, scale) -> (gradient, sums, new variables)`.

scale: the factor of the loss, by which the gradient is divided in the end; or None.
"""


def make_loss(
    experiment: Experiment, mean: bool = True
) -> Callable[..., tuple[jax.Array, tuple[Sums, Any]]]:
    """Returns the training loss, a function to be differentiated by its first argument.

    It is `(params, variables, batch, step, part, scale) -> (loss, (sums, new variables))`.

    Args:
      experiment: the run.
      mean: whether the loss is the mean over the batch, or the total.
    """

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

        def objective(forward: nn.Module) -> Sums:
            return sums_of(experiment.objective, forward, rows, key=key, train=True)

        apply = make_apply(experiment, objective, [*variables, LOSSES])
        with every_row_real(not experiment.data.may_leave_out()):
            sums, variables = apply({"params": params, **variables}, rngs=rngs)
        sums = with_losses(sums, variables.pop(LOSSES, {}))
        value = sums["loss"].mean_or_zero() if mean else sums["loss"].total
        return value if scale is None else value * scale, (sums, variables)

    return loss


def row_keys(
    experiment: Experiment, name: str, step: jax.Array | int, places: jax.Array
) -> jax.Array:
    """The key of each row of a batch, by its index in the global batch; [B]."""
    key = rng.at_step(experiment.seed, name, step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


def with_losses(sums: Sums, terms: Any) -> Sums:
    """The sums with the auxiliary losses of the model's layers, which are sums over tokens too."""
    leaves = jax.tree.leaves(terms)
    if not leaves:
        return sums
    loss = sums["loss"]
    added = functools.reduce(jnp.add, map(jnp.sum, leaves))
    with_terms = {
        "loss": Sum(loss.total + added, loss.weight),
        "auxiliary_loss": Sum(added, loss.weight),
    }
    return {"cross_entropy": loss, **sums, **with_terms}


def make_gradient(experiment: Experiment, mesh: jax.sharding.Mesh) -> Gradient:
    """The gradient function that the experiment's options ask for."""
    if experiment.reproducible:
        gradient = in_fixed_order(experiment, mesh)
    elif experiment.accumulate > 1:
        gradient = in_parts(experiment)
    else:
        gradient = at_once(experiment)
    gradient = with_places(gradient, experiment)
    if adapts(experiment):
        gradient = of_adapters(gradient, experiment)
    return float32_sums(gradient) if experiment.precision.sums == "float32" else gradient


def of_adapters(find: Gradient, experiment: Experiment) -> Gradient:
    """The gradient of adapters, if any, through that of the merged parameters; the model sees none
    of the state's variables that are not its own."""
    adapters = experiment.lora

    def gradient(params: Any, variables: Any, batch: Batch, step: Any, scale: Any = None) -> Any:
        beside = beside_model(variables)
        if not adapters.rank:  # a float32 gradient of bfloat16 parameters stays one
            found, sums, variables = find(params, of_model(variables), batch, step, scale)
            return found, sums, {**variables, **beside}

        def merged(params: Any) -> Any:
            key = rng.at_step(experiment.seed, "adapters", step)
            frozen = beside[FROZEN]
            return lora.merge(
                params, frozen, adapt_scale(adapters), dropout=adapters.dropout, key=key
            )

        whole, pull_back = jax.vjp(merged, params)
        found, sums, variables = find(whole, of_model(variables), batch, step, scale)
        found = jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), found, whole)
        [gradient] = pull_back(found)
        return gradient, sums, {**variables, **beside}

    return gradient


def with_places(find: Gradient, experiment: Experiment) -> Gradient:
    """The gradient of batches with the field `PLACE`, if the data transforms batches."""
    if not experiment.data.transforms():
        return find

    def gradient(params: Any, variables: Any, batch: Batch, *rest: Any) -> Any:
        return find(params, variables, {**batch, PLACE: jnp.arange(batch["mask"].shape[0])}, *rest)

    return gradient


def check_parts(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises `Refused` unless the batch divides into its parts or chunks."""
    batch = experiment.data.batch
    parts = experiment.accumulate
    chunks = experiment.reproducible
    rows = math.prod(mesh.shape[axis] for axis in ROWS)
    data = mesh.shape["data"]
    if batch % (rows * parts):
        raise Refused(
            f"--data.batch {batch} does not divide over {rows} devices of {', '.join(ROWS)} times "
            f"--accumulate {parts}: make it a multiple of {rows * parts}."
        )
    if chunks and (parts > 1 or mesh.size != data or chunks % data or batch % chunks):
        raise Refused(
            f"--reproducible {chunks} with --data.batch {batch}, --accumulate {parts} and the mesh "
            f"{dict(mesh.shape)}: it must divide the batch and be a multiple of data, the only "
            f"axis above 1, and accumulate must be 1."
        )


def check_stages(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raises `Refused` unless the model runs in stages where the mesh has some, and the batch
    divides into its microbatches."""
    model = experiment.model
    batch = experiment.data.batch
    microbatches = model_class(model).microbatch_count(model)
    if mesh.shape[STAGE] > 1 and not microbatches:
        fix = "--model.scan --model.microbatches 8, or another axis"
        if microbatches is None:
            fix = f"another axis, as --mesh.data: {type(model).__name__} does not run in stages"
        raise Refused(
            f"mesh stage={mesh.shape[STAGE]} needs microbatches of the model: give {fix}."
        )
    rows = math.prod(mesh.shape[axis] for axis in ROWS if axis != STAGE)
    if not microbatches:
        return
    unit = microbatches * (experiment.reproducible or rows * experiment.accumulate)
    if batch % unit:
        raise Refused(
            f"--data.batch {batch} does not divide into --model.microbatches {microbatches} of "
            f"each of its {unit // microbatches} parts: make it a multiple of {unit}."
        )


def at_once(experiment: Experiment) -> Gradient:
    """The gradient of the whole batch at once; the partitioner orders the sums."""

    def gradient(params: Any, variables: Any, batch: Batch, step: Any, scale: Any = None) -> Any:
        find = jax.grad(make_loss(experiment), has_aux=True)
        found, (sums, variables) = find(params, variables, batch, step, None, scale)
        return unscaled(found, scale), sums, variables

    return gradient


def in_parts(experiment: Experiment) -> Gradient:
    """The gradient accumulated over parts: one part's activations are in memory at a time."""
    count = experiment.accumulate
    total = jax.grad(make_loss(experiment, mean=False), has_aux=True)

    def gradient(params: Any, variables: Any, batch: Batch, step: Any, scale: Any = None) -> Any:
        def part(accumulated: tuple[Any, Any], xs: Any) -> tuple[Any, Any]:
            number, rows, carry = xs
            gradient, others = accumulated
            more, (sums, variables) = total(params, {**others, **carry}, rows, step, number, scale)
            carry, others = by_row(variables)
            return (jax.tree.map(jnp.add, gradient, more), others), (sums, carry)

        scale = of_total(scale, batch)
        carry, others = by_row(variables)
        rows = jax.tree.map(functools.partial(strided, count), batch)
        carry = jax.tree.map(functools.partial(strided, count), carry)
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(upcast(leaf)), params)
        (gradient, others), (sums, carry) = jax.lax.scan(
            part, (zeros, others), (jnp.arange(count), rows, carry)
        )
        sums = jax.tree.map(lambda each: jnp.sum(each, axis=0), sums)
        gradient = unscaled(mean(gradient, sums), scale)
        return gradient, sums, {**others, **jax.tree.map(unstrided, carry)}

    return gradient


def in_fixed_order(experiment: Experiment, mesh: jax.sharding.Mesh) -> Gradient:
    """The gradient of `reproducible` equal chunks of consecutive rows, summed in their order.

    Each chunk is the same program on one device, so the bits do not depend on how many devices
    share the chunks. BatchNorm's running statistics are averaged.
    """
    count = experiment.reproducible
    rows = PartitionSpec(("data",))
    whole = PartitionSpec()
    share = count // mesh.shape["data"]
    total = jax.grad(make_loss(experiment, mean=False), has_aux=True)

    def local(
        params: Any, others: Any, carry: Any, batch: Batch, step: jax.Array, scale: Any
    ) -> Any:
        def chunk(xs: Any) -> Any:
            number, rows, carry = jax.lax.optimization_barrier(xs)
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
        gradient = mean(gradient, sums)
        carry = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carry)
        return gradient, sums, others, carry

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
        scale = of_total(scale, batch)
        carry, others = by_row(variables)
        found, sums, others, carry = jax.lax.optimization_barrier(
            placed(params, others, carry, batch, step, scale)
        )
        return unscaled(found, scale), sums, {**others, **carry}

    return gradient


def by_row(variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits off the collection with a row for each row of the batch: (it, the others)."""
    carry = {name: each for name, each in variables.items() if name == BY_ROW}
    others = {name: each for name, each in variables.items() if name != BY_ROW}
    return carry, others


def mean(gradient: Any, sums: Sums) -> Any:
    """The gradient of the mean loss from that of the total; 0 over nothing.

    All leaves are divided by one number: else XLA fuses one division in another way on one device
    than on several, and the last bits differ (`Experiment.reproducible`).
    """
    weight = sums["loss"].weight
    weight = jnp.where(weight > 0, weight, 1)
    return jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient)


def of_total(scale: jax.Array | None, batch: Batch) -> jax.Array | None:
    """The scale of the total loss that makes it as large as the scaled mean."""
    return None if scale is None else scale / batch["mask"].size


def unscaled(gradient: Any, scale: jax.Array | None) -> Any:
    return gradient if scale is None else jax.tree.map(lambda leaf: upcast(leaf) / scale, gradient)


def in_turn(function: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """Applies the function to one leaf after another, so that one at a time is in memory."""
    leaves, structure = jax.tree.flatten(tree)
    done: list[jax.Array] = []
    for leaf in leaves:
        if done:
            leaf, done[-1] = jax.lax.optimization_barrier((leaf, done[-1]))
        done.append(function(leaf))
    return jax.tree.unflatten(structure, done)


def added_over(axis: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the sum of chunks over a mesh axis, from the first chunk to the last.

    It maps [share, ...] on each device, the first chunks on the first, to [...] on each. A device
    sums its own slice of all chunks, then the slices are all-gathered: so no device ever has all
    chunks of a large leaf. Small leaves are all-gathered first: XLA would sum a bias's gradient in
    another order to have it in slices.
    """

    def add(x: jax.Array) -> jax.Array:
        devices = jax.lax.axis_size(axis)
        size = math.prod(x.shape[1:])
        if size <= SMALL:
            return added(jax.lax.all_gather(x, axis, tiled=True))
        flat = jnp.pad(x.reshape(len(x), size), ((0, 0), (0, -size % devices)))
        # [count, size / devices]
        slices = jax.lax.all_to_all(flat, axis, split_axis=1, concat_axis=0, tiled=True)
        return jax.lax.all_gather(added(slices), axis, tiled=True)[:size].reshape(x.shape[1:])

    return add


def added(x: jax.Array) -> jax.Array:
    """The sum over the first axis, [count, ...] -> [...], from the first to the last."""
    return functools.reduce(jnp.add, [upcast(x[i]) for i in range(x.shape[0])])
