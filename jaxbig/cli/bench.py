"""`jaxbig bench`: times the training loop against its compiled step in a bare loop."""

import dataclasses

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import pairs
from jaxbig.tools.benchmark import bench


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(ExperimentCommand):
    """Seconds a step of the real loop against the bare compiled step; compile time and memory."""

    steps_a_round: int = 50
    """Steps per round; five rounds of each are timed."""

    def __call__(self) -> int:
        result = bench(self.experiment, self.steps_a_round, self.screen())
        return self.emit(result, ("", pairs("measured", result)))
