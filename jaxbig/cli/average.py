"""`jaxbig average`: the mean of a run's last checkpoints."""

import dataclasses
from pathlib import Path

import tyro

from jaxbig.cli.command import Command
from jaxbig.cli.tables import pairs
from jaxbig.distributed.multihost import refuse_started_together
from jaxbig.train.average import average


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average(Command):
    """Makes a run whose weights are the mean of a run's last checkpoints: jaxbig average RUN."""

    run: tyro.conf.Positional[Path]
    """The folder of a run that keeps that many checkpoints, as with --keep-last 5."""
    last: int = 5
    """How many checkpoints, 2 or more."""
    workdir: Path | None = None
    """The folder of the new run; RUN-average by default."""

    def __call__(self) -> int:
        refuse_started_together("average")
        self.screen()
        folder = self.workdir or self.run.with_name(f"{self.run.name}-average")
        made = average(self.run, folder, last=self.last)
        result = {"workdir": str(folder), "step": made.step, "checkpoints": self.last}
        return self.emit(result, ("", pairs("average", result)))
