"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses

from jaxbig.cli.command import OfExperiment, rows
from jaxbig.tools.benchmark import bench
from jaxbig.tracking.console import Screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(OfExperiment):
    """Seconds a step of the real loop against the bare compiled step; compile time and memory."""

    steps_a_round: int = 50
    """Of five rounds of each."""

    def __call__(self) -> int:
        result = bench(self.experiment, self.steps_a_round, Screen(self.json))
        return self.emit(result, ("", rows("measured", result)))
