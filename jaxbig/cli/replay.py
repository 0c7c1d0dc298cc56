"""`jaxbig replay`: runs one step of a run again, and names the operation that made a NaN."""

import dataclasses

from jaxbig.cli.experiment_command import RunCommand
from jaxbig.cli.tables import pairs
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.system.exit_codes import DONE
from jaxbig.tools.replay_step import replay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(RunCommand):
    """Runs a step of a run again, exactly, from the checkpoint before it.

    A bad step is then evaluated one operation at a time, to name the first that produced a NaN or
    an infinity. The run's folder is not changed.
    """

    step: int = 0
    """Which step, from 1."""

    def __call__(self) -> int:
        self.join()
        result = replay(self.experiment, self.folder, self.step)
        if not is_process_zero():
            return DONE
        summary = {
            name: value for name, value in result.items() if name not in ("metrics", "operations")
        }
        summary["bad"] = ", ".join(summary["bad"])
        tables = [(f"{self.name}, step {self.step} replayed", pairs("replay", summary))]
        if result["metrics"]:
            tables.append(("", pairs("metric", result["metrics"])))
        if result["operations"]:
            tables.append(("\nfirst produced by", result["operations"]))
        return self.emit(result, *tables)
