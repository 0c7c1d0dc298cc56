"""The numbers a run stores and adds up in, and what an update needs where these have few bits: rounding at random,
float32 master copies, a scale for the loss.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxbig.arrays.dtypes import upcast
from jaxbig.arrays.tree import flatten_with_paths, path_name
from jaxbig.config.precision import HIGHEST, LOWEST, Precision
from jaxbig.program import rng
from jaxbig.program.state import TrainState

MASTERS = "opt_state/masters/"
"""Where the float32 copies of the parameters stand in a state, by the parameters' own paths."""


@struct.dataclass
class Scale:
    """The loss's scale, float32; how many steps since it was changed were good; how many steps were skipped at all."""

    value: Any
    good: Any
    skipped: Any


@struct.dataclass
class Kept:
    """An optimizer's state, and what is kept beside it: float32 parameters, a `Scale`; None where not asked for."""

    optimizer: Any
    masters: Any
    scale: Any


def keeping(
    precision: Precision, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optimizer whose `init`, from float32 parameters, gives `Kept`, where there is something to keep."""
    masters, scaled = precision.parameters == "bfloat16_master", precision.loss_scale > 0
    if not masters and not scaled:
        return optimizer

    def init(params: Any) -> Any:
        scale = Scale(
            value=jnp.float32(precision.loss_scale), good=jnp.int32(0), skipped=jnp.int32(0)
        )
        kept = {"masters": params if masters else None, "scale": scale if scaled else None}
        return Kept(optimizer=optimizer.init(params), **kept)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, inner = optimizer.update(updates, state.optimizer, params)
        return updates, state.replace(optimizer=inner)

    return optax.GradientTransformation(init, update)


def store(precision: Precision, params: Any) -> Any:
    """Float32 parameters as they are stored, each rounded to the nearest."""
    return (
        params
        if precision.parameters == "float32"
        else jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    )


def loss_scale(state: TrainState) -> jax.Array | None:
    """What the loss is multiplied by at the next step; None: nothing."""
    scale = state.opt_state.scale if isinstance(state.opt_state, Kept) else None
    return None if scale is None else scale.value


def updates_made(state: TrainState) -> jax.Array:
    """How many updates the optimizer has made, as it counts them itself: one a step that was not skipped."""
    counts = [
        leaf
        for path, leaf in flatten_with_paths(state.opt_state).items()
        if path.split("/")[-1] == "count"
    ]
    return counts[0] if counts else state.step


def told(state: TrainState) -> dict[str, jax.Array]:
    """What a step's metrics say of the loss's scale."""
    if loss_scale(state) is None:
        return {}
    scale = state.opt_state.scale
    return {"loss_scale": scale.value, "skipped_steps": scale.skipped.astype(jnp.float32)}


def begun_with(opt_state: Any, weights: dict[str, jax.Array]) -> Any:
    """The optimizer's state of a first step, whose float32 master copies are other weights, by path, where it is given
    them: not the parameters, which are these rounded."""
    if not isinstance(opt_state, Kept) or opt_state.masters is None:
        return opt_state

    def place(path: Any, fresh: jax.Array) -> jax.Array:
        given = weights.get(path_name(path))
        return fresh if given is None else jax.device_put(given.astype(fresh.dtype), fresh.sharding)

    return dataclasses.replace(
        opt_state, masters=jax.tree_util.tree_map_with_path(place, opt_state.masters)
    )


def make_update(
    precision: Precision, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, Any, Any], TrainState]:
    """`(state, float32 gradient, variables) -> state` after one update by an optimizer that is `keeping`."""

    def update(state: TrainState, gradient: Any, variables: Any) -> TrainState:
        params = (
            state.opt_state.masters if precision.parameters == "bfloat16_master" else state.params
        )
        params = jax.tree.map(upcast, params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        if isinstance(opt_state, Kept) and opt_state.masters is not None:
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
    """Twice the scale after so many good steps, half of it after a bad one."""
    good = jnp.where(finite, scale.good + 1, 0)
    grown = jnp.where(good >= steps, scale.value * 2, scale.value)
    value = jnp.clip(jnp.where(finite, grown, scale.value / 2), LOWEST, HIGHEST)
    return Scale(value=value, good=good % steps, skipped=scale.skipped + ~finite)


def round_all(key: jax.Array, params: Any) -> Any:
    """Float32 parameters to bfloat16, each rounded at random by a key of its path."""

    def rounded(path: Any, x: jax.Array) -> jax.Array:
        return round_at_random(jax.random.fold_in(key, zlib.crc32(path_name(path).encode())), x)

    return jax.tree_util.tree_map_with_path(rounded, params)


def round_at_random(key: jax.Array, x: jax.Array) -> jax.Array:
    """Float32 -> bfloat16, up or down with the chance that makes it right on average; what is exact stays.

    Stochastic rounding (Gupta et al., 2015): bfloat16 is the upper half of a float32's bits, so a random number is
    added to the lower half, which is then dropped. Infinities and NaN stay.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    raised = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = jax.lax.bitcast_convert_type((raised >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), upper, x.astype(jnp.bfloat16))
