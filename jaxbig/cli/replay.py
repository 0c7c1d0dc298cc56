"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses

from jaxbig.cli.command import DONE, OfRun, rows
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.tools.replay_step import replay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(OfRun):
    """A step of a run again, exactly, from the checkpoint before it; where it is bad, an operation at a time, to name
    the first that made a NaN or an infinity. Changes nothing in the run's folder."""

    step: int = 0
    """Which one, from 1."""

    def __call__(self) -> int:
        self.join()
        result = replay(self.experiment, self.folder, self.step)
        if not is_process_zero():
            return DONE
        told = {
            name: value for name, value in result.items() if name not in ("metrics", "operations")
        }
        return self.emit(
            result,
            (
                f"{self.name} again at step {self.step}",
                rows("replay", {**told, "bad": ", ".join(told["bad"])}),
            ),
            *[("", rows("metric", result["metrics"]))] * bool(result["metrics"]),
            *[("\nfirst made by", result["operations"])] * bool(result["operations"]),
        )
