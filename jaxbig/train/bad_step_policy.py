"""What a run does about a bad step: stops, skips its batch, or rolls back to the last checkpoint.

A step is bad if its loss or gradient is not finite, or if its loss spikes. The compiled step finds
that itself and returns it as the metric `FAULT` (program/bad_steps.py), a pure function of the
state and the batch: the same after a resume, in a replay, and on any process.
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
"""The file in a run's directory with the steps whose batches its rollbacks left out."""


class BadStepError(Failed):
    """A step was bad, and the run is to resume from the checkpoint before it without its batch."""

    def __init__(self, step: int, why: str):
        super().__init__(f"step {step}: {why}")
        self.step = step
        self.why = why


class BadStepHandler:
    """Called with each step's fault code, one step late; applies the policy of the guard."""

    def __init__(self, guard: Guard, params: Any, *, verbose: bool = False):
        """
        Args:
          guard: the policy.
          params: parameters, or their shapes; their paths name a bad gradient.
          verbose: whether this process logs the steps that are skipped.
        """
        self.guard = guard
        self.names = list(flatten_with_paths(params))
        self.verbose = verbose
        self.in_a_row = 0

    def __call__(self, step: int, fault: int) -> None:
        """Returns if the run continues.

        Raises:
          BadStepError: the step's batch is to be left out (policy rollback).
          Failed: the run ends.
        """
        if not fault:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        why = self.describe(fault)
        if self.guard.policy == "rollback":
            raise BadStepError(step, why)
        if self.guard.policy == "stop":
            raise Failed(
                f"step {step}: {why}; no later state was saved. `jaxbig replay` with --step {step} "
                f"names the operation that made it; --guard.policy skip, or rollback, continues "
                f"without that batch."
            )
        if self.in_a_row > self.guard.max_skips:
            raise Failed(too_many(step, why, self.guard))
        if self.verbose:
            log.warning("step %s: %s; it was skipped, %s in a row", step, why, self.in_a_row)

    def check_before_save(self, step: int, state: Any) -> None:
        """Raises, as a call does, if an update from a good gradient gave non-finite parameters."""
        finite = np.asarray(all_finite(list(flatten_with_paths(state.params).values())))
        if finite.all():
            return
        first = self.names[int(finite.argmin())]
        why = f"its update has made parameters that are not finite, first {first}"
        if self.guard.policy == "rollback":
            raise BadStepError(step, why)
        raise Failed(f"step {step}: {why}; it was not saved.")

    def describe(self, fault: int) -> str:
        """What was bad, in words."""
        if fault == LOSS:
            return "the loss is not finite"
        if fault == SPIKE:
            return (
                f"the loss is {self.guard.spike_threshold:g} standard deviations or more above "
                f"the last {self.guard.window}"
            )
        return f"the gradient is not finite, first that of {self.names[fault - GRADIENT]}"


def too_many(step: int, why: str, guard: Guard) -> str:
    """The error message of a run with too many bad steps in a row."""
    return (
        f"step {step}: {why}, as in {guard.max_skips} steps before it in a row "
        f"(--guard.max-skips): it is not the batches; `jaxbig replay` with --step {step} names "
        f"the operation."
    )


def left_out(workdir: Path) -> list[int]:
    """The steps whose batches the rollbacks of a run left out, in order.

    Raises:
      Refused: the file cannot be parsed.
    """
    try:
        noted = read_json(workdir / LEFT_OUT, list) or []
        return sorted({int(each["step"]) for each in noted})
    except Refused:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(
            f"{workdir / LEFT_OUT} cannot be read ({error}): bring it back, or give another "
            f"--workdir."
        ) from None


def leave_out(workdir: Path, bad: BadStepError, guard: Guard) -> None:
    """Adds a bad step to the file of those left out.

    Raises:
      Failed: too many steps in a row were bad, or the step is bad without its batch too.
    """
    steps = set(left_out(workdir))
    in_a_row = 0
    while bad.step - in_a_row - 1 in steps:
        in_a_row += 1
    if bad.step in steps:
        raise Failed(
            f"step {bad.step}: {bad.why}, although its batch was left out: it is not the batches."
        )
    if in_a_row >= guard.max_skips:
        raise Failed(too_many(bad.step, bad.why, guard))
    noted = read_json(workdir / LEFT_OUT, list) or []
    write_json(workdir / LEFT_OUT, [*noted, {"step": bad.step, "why": bad.why}])
