"""What a run does about a bad step: a loss or gradient that is not finite, or a loss that jumped.

Whether a step is bad is found inside the compiled step, from numbers it has anyway, and told as one of its metrics,
`FAULT`. So it is a pure function of the state and the batch, and the same in a resume, in a replay, on any process.
"""

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxbig.errors import Failed, Refused
from jaxbig.precision import Kept
from jaxbig.state import leaves
from jaxbig.tracking.metrics import read_json, write_json

log = logging.getLogger("jaxbig")

Policy = Literal["stop", "skip", "rollback"]
FAULT = "fault"
"""The metric: 0 where nothing is wrong, or one of these; from GRADIENT on, which leaf's gradient is the first bad."""
LOSS, SPIKE, GRADIENT = 1, 2, 3
LEFT_OUT = "left_out.json"
"""The file in a run's folder with the steps whose batches its rollbacks have left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """What is done about a step whose loss or gradient is not finite, or whose loss has jumped, and about being stuck.
    Nothing of a bad step is ever saved."""

    policy: Policy = "stop"
    """stop: the run ends, and says what was bad (exit 1). skip: the step changes nothing, and the next batch is taken.
    rollback: the run goes back to its last checkpoint, and from there on leaves out the bad batch; which ones it has
    left out so stands in its folder, in left_out.json."""
    most_skips: int = 10
    """After how many bad steps in a row the run ends, whatever the policy."""
    spike: float = 0.0
    """A loss has jumped if it is so many standard deviations above the mean of the good losses before it; 0: never."""
    window: int = 100
    """How many losses that mean is over; before there are so many none has jumped."""
    stuck_after: float = 1800.0
    """Seconds without any progress until the run says where it is stuck and ends; 0: never."""

    def check(self) -> None:
        """`Refused` where the policy is none."""
        if self.policy not in get_args(Policy):
            raise Refused(
                f"--guard.policy {self.policy!r}: it must be one of {', '.join(get_args(Policy))}."
            )


class Bad(Failed):
    """A step was bad, and the run is to go on without its batch from the checkpoint before it."""

    def __init__(self, step: int, why: str):
        super().__init__(f"step {step}: {why}")
        self.step, self.why = step, why


# -- inside the compiled step


@struct.dataclass
class Watched:
    """An optimizer's state, and the last good losses, float32 [window], oldest first; infinite where there are none."""

    optimizer: Any
    losses: Any


def watching(guard: Guard, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer whose state is `Watched` where spikes are looked for."""
    if not guard.spike:
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
            optax.tree.norm(leaf, squared=True) for leaf in leaves(gradient).values()
        ]  # the norm has them too
        bad = ~jnp.isfinite(jnp.stack(squares)) & (not scaled)
        fault = jnp.where(jnp.any(bad), GRADIENT + jnp.argmax(bad), 0)
        losses = losses_of(before.opt_state)
        if losses is not None:
            jumped = (
                loss - losses.mean() > guard.spike * losses.std()
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


# -- on the host


class Watch:
    """Told of each step's fault, a step late, it logs it, or ends the run as the guard says."""

    def __init__(self, guard: Guard, params: Any, loud: bool = False):
        self.guard, self.names, self.loud, self.in_a_row = guard, list(leaves(params)), loud, 0

    def __call__(self, step: int, fault: int) -> None:
        """`Bad` for a step that is to be left out, `Failed` where the run is to end."""
        self.in_a_row = self.in_a_row + 1 if fault else 0
        if not fault:
            return
        why = self.why(fault)
        if self.guard.policy == "rollback":
            raise Bad(step, why)
        if self.guard.policy == "stop":
            raise Failed(
                f"step {step}: {why}; no later state was saved. `jaxbig replay` with --step {step} names the operation "
                f"that made it; --guard.policy skip, or rollback, goes on without that batch."
            )
        if self.in_a_row > self.guard.most_skips:
            raise Failed(too_many(step, why, self.guard))
        if self.loud:
            log.warning("step %s: %s; it was skipped, %s in a row", step, why, self.in_a_row)

    def before_saving(self, step: int, state: Any) -> None:
        """The same, where an update from a good gradient has made parameters that are not finite."""
        finite = np.asarray(all_finite(list(leaves(state.params).values())))
        if not finite.all():
            why = f"its update has made parameters that are not finite, first {self.names[int(finite.argmin())]}"
            raise (
                Bad(step, why)
                if self.guard.policy == "rollback"
                else Failed(f"step {step}: {why}; it was not saved.")
            )

    def why(self, fault: int) -> str:
        """What was bad, in words."""
        if fault == LOSS:
            return "the loss is not finite"
        if fault == SPIKE:
            return f"the loss is {self.guard.spike:g} standard deviations or more above the last {self.guard.window}"
        return f"the gradient is not finite, first that of {self.names[fault - GRADIENT]}"


@jax.jit
def all_finite(arrays: list[jax.Array]) -> jax.Array:
    """Whether each of them is finite throughout, bool [len(arrays)]."""
    return jnp.stack([jnp.isfinite(each).all() for each in arrays])


def too_many(step: int, why: str, guard: Guard) -> str:
    """The sentence that ends a run which skipping does not help."""
    return (
        f"step {step}: {why}, as in {guard.most_skips} steps before it in a row (--guard.most-skips): it is not the "
        f"batches; `jaxbig replay` with --step {step} names the operation."
    )


def left_out(workdir: Path) -> list[int]:
    """The steps whose batches the rollbacks of a run have left out, in order; `Refused` if the file is none of ours."""
    try:
        noted = read_json(workdir / LEFT_OUT, list) or []
        return sorted({int(each["step"]) for each in noted})
    except Refused:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(
            f"{workdir / LEFT_OUT} cannot be read ({error}): bring it back, or begin elsewhere."
        ) from None


def leave_out(workdir: Path, bad: Bad, guard: Guard) -> None:
    """Notes a bad step's batch; `Failed` where so many before it were bad that it cannot be the batches."""
    steps, row = set(left_out(workdir)), 0
    while bad.step - row - 1 in steps:
        row += 1
    if bad.step in steps:
        raise Failed(
            f"step {bad.step}: {bad.why}, although its batch was left out: it is not the batches."
        )
    if row >= guard.most_skips:
        raise Failed(too_many(bad.step, bad.why, guard))
    write_json(
        workdir / LEFT_OUT,
        [*(read_json(workdir / LEFT_OUT, list) or []), {"step": bad.step, "why": bad.why}],
    )
