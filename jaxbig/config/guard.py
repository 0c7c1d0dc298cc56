"""What a run does about a bad step: a loss or gradient that is not finite, or a loss that jumped.

Whether a step is bad is found inside the compiled step, from numbers it has anyway, and told as one of its metrics,
`FAULT`. So it is a pure function of the state and the batch, and the same in a resume, in a replay, on any process.
"""

import dataclasses
from typing import Literal, get_args

from jaxbig.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxbig.errors import Refused

Policy = Literal["stop", "skip", "rollback"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """What is done about a step whose loss or gradient is not finite, or whose loss has jumped, and about being stuck.
    Nothing of a bad step is ever saved."""

    policy: Policy = "stop"
    """stop: the run ends, and says what was bad (exit 1). skip: the step changes nothing, and the next batch is taken.
    rollback: the run goes back to its last checkpoint, and from there on leaves out the bad batch; which ones it has
    left out so stands in its folder, in left_out.json."""
    max_skips: NonNegativeInt = 10
    """After how many bad steps in a row the run ends, whatever the policy."""
    spike_threshold: NonNegativeFloat = 0.0
    """A loss has jumped if it is so many standard deviations above the mean of the good losses before it; 0: never."""
    window: PositiveInt = 100
    """How many losses that mean is over; before there are so many none has jumped."""
    stuck_after: NonNegativeFloat = 1800.0
    """Seconds without any progress until the run says where it is stuck and ends; 0: never."""

    def check_fields(self) -> None:
        policies = get_args(Policy)
        if self.policy not in policies:
            raise Refused(f"policy {self.policy!r}: it must be one of {', '.join(policies)}.")
