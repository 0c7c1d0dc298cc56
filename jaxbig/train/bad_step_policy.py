"""What a run does about a bad step: a loss or gradient that is not finite, or a loss that jumped.

Whether a step is bad is found inside the compiled step, from numbers it has anyway, and told as one of its metrics,
`FAULT`. So it is a pure function of the state and the batch, and the same in a resume, in a replay, on any process.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.guard import Guard
from jaxbig.errors import Failed, Refused
from jaxbig.program.bad_steps import GRADIENT, LOSS, SPIKE, all_finite
from jaxbig.system.json_files import read_json, write_json

log = logging.getLogger("jaxbig")
LEFT_OUT = "left_out.json"
"""The file in a run's folder with the steps whose batches its rollbacks have left out."""


class Bad(Failed):
    """A step was bad, and the run is to go on without its batch from the checkpoint before it."""

    def __init__(self, step: int, why: str):
        super().__init__(f"step {step}: {why}")
        self.step, self.why = step, why


class Watch:
    """Told of each step's fault, a step late, it logs it, or ends the run as the guard says."""

    def __init__(self, guard: Guard, params: Any, loud: bool = False):
        self.guard, self.names, self.loud, self.in_a_row = (
            guard,
            list(flatten_with_paths(params)),
            loud,
            0,
        )

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
        if self.in_a_row > self.guard.max_skips:
            raise Failed(too_many(step, why, self.guard))
        if self.loud:
            log.warning("step %s: %s; it was skipped, %s in a row", step, why, self.in_a_row)

    def before_saving(self, step: int, state: Any) -> None:
        """The same, where an update from a good gradient has made parameters that are not finite."""
        finite = np.asarray(all_finite(list(flatten_with_paths(state.params).values())))
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
            return f"the loss is {self.guard.spike_threshold:g} standard deviations or more above the last {self.guard.window}"
        return f"the gradient is not finite, first that of {self.names[fault - GRADIENT]}"


def too_many(step: int, why: str, guard: Guard) -> str:
    """The sentence that ends a run which skipping does not help."""
    return (
        f"step {step}: {why}, as in {guard.max_skips} steps before it in a row (--guard.max-skips): it is not the "
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
    if row >= guard.max_skips:
        raise Failed(too_many(bad.step, bad.why, guard))
    write_json(
        workdir / LEFT_OUT,
        [*(read_json(workdir / LEFT_OUT, list) or []), {"step": bad.step, "why": bad.why}],
    )
