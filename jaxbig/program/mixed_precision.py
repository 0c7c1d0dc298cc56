"""Updates in mixed precision: stochastic rounding, float32 master weights, loss scaling."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxbig.adapt.weights import AVERAGE
from jaxbig.arrays.dtypes import upcast
from jaxbig.arrays.tree import flatten_with_paths, path_name
from jaxbig.config.precision import HIGHEST, LOWEST, Precision
from jaxbig.program import rng
from jaxbig.program.state import TrainState


@struct.dataclass
class Scale:
    """The loss scale.

    value: float32. good: good steps since it last changed. skipped: all steps skipped so far.
    """

    value: Any
    good: Any
    skipped: Any


@struct.dataclass
class MixedPrecisionState:
    """An optimizer's state, float32 master weights and a `Scale`; the last two may be None."""

    optimizer: Any
    masters: Any
    scale: Any


def with_outer_state(
    optimizer: optax.GradientTransformation, wrap: Callable[[Any, Any], Any]
) -> optax.GradientTransformation:
    """The optimizer with more in its state, which its updates leave as it is.

    Args:
      optimizer: the transformation whose state is wrapped.
      wrap: `(params, state) -> outer state`, a struct whose field `optimizer` is the state.
    """

    def init(params: Any) -> Any:
        return wrap(params, optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, inner = optimizer.update(updates, state.optimizer, params)
        return updates, state.replace(optimizer=inner)

    return optax.GradientTransformation(init, update)


def with_mixed_precision(
    precision: Precision, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimizer with a `MixedPrecisionState` if the precision needs one, else as it is.

    Its `init` takes float32 parameters.
    """
    masters = precision.parameters == "bfloat16_master"
    scaled = precision.loss_scale > 0
    if not masters and not scaled:
        return optimizer

    def wrap(params: Any, state: Any) -> MixedPrecisionState:
        scale = Scale(
            value=jnp.float32(precision.loss_scale), good=jnp.int32(0), skipped=jnp.int32(0)
        )
        return MixedPrecisionState(
            optimizer=state, masters=params if masters else None, scale=scale if scaled else None
        )

    return with_outer_state(optimizer, wrap)


def store(precision: Precision, params: Any) -> Any:
    """Float32 parameters in the dtype they are stored in, rounded to nearest."""
    if precision.parameters == "float32":
        return params
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)


def loss_scale(state: TrainState) -> jax.Array | None:
    """The factor of the next step's loss; None without loss scaling."""
    scale = state.opt_state.scale if isinstance(state.opt_state, MixedPrecisionState) else None
    return None if scale is None else scale.value


def updates_made(state: TrainState) -> jax.Array:
    """How many updates the optimizer has counted: one for each step that was not skipped."""
    counts = [
        leaf
        for path, leaf in flatten_with_paths(state.opt_state).items()
        if path.split("/")[-1] == "count"
    ]
    return counts[0] if counts else state.step


def loss_scale_metrics(state: TrainState) -> dict[str, jax.Array]:
    """The loss scale and the number of skipped steps, as metrics of a step."""
    if loss_scale(state) is None:
        return {}
    scale = state.opt_state.scale
    return {"loss_scale": scale.value, "skipped_steps": scale.skipped.astype(jnp.float32)}


def reset_master_weights(opt_state: Any, weights: dict[str, jax.Array]) -> Any:
    """A new optimizer state with pretrained float32 master weights, where it has master weights.

    The stored parameters are these rounded, so the state's own masters have lost bits.

    Args:
      opt_state: the state before the first step.
      weights: pretrained weights by path; others keep their initial values.
    """
    if not isinstance(opt_state, MixedPrecisionState) or opt_state.masters is None:
        return opt_state

    def place(path: Any, fresh: jax.Array) -> jax.Array:
        given = weights.get(path_name(path))
        return fresh if given is None else jax.device_put(given.astype(fresh.dtype), fresh.sharding)

    return dataclasses.replace(
        opt_state, masters=jax.tree_util.tree_map_with_path(place, opt_state.masters)
    )


def make_update(
    precision: Precision,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    average: Callable[..., Any] | None = None,
) -> Callable[[TrainState, Any, Any], TrainState]:
    """Returns `(state, float32 gradient, variables) -> state` after one update.

    Args:
      precision: how parameters are stored.
      optimizer: what `with_mixed_precision` returned.
      seed: of stochastic rounding.
      average: `(average, float32 params, step, optimizer's state) -> average` of the parameters;
        None: there is none.
    """

    def update(state: TrainState, gradient: Any, variables: Any) -> TrainState:
        params = (
            state.opt_state.masters if precision.parameters == "bfloat16_master" else state.params
        )
        params = jax.tree.map(upcast, params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        if average is not None:
            after = average(state.variables[AVERAGE], params, state.step, opt_state)
            variables = {**variables, AVERAGE: after}
        if isinstance(opt_state, MixedPrecisionState) and opt_state.masters is not None:
            opt_state = dataclasses.replace(opt_state, masters=params)
        if precision.parameters == "bfloat16":
            params = round_all(rng.at_step(seed, "rounding", state.step), params)
        params = store(precision, params)
        return TrainState(
            step=state.step + 1, params=params, variables=variables, opt_state=opt_state
        )

    def update_where_finite(state: TrainState, gradient: Any, variables: Any) -> TrainState:
        finite = jnp.all(
            jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)])
        )
        after: Any = update(state, gradient, variables)
        kept = jax.tree.map(functools.partial(jnp.where, finite), after, state)
        scale = rescaled(state.opt_state.scale, finite, precision.loss_scale_steps)
        return kept.replace(step=after.step, opt_state=kept.opt_state.replace(scale=scale))

    return update_where_finite if precision.loss_scale else update


def rescaled(scale: Scale, finite: jax.Array, steps: int) -> Scale:
    """Twice the scale after `steps` good steps in a row, half of it after a bad one."""
    good = jnp.where(finite, scale.good + 1, 0)
    grown = jnp.where(good >= steps, scale.value * 2, scale.value)
    value = jnp.clip(jnp.where(finite, grown, scale.value / 2), LOWEST, HIGHEST)
    return Scale(value=value, good=good % steps, skipped=scale.skipped + ~finite)


def round_all(key: jax.Array, params: Any) -> Any:
    """Float32 parameters in bfloat16, stochastically rounded, each with a key from its path."""

    def rounded(path: Any, x: jax.Array) -> jax.Array:
        return stochastic_round(jax.random.fold_in(key, zlib.crc32(path_name(path).encode())), x)

    return jax.tree_util.tree_map_with_path(rounded, params)


def stochastic_round(key: jax.Array, x: jax.Array) -> jax.Array:
    """Float32 in bfloat16, rounded up or down so that the mean is exact; exact values stay.

    Stochastic rounding (Gupta et al., 2015): bfloat16 is the upper half of a float32's bits, so a
    random number is added to the lower half, which is then dropped. Infinities and NaN stay.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    raised = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = jax.lax.bitcast_convert_type((raised >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), upper, x.astype(jnp.bfloat16))
