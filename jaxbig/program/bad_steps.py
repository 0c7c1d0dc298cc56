"""What a run does about a bad step: a loss or gradient that is not finite, or a loss that jumped.

Whether a step is bad is found inside the compiled step, from numbers it has anyway, and told as one of its metrics,
`FAULT`. So it is a pure function of the state and the batch, and the same in a resume, in a replay, on any process.
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
from jaxbig.program.mixed_precision import Kept

FAULT = "fault"
"""The metric: 0 where nothing is wrong, or one of these; from GRADIENT on, which leaf's gradient is the first bad."""
LOSS, SPIKE, GRADIENT = 1, 2, 3


@struct.dataclass
class Watched:
    """An optimizer's state, and the last good losses, float32 [window], oldest first; infinite where there are none."""

    optimizer: Any
    losses: Any


def watching(guard: Guard, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer whose state is `Watched` where spikes are looked for."""
    if not guard.spike_threshold:
        return optimizer

    def init(params: Any) -> Any:
        return Watched(
            optimizer=optimizer.init(params), losses=jnp.full(guard.window, jnp.inf, jnp.float32)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, inner = optimizer.update(updates, state.optimizer, params)
        return updates, state.replace(optimizer=inner)

    return optax.GradientTransformation(init, update)


def make_watch(
    guard: Guard, scaled: bool
) -> Callable[[Any, Any, jax.Array, Any], tuple[Any, jax.Array]]:
    """`(state before, state after, loss, gradient) -> (state after, fault)`; with the policy `skip` the state of a bad
    step is the one before it but for its number. scaled: a gradient that is not finite is the loss scale's business."""

    def watch(before: Any, after: Any, loss: jax.Array, gradient: Any) -> tuple[Any, jax.Array]:
        squares = [
            optax.tree.norm(leaf, squared=True) for leaf in flatten_with_paths(gradient).values()
        ]  # the norm has them too
        bad = ~jnp.isfinite(jnp.stack(squares)) & (not scaled)
        fault = jnp.where(jnp.any(bad), GRADIENT + jnp.argmax(bad), 0)
        losses = losses_of(before.opt_state)
        if losses is not None:
            jumped = (
                loss - losses.mean() > guard.spike_threshold * losses.std()
            )  # never while the mean is infinite
            fault = jnp.where(jumped & (fault == 0), SPIKE, fault)
        fault = jnp.where(jnp.isfinite(loss), fault, LOSS)
        if guard.policy == "skip":
            after = unchanged(before, after, fault > 0)
        if losses is not None:
            newer = jnp.concatenate([losses[1:], loss[None].astype(losses.dtype)])
            newer = jnp.where(fault > 0, losses, newer)
            after = after.replace(opt_state=with_losses(after.opt_state, newer))
        return after, fault.astype(jnp.int32)

    return watch


def unchanged(before: Any, after: Any, where: jax.Array) -> Any:
    """The state after a step; where that is so, the one before it but for its number."""
    kept = jax.tree.map(lambda old, new: jnp.where(where, old, new), before, after)
    return kept.replace(step=after.step)


def losses_of(opt_state: Any) -> Any:
    """The last good losses in an optimizer's state, or None."""
    inside = opt_state.optimizer if isinstance(opt_state, Kept) else opt_state
    return inside.losses if isinstance(inside, Watched) else None


def with_losses(opt_state: Any, losses: Any) -> Any:
    """The optimizer's state with those last losses; None: with none at all."""
    if isinstance(opt_state, Kept):
        return dataclasses.replace(opt_state, optimizer=with_losses(opt_state.optimizer, losses))
    bare = opt_state.optimizer if isinstance(opt_state, Watched) else opt_state
    return bare if losses is None else Watched(optimizer=bare, losses=losses)


def as_saved(abstract: Any, shapes: dict[str, str]) -> Any:
    """The abstract state with the window of losses that a checkpoint of those shapes has, be it none."""
    found = [
        re.fullmatch(r"float32\[(\d+)\]", shapes.get(f"opt_state/{path}losses", ""))
        for path in ("", "optimizer/")
    ]
    sizes = [int(each[1]) for each in found if each]
    whole = {"dtype": jnp.float32, "sharding": abstract.step.sharding}
    losses = jax.ShapeDtypeStruct((sizes[0],), **whole) if sizes else None
    return abstract.replace(opt_state=with_losses(abstract.opt_state, losses))


def as_asked(state: Any, abstract: Any) -> Any:
    """A restored state with the window that is asked for now; one of another length begins empty."""
    saved, asked = losses_of(state.opt_state), losses_of(abstract.opt_state)
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
