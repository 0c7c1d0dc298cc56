"""The field `guard` of an experiment: what a run does about bad steps (NaN, spikes) and hangs."""

import dataclasses
from typing import Literal, get_args

from jaxbig.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxbig.errors import Refused

Policy = Literal["stop", "skip", "rollback"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """What to do about a bad step, copies that differ, and a run that hangs.

    A step is bad if its loss or gradient is not finite, or its loss has jumped. No checkpoint is
    ever written from a bad step.
    """

    policy: Policy = "stop"
    """stop: ends the run with a report of what was bad (exit code 1). skip: the step changes
    nothing. rollback: returns to the last checkpoint and leaves the bad batch out, noted in
    left_out.json."""
    max_skips: NonNegativeInt = 10
    """The run fails after more bad steps in a row than this, under any policy."""
    spike_threshold: NonNegativeFloat = 0.0
    """A loss this many standard deviations above the mean of recent good losses is bad; 0: off."""
    window: PositiveInt = 100
    """The number of recent good losses; detection of jumps starts when there are that many."""
    stuck_after: NonNegativeFloat = 1800.0
    """Seconds without progress after which the run reports where it hangs, and ends; 0: never."""
    stuck_factor: NonNegativeFloat = 10.0
    """The run also ends when a step, read, evaluation or save takes this many times as long as the
    slowest before it, and over 120 s; at 3 times, and 5 s, it is named. 0: never."""
    compare_replicas: NonNegativeInt = 0
    """Steps between comparisons, bit by bit, of the copies that devices have of the state, which is
    also compared before a save; the run fails where they differ. 0: never."""
    prove_determinism: bool = False
    """Make two steps twice at each start, before training, and fail where any bit differs."""

    def check_fields(self) -> None:
        policies = get_args(Policy)
        if self.policy not in policies:
            raise Refused(f"policy {self.policy!r}: it must be one of {', '.join(policies)}.")
        if 0 < self.stuck_factor < 3:
            raise Refused(
                f"stuck_factor {self.stuck_factor:g}: it must be 0, or 3 or more, as other jobs "
                f"can make a machine that slow at any time."
            )
