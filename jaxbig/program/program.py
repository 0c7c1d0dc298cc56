"""The pure functions that are compiled: init, train step, eval step.

A step is `(state, batch) -> (state, metrics)`; jit's shardings alone decide where it runs.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.dtypes import upcast
from jaxbig.config.experiment import Experiment
from jaxbig.distributed.logical_axes import Rules
from jaxbig.distributed.mesh import activate
from jaxbig.distributed.sharding import (
    batch_sharding,
    check_batch,
    check_length,
    host_memory_shardings,
    parameter_shardings,
    replicated,
)
from jaxbig.objectives.base import Batch, Sums
from jaxbig.program import rng
from jaxbig.program.bad_steps import FAULT, make_watch, unchanged, watching
from jaxbig.program.gradient import check_parts, make_gradient, row_keys, transforms
from jaxbig.program.mixed_precision import (
    keeping,
    loss_scale,
    make_update,
    store,
    told,
    updates_made,
)
from jaxbig.program.state import TrainState, without_optimizer
from jaxbig.system import environment


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment on a mesh: what its state is and where, and its jitted functions."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    rules: Rules
    boxed: Any
    """The model's abstract variables with the names of their logical axes."""
    abstract: TrainState
    """Shape, dtype and sharding of every leaf of the state."""
    batch: dict[str, jax.ShapeDtypeStruct]
    """Shape, dtype and sharding of every array of a global batch."""
    init: Callable[[], TrainState]
    train_step: Any
    eval_step: Any

    def activate(self) -> contextlib.AbstractContextManager[None]:
        """What is traced inside sees this program's mesh and rules."""
        return activate(self.mesh, self.rules)


def make_program(experiment: Experiment, devices: Sequence[Any] | None = None) -> Program:
    """Everything about the run but its data, on those devices (all there are); `Refused` if it does not fit them.

    Nothing is compiled here: shapes come from tracing alone.
    """
    environment.check()
    experiment.check()
    mesh, rules = experiment.mesh.build(devices), experiment.mesh.table()
    check_batch(experiment.data.batch, mesh)
    check_length(getattr(experiment.data, "length", 0), mesh)
    check_parts(experiment, mesh)
    optimizer = watching(experiment.guard, experiment.optimizer.build(experiment.steps))
    optimizer = keeping(experiment.precision, optimizer)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    batch = {
        n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows)
        for n, s in experiment.data.spec().items()
    }
    init_variables = make_init(experiment)

    def init() -> TrainState:
        variables = nn.meta.unbox(init_variables())
        params = variables.pop("params")
        stored, opt_state = store(experiment.precision, params), optimizer.init(params)
        return TrainState(
            step=jnp.int32(0), params=stored, variables=variables, opt_state=opt_state
        )

    with activate(mesh, rules):
        boxed, shapes = jax.eval_shape(init_variables), jax.eval_shape(init)
    variables = parameter_shardings(boxed, mesh, rules)
    params = variables.pop("params")
    # an optimizer's moments lie where their parameters lie
    none = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731  (those of frozen parameters)
    moments = optax.tree_map_params(
        optimizer,
        lambda leaf, sharding: leaf if none(leaf) else sharding,
        shapes.opt_state,
        params,
        transform_non_params=lambda _: whole,
        is_leaf=none,
    )
    if experiment.offload:
        moments = host_memory_shardings(shapes.opt_state, moments, mesh)
    shardings = TrainState(step=whole, params=params, variables=variables, opt_state=moments)
    abstract = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
    )
    inputs = shardings, dict.fromkeys(batch, rows)
    return Program(
        experiment=experiment,
        mesh=mesh,
        rules=rules,
        boxed=boxed,
        abstract=abstract,
        batch=batch,
        init=jax.jit(init, out_shardings=shardings),
        train_step=jax.jit(
            make_train_step(experiment, optimizer, mesh),
            in_shardings=inputs,
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            make_eval_step(experiment),
            in_shardings=(without_optimizer(shardings), inputs[1]),
            out_shardings=(whole, shardings.variables),
        ),
    )


def make_init(experiment: Experiment) -> Callable[[], Any]:
    """`() -> variables`, boxed with their logical axes; the objective calls the model on a batch of zeros."""

    def init_variables() -> Any:
        key = rng.stream(experiment.seed, "init")
        zeros = {name: jnp.zeros(s.shape, s.dtype) for name, s in experiment.data.spec().items()}
        zeros = transformed(experiment, zeros)
        init = nn.init(
            lambda forward: experiment.objective(forward, zeros, key, False), experiment.model
        )
        return dict(init({"params": key}))

    return init_variables


def transformed(experiment: Experiment, batch: Batch) -> Batch:
    """The batch as the objective gets it in evaluation."""
    if not transforms(experiment.data):
        return batch
    places = jnp.arange(batch["mask"].shape[0])
    return experiment.data.transform(batch, row_keys(experiment, "evaluation", 0, places), False)


def make_train_step(
    experiment: Experiment, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> Callable[..., Any]:
    """`(state, batch) -> (state, metrics)`: gradient, update; metrics are float32 scalars, and `FAULT`, an int32."""
    find, update = (
        make_gradient(experiment, mesh),
        make_update(experiment.precision, optimizer, experiment.seed),
    )
    watch = make_watch(experiment.guard, scaled=experiment.precision.loss_scale > 0)
    rate = experiment.optimizer.learning_rate.build(experiment.steps)

    def train_step(state: Any, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradient, sums, variables = find(
            state.params, state.variables, batch, state.step, loss_scale(state)
        )
        if experiment.offload:  # `out_shardings` puts it back
            state = state.replace(
                opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device)
            )
        gradient = jax.tree.map(upcast, gradient)
        after = update(state, gradient, variables)
        metrics = {
            name: each.mean() for name, each in sums.items()
        }  # scalars: no counts a class in training
        metrics |= {
            "learning_rate": rate(updates_made(state)),
            "gradient_norm": optax.tree.norm(gradient),
        }
        after, fault = watch(state, after, sums["loss"].mean_or_zero(), gradient)
        if (
            experiment.data.may_leave_out()
        ):  # all of a batch, perhaps: there is nothing to learn then
            empty = sums["loss"].weight == 0
            after, fault = unchanged(state, after, empty), jnp.where(empty, 0, fault)
        return after, metrics | told(after) | {FAULT: fault}

    return train_step


def make_eval_step(experiment: Experiment) -> Callable[[TrainState, Batch], tuple[Sums, Any]]:
    """`(state without its optimizer, batch) -> (sums, variables)`, without dropout; of the variables only what is
    carried from batch to batch changes."""

    def eval_step(state: TrainState, batch: Batch) -> tuple[Sums, Any]:
        key, rows = rng.stream(experiment.seed, "evaluation"), transformed(experiment, batch)
        objective = lambda forward: experiment.objective(forward, rows, key, False)  # noqa: E731
        apply = nn.apply(objective, experiment.model, mutable=list(state.variables))
        return apply({"params": state.params, **state.variables})

    return eval_step
