"""Detection of bad steps in the compiled step, and the window of losses that it keeps.

A step is bad if its loss or gradient is not finite, or if its loss jumped.

The compiled step decides from numbers that it computes anyway, and reports `FAULT` as a metric. So
a fault is a pure function of state and batch: the same in a resumed run, in a replay and on every
process.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.guard import Guard
from jaxbig.program.mixed_precision import MixedPrecisionState, with_outer_state

FAULT = "fault"
"""The metric: 0 for a good step, LOSS, SPIKE, or GRADIENT plus the number of the first bad leaf."""
LOSS = 1
SPIKE = 2
GRADIENT = 3


@struct.dataclass
class LossWindowState:
    """An optimizer's state and the last good losses.

    losses: float32 [window], oldest first; infinite until there are that many.
    """

    optimizer: Any
    losses: Any


def track_losses(
    guard: Guard, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The optimizer with a `LossWindowState` if the guard looks for spikes, else as it is."""
    if not guard.spike_threshold:
        return optimizer

    def wrap(params: Any, state: Any) -> LossWindowState:
        losses = jnp.full(guard.window, jnp.inf, jnp.float32)
        return LossWindowState(optimizer=state, losses=losses)

    return with_outer_state(optimizer, wrap)


def make_bad_step_check(
    guard: Guard, scaled: bool
) -> Callable[[Any, Any, jax.Array, Any], tuple[Any, jax.Array]]:
    """Returns `(state before, state after, loss, gradient) -> (state after, fault)`.

    Under the policy `skip` the state after a bad step is the one before it, with the next number.

    Args:
      guard: the policy, and the threshold of a spike.
      scaled: whether the loss is scaled; the loss scaler handles non-finite gradients itself.
    """

    def check(before: Any, after: Any, loss: jax.Array, gradient: Any) -> tuple[Any, jax.Array]:
        # the gradient's norm, a metric, has these sums too
        leaves = flatten_with_paths(gradient).values()
        squares = [optax.tree.norm(leaf, squared=True) for leaf in leaves]
        bad = ~jnp.isfinite(jnp.stack(squares)) & (not scaled)
        fault = jnp.where(jnp.any(bad), GRADIENT + jnp.argmax(bad), 0)
        losses = losses_of(before.opt_state)
        if losses is not None:
            # never while the mean is infinite
            jumped = loss - losses.mean() > guard.spike_threshold * losses.std()
            fault = jnp.where(jumped & (fault == 0), SPIKE, fault)
        fault = jnp.where(jnp.isfinite(loss), fault, LOSS)
        if guard.policy == "skip":
            after = unchanged(before, after, fault > 0)
        if losses is not None:
            newer = jnp.concatenate([losses[1:], loss[None].astype(losses.dtype)])
            newer = jnp.where(fault > 0, losses, newer)
            after = after.replace(opt_state=with_losses(after.opt_state, newer))
        return after, fault.astype(jnp.int32)

    return check


def unchanged(before: Any, after: Any, where: jax.Array) -> Any:
    """The state after a step; where `where` is true, the one before it with the next number."""
    kept = jax.tree.map(lambda old, new: jnp.where(where, old, new), before, after)
    return kept.replace(step=after.step)


def losses_of(opt_state: Any) -> Any:
    """The last good losses in an optimizer's state, or None."""
    inside = opt_state.optimizer if isinstance(opt_state, MixedPrecisionState) else opt_state
    return inside.losses if isinstance(inside, LossWindowState) else None


def with_losses(opt_state: Any, losses: Any) -> Any:
    """The optimizer's state with these last losses; None: without a window of losses."""
    if isinstance(opt_state, MixedPrecisionState):
        return dataclasses.replace(opt_state, optimizer=with_losses(opt_state.optimizer, losses))
    bare = opt_state.optimizer if isinstance(opt_state, LossWindowState) else opt_state
    return bare if losses is None else LossWindowState(optimizer=bare, losses=losses)


def as_saved(abstract: Any, shapes: dict[str, str]) -> Any:
    """The abstract state with the window of losses of a saved one, which may have none.

    Args:
      abstract: the state of this run's program.
      shapes: the saved leaves by path, as "float32[100]".
    """
    losses = None
    for path in ("opt_state/losses", "opt_state/optimizer/losses"):
        saved = re.fullmatch(r"float32\[(\d+)\]", shapes.get(path, ""))
        if saved:
            losses = jax.ShapeDtypeStruct(
                (int(saved[1]),), jnp.float32, sharding=abstract.step.sharding
            )
            break
    return abstract.replace(opt_state=with_losses(abstract.opt_state, losses))


def as_asked(state: Any, abstract: Any) -> Any:
    """A restored state with the window that the guard asks for; a new length starts empty."""
    saved = losses_of(state.opt_state)
    asked = losses_of(abstract.opt_state)
    if saved is not None and asked is not None and saved.shape == asked.shape:
        return state
    empty = asked and jax.make_array_from_callback(
        asked.shape, asked.sharding, lambda index: np.full(asked.shape, np.inf, np.float32)[index]
    )
    return state.replace(opt_state=with_losses(state.opt_state, empty))


@jax.jit
def all_finite(arrays: list[jax.Array]) -> jax.Array:
    """Whether each of them is finite throughout, bool [len(arrays)]."""
    return jnp.stack([jnp.isfinite(each).all() for each in arrays])
