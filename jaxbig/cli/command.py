"""What all verbs of the command line share: their common options, their output, and the codes they exit with."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxbig.config.experiment import Experiment
from jaxbig.distributed.multihost import initialize, is_process_zero
from jaxbig.system.json_files import to_json_text
from jaxbig.tracking.console import Screen, table

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 130
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    json: Flag = False
    """Print one JSON object on standard output, and nothing else there."""

    def emit(self, value: Any, *tables: tuple[str, list[dict[str, Any]]]) -> int:
        """Prints the value as JSON if that was asked for, else the tables, each a title and rows."""
        if self.json:
            print(to_json_text(value, indent=1))
        for title, rows in () if self.json else tables:
            table(rows, title)
        return DONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfExperiment(Verb):
    name: tyro.conf.Suppress[str]
    options: tyro.conf.Suppress[tuple[str, ...]]
    """As they were written, for the commands that a last screen proposes."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfRun(OfExperiment):
    workdir: Path | None = None
    """The folder of the run; runs/NAME if it is not given."""
    coordinator: str = ""
    """HOST:PORT of process 0 where several processes make one run, or auto: as the cluster tells."""
    processes: int = 0
    """How many they are."""
    process: int = -1
    """Which of them this is, from 0."""

    def join(self, saves: bool = False) -> Screen:
        """Finds the other processes; gives the screen, which is quiet but for the first. saves: `initialize`'s."""
        initialize(self.coordinator, self.processes, self.process, saves=saves)
        return Screen(self.json, quiet=not is_process_zero())

    @property
    def folder(self) -> Path:
        return self.workdir or Path("runs") / run_name(self.name)


def run_name(experiment: str) -> str:
    """Name of the folder of an experiment's run: the file's without `.py`, or the last part of a dotted module."""
    file = Path(experiment)
    return file.stem if file.suffix == ".py" else file.name.split(".")[-1]


def rows(name: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """A dictionary as the rows of a table of two columns."""
    return [{name: key, "value": value} for key, value in values.items()]
