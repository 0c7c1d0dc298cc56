"""The compiled functions of a run: init, train step, eval step.

A step is `(state, batch) -> (state, metrics)`; jit's shardings alone decide where it runs.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbig.adapt import lora
from jaxbig.adapt.weights import (
    AVERAGE,
    FROZEN,
    adapts,
    averaged,
    beside_model,
    has_average,
    of_model,
    plain_parameters,
)
from jaxbig.arrays.dtypes import upcast
from jaxbig.arrays.tree import flatten_with_paths, path_name
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
from jaxbig.errors import Refused
from jaxbig.models.base import Model
from jaxbig.objectives.base import Batch, Sums, call, sums_of
from jaxbig.objectives.distill import Distill, taught_by
from jaxbig.program import rng
from jaxbig.program.apply_model import make_apply
from jaxbig.program.bad_steps import FAULT, make_bad_step_check, track_losses, unchanged
from jaxbig.program.gradient import check_parts, check_stages, make_gradient, row_keys
from jaxbig.program.mixed_precision import (
    loss_scale,
    loss_scale_metrics,
    make_update,
    store,
    updates_made,
    with_mixed_precision,
)
from jaxbig.program.state import TrainState, without_optimizer
from jaxbig.program.teacher import TEACHER, abstract_teacher, find_teacher, teacher_of
from jaxbig.system import environment


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment on a mesh: the layout of its state, and its jitted functions."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    rules: Rules
    boxed: Any
    """The state's abstract variables with the names of their logical axes."""
    abstract: TrainState
    """Shape, dtype and sharding of every leaf of the state."""
    plain: TrainState
    """The same of what `merged` returns."""
    batch: dict[str, jax.ShapeDtypeStruct]
    """Shape, dtype and sharding of every array of a global batch."""
    teacher: Any
    """The same of the teacher's variables, which a train step gets beside the batch; None: none."""
    init: Callable[[], TrainState]
    begin: Any
    """`(params, variables) -> state`, the first one with these float32 parameters, which it takes
    over."""
    train_step: Any
    eval_step: Any
    eval_step_with_outputs: Any
    """The same, for metrics over outputs; see `make_eval_step_with_outputs`."""
    forward: Any
    """`(state without its optimizer, batch) -> outputs` of the model, as an evaluation calls it."""
    predict: Any
    """`(merged state, batch, top) -> (arrays by name, variables)`: what the objective predicts."""
    merged: Callable[[TrainState], TrainState]
    """The state of the plain model without its optimizer, which an evaluation, a prediction or an
    export uses: moving averages in place of parameters, adapters merged."""

    @property
    def train_batch(self) -> dict[str, Any]:
        """What the train step gets besides the state."""
        return self.batch if self.teacher is None else {**self.batch, TEACHER: self.teacher}

    def activate(self) -> contextlib.AbstractContextManager[None]:
        """A context in which functions are traced with this program's mesh and rules."""
        return activate(self.mesh, self.rules)


def make_program(experiment: Experiment, devices: Sequence[Any] | None = None) -> Program:
    """The program of an experiment. Nothing is compiled here: shapes come from tracing alone.

    Args:
      experiment: the run; its data is not read.
      devices: the devices of the mesh; all by default.

    Raises:
      Refused: where the experiment is invalid, or does not fit the devices.
    """
    environment.check()
    experiment.check()
    mesh = experiment.mesh.build(devices)
    rules = experiment.mesh.table()
    check_batch(experiment.data.batch, mesh)
    check_length(getattr(experiment.data, "length", 0), mesh)
    target_length = getattr(experiment.data, "target_length", None) or 0
    check_length(target_length, mesh, "--data.target-length")
    check_parts(experiment, mesh)
    check_stages(experiment, mesh)
    rows = batch_sharding(mesh)
    whole = replicated(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=rows)
        for name, each in experiment.data.spec().items()
    }
    teacher = find_teacher(experiment)
    of_teacher = None
    init_variables = with_adapters(make_init(experiment), experiment)
    with activate(mesh, rules):
        boxed = jax.eval_shape(init_variables)
    axes = flatten_with_paths(nn.get_partition_spec(boxed.get(FROZEN, {})))
    axes |= flatten_with_paths(nn.get_partition_spec(boxed["params"]))
    optimizer = experiment.optimizer.build(experiment.steps, axes)
    optimizer = with_mixed_precision(
        experiment.precision, track_losses(experiment.guard, optimizer)
    )

    def begin(params: Any, variables: Any) -> TrainState:
        if FROZEN in variables:
            stored = store(experiment.precision, variables[FROZEN])
            variables = {**variables, FROZEN: stored}
        return TrainState(
            step=jnp.int32(0),
            params=store(experiment.precision, params),
            variables=variables,
            opt_state=optimizer.init(params),
        )

    def init() -> TrainState:
        variables = nn.meta.unbox(init_variables())
        return begin(variables.pop("params"), variables)

    with activate(mesh, rules):
        shapes = jax.eval_shape(init)
    variables = parameter_shardings(boxed, mesh, rules)
    params = variables.pop("params")
    moments = moment_shardings(shapes.opt_state, shapes.params, params, whole=whole)
    if experiment.offload:
        moments = host_memory_shardings(shapes.opt_state, moments, mesh)
    shardings = TrainState(step=whole, params=params, variables=variables, opt_state=moments)
    abstract = with_shardings(shapes, shardings)
    inputs = shardings, dict.fromkeys(batch, rows)
    plain = without_optimizer(shardings)
    if adapts(experiment):
        boxed_plain = jax.eval_shape(make_init(experiment))
        plain_variables = parameter_shardings(boxed_plain, mesh, rules)
        plain = plain.replace(params=plain_variables.pop("params"), variables=plain_variables)
    evaluated = plain, inputs[1]
    if teacher is not None and isinstance(experiment.objective, Distill):
        with activate(mesh, rules):
            of_teacher = abstract_teacher(
                teacher,
                experiment.objective,
                functools.partial(zero_batch, experiment),
                mesh=mesh,
                rules=rules,
            )
        at = jax.tree.map(lambda leaf: leaf.sharding, of_teacher)
        inputs = shardings, {**inputs[1], TEACHER: at}
    merged = make_merged(experiment, plain)
    with activate(mesh, rules):
        abstract_plain = jax.eval_shape(merged, abstract)
    program = Program(
        experiment=experiment,
        mesh=mesh,
        rules=rules,
        boxed=boxed,
        abstract=abstract,
        plain=with_shardings(abstract_plain, plain),
        batch=batch,
        teacher=of_teacher,
        init=jax.jit(
            init, out_shardings=shardings, compiler_options=environment.init_compiler_options(mesh)
        ),
        begin=jax.jit(
            begin, in_shardings=(params, variables), out_shardings=shardings, donate_argnums=(0, 1)
        ),
        train_step=jax.jit(
            make_train_step(experiment, optimizer, mesh, teacher=teacher),
            in_shardings=inputs,
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            make_eval_step(experiment),
            in_shardings=evaluated,
            out_shardings=(whole, plain.variables),
        ),
        forward=jax.jit(make_forward(experiment), in_shardings=evaluated, out_shardings=whole),
        predict=jax.jit(
            make_predict(experiment),
            in_shardings=evaluated,
            out_shardings=(whole, plain.variables),
            static_argnums=2,
        ),
        eval_step_with_outputs=jax.jit(
            make_eval_step_with_outputs(experiment),
            in_shardings=evaluated,
            out_shardings=(whole, plain.variables, whole, whole),
        ),
        merged=merged,
    )
    check_metrics(program)
    return program


def moment_shardings(opt_state: Any, params: Any, shardings: Any, *, whole: Any) -> Any:
    """The shardings of an optimizer's state: moments are sharded as their parameters are.

    A moment's path ends with that of its parameter. One of another shape, as the means over rows
    that Adafactor keeps, is on every device.

    Args:
      opt_state: shapes of the state.
      params: shapes of the parameters.
      shardings: of the parameters.
      whole: of all other leaves.
    """
    shapes = flatten_with_paths(params)
    of_params = flatten_with_paths(shardings)

    def place(path: Any, leaf: Any) -> Any:
        ends = (path_name(path[at:]) for at in range(len(path)))
        owner = next((end for end in ends if end in shapes), None)
        if owner is None or leaf.shape != shapes[owner].shape:
            return whole
        return of_params[owner]

    return jax.tree_util.tree_map_with_path(place, opt_state)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes and dtypes, each with its sharding."""
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings
    )


def make_init(experiment: Experiment) -> Callable[[], Any]:
    """Returns `() -> variables`, boxed with their logical axes.

    The objective calls the model on a batch of zeros.
    """

    def init_variables() -> Any:
        key = rng.stream(experiment.seed, "init")
        zeros = zero_batch(experiment)
        init = nn.init(
            lambda forward: sums_of(experiment.objective, forward, zeros, key=key, train=False),
            experiment.model,
        )
        # "default" is what an NNX module draws from for a stream that is not there, as "dropout"
        return dict(init({"params": key, "default": rng.stream(experiment.seed, "default")}))

    return init_variables


def zero_batch(experiment: Experiment) -> Batch:
    """A batch of zeros, as the objective gets it in evaluation."""
    zeros = {name: jnp.zeros(s.shape, s.dtype) for name, s in experiment.data.spec().items()}
    return transformed(experiment, zeros)


def with_adapters(init_variables: Callable[[], Any], experiment: Experiment) -> Callable[[], Any]:
    """Returns `() -> variables` of a state: adapters as its parameters, if the experiment has some,
    and the first moving average."""

    def init() -> Any:
        variables = init_variables()
        if experiment.lora.rank:
            key = rng.stream(experiment.seed, "adapters")
            adapters, frozen = lora.split(experiment.lora, variables["params"], key)
            variables |= {"params": adapters, FROZEN: frozen}
        if has_average(experiment):
            # copies: a step may use the memory of both
            variables[AVERAGE] = jax.tree.map(jnp.copy, variables["params"])
        return variables

    return init if adapts(experiment) else init_variables


def make_merged(experiment: Experiment, shardings: Any) -> Callable[[TrainState], TrainState]:
    """Returns `Program.merged`.

    shardings: of the plain model's state.
    """

    def merged(state: Any) -> Any:
        params = plain_parameters(experiment, state.params, state.variables)
        return state.replace(params=params, variables=of_model(state.variables))

    compiled = jax.jit(merged, out_shardings=shardings)

    def merge(state: TrainState) -> TrainState:
        bare: Any = without_optimizer(state)
        return compiled(bare) if beside_model(bare.variables) else bare

    return merge


def transformed(experiment: Experiment, batch: Batch) -> Batch:
    """The batch as the data transforms it for the objective in evaluation."""
    if not experiment.data.transforms():
        return batch
    places = jnp.arange(batch["mask"].shape[0])
    return experiment.data.transform(batch, row_keys(experiment, "evaluation", 0, places), False)


def make_train_step(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    teacher: Experiment | None = None,
) -> Callable[..., Any]:
    """Returns `(state, batch) -> (state, metrics)`: one gradient and one update.

    The batch has the variables of the teacher, if there is one, beside its fields. The metrics are
    float32 scalars, and `FAULT`, an int32.
    """
    compute_gradient = make_gradient(experiment, mesh)
    update = make_update(
        experiment.precision, optimizer, experiment.seed, average=make_average(experiment)
    )
    check = make_bad_step_check(experiment.guard, scaled=experiment.precision.loss_scale > 0)
    rate = experiment.optimizer.learning_rate.build(experiment.steps)

    def train_step(state: Any, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rows = {name: each for name, each in batch.items() if name != TEACHER}
        with taught_by(teacher_of(teacher, batch.get(TEACHER))):
            gradient, sums, variables = compute_gradient(
                state.params, state.variables, rows, state.step, loss_scale(state)
            )
        if experiment.offload:  # `out_shardings` puts it back
            state = state.replace(
                opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device)
            )
        gradient = jax.tree.map(upcast, gradient)
        after = update(state, gradient, variables)
        metrics = {name: each.mean() for name, each in sums.items()}
        metrics |= {
            "learning_rate": rate(updates_made(state)),
            "gradient_norm": optax.tree.norm(gradient),
        }
        after, fault = check(state, after, sums["loss"].mean_or_zero(), gradient)
        if experiment.data.may_leave_out():  # perhaps every example of the batch
            empty = sums["loss"].weight == 0
            after = unchanged(state, after, empty)
            fault = jnp.where(empty, 0, fault)
        return after, metrics | loss_scale_metrics(after) | {FAULT: fault}

    return train_step


def make_average(experiment: Experiment) -> Any:
    """Returns `(average, params, step, optimizer's state) -> average` after a step, or None."""
    if experiment.optimizer.averages():
        return lambda _, params, step, opt_state: experiment.optimizer.average(params, opt_state)
    if experiment.ema:
        return lambda mean, params, step, _: averaged(experiment.ema, mean, params, step)
    return None


def make_eval_step(experiment: Experiment) -> Callable[[TrainState, Batch], tuple[Sums, Any]]:
    """Returns `(merged state, batch) -> (sums, variables)`, without dropout.

    Of the variables only those carried from batch to batch change.
    """

    def eval_step(state: TrainState, batch: Batch) -> tuple[Sums, Any]:
        key = rng.stream(experiment.seed, "evaluation")
        rows = transformed(experiment, batch)

        def objective(forward: nn.Module) -> Sums:
            return sums_of(experiment.objective, forward, rows, key=key, train=False)

        apply = make_apply(experiment, objective, list(state.variables))
        return apply({"params": state.params, **state.variables})

    return eval_step


def make_forward(experiment: Experiment) -> Callable[[TrainState, Batch], Any]:
    """Returns `(state without its optimizer, batch) -> outputs` of the model, without dropout."""
    return lambda state, batch: _forward(experiment, state, batch, list(state.variables))[0]


def make_intermediates(experiment: Experiment) -> Callable[[TrainState, Batch], Any]:
    """Returns `(state without its optimizer, batch) -> what layers keep as "intermediates"`, by
    path, without dropout."""
    return lambda state, batch: _forward(experiment, state, batch, ["intermediates"])[1]


def _forward(experiment: Experiment, state: TrainState, batch: Batch, mutable: list[str]) -> Any:
    """The model's outputs, and the variables that may change."""
    check_feeds(experiment)
    rows = transformed(experiment, batch)
    apply = make_apply(experiment, lambda model: call(model, rows, train=False), mutable)
    return apply({"params": state.params, **state.variables})


def check_feeds(experiment: Experiment) -> None:
    """Raises `Refused` if the model does not take what the data gives."""
    if not experiment.objective.feeds_inputs:
        raise Refused(
            f"{type(experiment.objective).__name__} does not call the model on the data's inputs, "
            f"so there are no outputs or features of them: use `jaxbig predict`."
        )


def make_features(experiment: Experiment) -> Callable[[TrainState, Batch], Any]:
    """Returns `(state without its optimizer, batch) -> (fields, variables)`, without dropout.

    The fields are `features`, what `Model.features` gives in float32, and the batch's `targets` and
    `mask`.
    """
    method = getattr(type(experiment.model), "features", Model.features)

    def step(state: TrainState, batch: Batch) -> tuple[Batch, Any]:
        check_feeds(experiment)
        rows = transformed(experiment, batch)

        def features(model: nn.Module) -> Any:
            return call(model, rows, train=False, method=method)

        apply = make_apply(experiment, features, list(state.variables))
        found, variables = apply({"params": state.params, **state.variables})
        fields = {name: rows[name] for name in ("targets", "mask") if name in rows}
        return {**fields, "features": upcast(found)}, variables

    return step


def make_predict(experiment: Experiment) -> Callable[[TrainState, Batch, int], Any]:
    """Returns `(state without its optimizer, batch, top) -> (arrays by name, variables)`.

    The batch is transformed, and the key is that, of an evaluation; so are the variables.
    """

    def predict(state: TrainState, batch: Batch, top: int) -> tuple[dict[str, jax.Array], Any]:
        key = rng.stream(experiment.seed, "evaluation")
        rows = transformed(experiment, batch)

        def predictions(forward: nn.Module) -> dict[str, jax.Array]:
            return experiment.objective.predict(forward, rows, key=key, top=top)

        apply = make_apply(experiment, predictions, list(state.variables))
        return apply({"params": state.params, **state.variables})

    return predict


def make_eval_step_with_outputs(experiment: Experiment) -> Callable[[TrainState, Batch], Any]:
    """Returns `(state without its optimizer, batch) -> (sums, variables, outputs, fields)`.

    The sums and variables are those of `make_eval_step`. The outputs are what the model last
    returned to the objective; the fields are what the objective got, without `inputs`.
    """

    def eval_step(state: TrainState, batch: Batch) -> tuple[Sums, Any, Any, Batch]:
        key = rng.stream(experiment.seed, "evaluation")
        rows = transformed(experiment, batch)
        outputs: list[Any] = []

        def objective(forward: nn.Module) -> Sums:
            with collecting(outputs):
                return sums_of(experiment.objective, forward, rows, key=key, train=False)

        apply = make_apply(experiment, objective, list(state.variables))
        sums, variables = apply({"params": state.params, **state.variables})
        if not outputs or not experiment.objective.feeds_inputs:
            raise Refused(
                f"metrics: {type(experiment.objective).__name__} does not call the model as a "
                f"whole, so there are no outputs for them: leave --metrics out."
            )
        fields = {name: field for name, field in rows.items() if name != "inputs"}
        return sums, variables, outputs[-1], fields

    return eval_step


def collecting(outputs: list[Any]) -> contextlib.AbstractContextManager[None]:
    """A context in which what a model returns, called as a whole, is appended to a list."""

    def call(method: Any, arguments: Any, named: Any, context: Any) -> Any:
        returned = method(*arguments, **named)
        if not context.module.path and context.method_name == "__call__":
            outputs.append(returned)
        return returned

    return nn.intercept_methods(call)


def all_parameters(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a run by path: those that are trained, and those that adapters freeze."""
    frozen = program.abstract.variables.get(FROZEN, {})
    return flatten_with_paths(program.abstract.params) | flatten_with_paths(frozen)


def unsharded_matrices(program: Program) -> list[str]:
    """Paths of the parameters, but vectors, that a mesh could shard if they named their axes.

    Plain layers of Flax, as `nn.Dense`, name none, so each device has all of them.
    """
    if all(program.mesh.shape[axis] == 1 for axis in ("fsdp", "tensor", "expert", "stage")):
        return []
    specs = logical_axes(program)
    shapes = all_parameters(program)
    return [path for path, spec in specs.items() if not spec and shapes[path].ndim > 1]


def logical_axes(program: Program) -> dict[str, Any]:
    """The names of the axes of `all_parameters`, by path."""
    trees = (program.boxed["params"], program.boxed.get(FROZEN, {}))
    trained, frozen = (flatten_with_paths(nn.get_partition_spec(tree)) for tree in trees)
    return trained | frozen


def check_metrics(program: Program) -> None:
    """Raises `Refused` if a metric does not fit what an evaluation has."""
    if not program.experiment.metrics:
        return
    with program.activate():
        found = jax.eval_shape(program.eval_step_with_outputs, program.plain, program.batch)
    for metric in program.experiment.metrics:
        metric.check(*found[2:])
