"""Base classes of the commands: common options, joining processes, printing a result."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxbig.cli.tables import Table
from jaxbig.config.experiment import Experiment
from jaxbig.config.overrides import FolderOption, JsonOption, run_name
from jaxbig.distributed.multihost import initialize, is_process_zero
from jaxbig.system.exit_codes import DONE
from jaxbig.system.json_files import to_json_text
from jaxbig.tracking.console import Screen, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonOption):
    """A command: its fields are its options, calling it runs it and returns an exit code."""

    def emit(self, value: Any, *tables: Table) -> int:
        """Prints `value` as JSON if `--json` was given, else the tables. Returns `DONE`."""
        if self.json:
            print(to_json_text(value, indent=1))
            return DONE
        for title, rows in tables:
            table(rows, title)
        return DONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentCommand(Command):
    """A command on an experiment."""

    name: tyro.conf.Suppress[str]
    options: tyro.conf.Suppress[tuple[str, ...]]
    """Raw options, repeated in the suggested next commands."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCommand(FolderOption, ExperimentCommand):
    """A command on a run of an experiment, which may have several processes."""

    coordinator: str = ""
    """HOST:PORT of process 0 of a multi-process run; auto: as the cluster reports it."""
    processes: int = 0
    """Number of processes of the run."""
    process: int = -1
    """Index of this process, from 0."""

    def join(self, saves: bool = False) -> Screen:
        """Connects the processes of the run.

        Args:
          saves: whether the command writes checkpoints, as `multihost.initialize` takes it.

        Returns:
          The screen; it is quiet except on process 0.
        """
        initialize(self.coordinator, self.processes, self.process, saves=saves)
        return Screen(self.json, quiet=not is_process_zero())

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.workdir or Path("runs") / run_name(self.name)
