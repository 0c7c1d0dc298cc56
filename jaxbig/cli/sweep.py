"""`jaxbig sweep`, the verb."""

import dataclasses
from pathlib import Path
from typing import Annotated

import filelock
import tyro

from jaxbig.cli.command import DONE, FAILED, Flag, OfExperiment, run_name
from jaxbig.config.overrides import parse
from jaxbig.distributed.run_lock import remove_empty
from jaxbig.errors import Refused
from jaxbig.sweep import search_space, sweep
from jaxbig.system.signals import INTERRUPTED
from jaxbig.tracking.console import Screen
from launch.common import at_least
from launch.slurm import Slurm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(OfExperiment):
    """The experiment under many settings, so many at once, or as a Slurm array; the same command goes on. Ends with a
    ranked table, `sweep.json` and `sweep.png`."""

    axes: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """What is swept: OPTION=VALUE,VALUE, all with all; with --random also OPTION=log:LOW:HIGH, or uniform, or int."""
    random: int | None = None
    """So many draws from --set, in place of all."""
    draw_seed: int = 0
    """Of the draws."""
    file: Annotated[Path | None, tyro.conf.arg(name="list")] = None
    """A file with a JSON object of options on each line: what is run, in place of --set."""
    workdir: Path | None = None
    """The folder of the sweep; runs/NAME-sweep if it is not given."""
    at_once: int = 1
    """How many run at once; 0: none, only what is there is ranked."""
    slurm: tuple[str, ...] | None = None
    """Print a Slurm array of what is not done, and run nothing; options of launch.slurm as time=4:00:00 gpus=1."""
    submit: Flag = False
    """Submit that array."""

    def __call__(self) -> int:
        at_least("--at-once", self.at_once, 0)
        folder, screen = (
            self.workdir or Path("runs") / f"{run_name(self.name)}-sweep",
            Screen(self.json),
        )
        asked = search_space.settings(self.axes, self.random, self.draw_seed, self.file, self.name)
        new = [each for each in (folder / "lock", folder, *folder.parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / "lock", timeout=0):
                try:
                    runs = sweep.Sweep(folder, self.name, self.common(), asked)
                except Refused:
                    remove_empty(new)
                    raise
                return self.carry_out(runs, screen)
        except filelock.Timeout:
            raise Refused(
                f"{folder} is in use by another sweep: stop that, or give another --workdir."
            ) from None
        except OSError as error:
            raise Refused(
                f"cannot write in {folder}: {error.strerror or error}; give another --workdir."
            ) from None

    def common(self) -> list[str]:
        """The options as they were written, without the sweep's own: those of every run."""
        own = {
            "set",
            "random",
            "draw-seed",
            "list",
            "workdir",
            "at-once",
            "slurm",
            "submit",
            "json",
        }
        kept: list[str] = []
        mine, seen = False, set()
        for word in self.options:
            if word.startswith("--"):
                name = word[2:].split("=")[0].replace("_", "-")
                if (mine := name in own) and name in seen:
                    raise Refused(f"--{name} is given twice: write all of it behind one.")
                seen.add(name)
            kept += [] if mine else [word]
        return kept

    def carry_out(self, runs: sweep.Sweep, screen: Screen) -> int:
        if self.slurm is not None:
            job = parse(
                Slurm,
                [self.name, *(f"--{each}" for each in self.slurm)],
                "launch.slurm",
                program="python -m",
            )
            elements = tuple((number, tuple(runs.arguments(number))) for number in runs.waiting())
            job = dataclasses.replace(job, overrides=tuple(runs.common), elements=elements)
            if not elements:
                raise Refused(
                    f"all runs of {runs.folder} are done: the same command without --slurm ranks them."
                )
            job.check()
            print(job.render(), flush=True)
            return job.start() if self.submit else DONE
        finished = runs.run(self.at_once, screen.say) if self.at_once else True
        result = runs.result()
        drawn = sweep.draw(result, runs.folder / "sweep.png")
        self.emit(result, (f"\n{self.name}, by eval/{result['criterion']}", sweep.table(result)))
        screen.say(
            f"\nall of it: {runs.folder}/sweep.json"
            + (f", drawn: {runs.folder}/sweep.png" if drawn else "")
        )
        if not finished and runs.waiting():
            screen.say("interrupted: the same command goes on from there")
            return INTERRUPTED
        return FAILED if runs.failures else DONE
