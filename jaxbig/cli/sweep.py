"""`jaxbig sweep`: runs an experiment under many settings and ranks them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import filelock
import tyro

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import sweep_ranking
from jaxbig.config.options import Flag, parse, run_name
from jaxbig.errors import Refused
from jaxbig.launch.common import at_least
from jaxbig.launch.slurm import Slurm
from jaxbig.sweep import search_space, sweep
from jaxbig.sweep.picture import draw
from jaxbig.system.exit_codes import DONE, FAILED, INTERRUPTED
from jaxbig.system.run_folder import remove_empty
from jaxbig.tracking.console import Screen

SPELLED = {"axes": "set", "file": "list"}
"""Options whose fields cannot have their names, which are Python's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(ExperimentCommand):
    """Runs the experiment under many settings, several at once, or as a Slurm array.

    Ends with a ranked table, `sweep.json` and `sweep.png`. The same command resumes the sweep.
    """

    axes: Annotated[tuple[str, ...], tyro.conf.arg(name=SPELLED["axes"])] = ()
    """What is swept: OPTION=VALUE,VALUE, every combination; with --random also OPTION=log:LOW:HIGH,
    or uniform, or int."""
    random: int | None = None
    """Number of random draws from --set, instead of every combination."""
    draw_seed: int = 0
    """Seed of the draws."""
    file: Annotated[Path | None, tyro.conf.arg(name=SPELLED["file"])] = None
    """A file with a JSON object of options on each line, to run instead of --set."""
    workdir: Path | None = None
    """The folder of the sweep; runs/NAME-sweep if it is not given."""
    at_once: int = 1
    """Number of runs at once; 0: run none, only rank the existing ones."""
    slurm: tuple[str, ...] | None = None
    """Print a Slurm array of the unfinished runs instead of running them; takes options of
    jaxbig.launch.slurm, as in time=4:00:00 gpus=1."""
    submit: Flag = False
    """Submit that array."""

    def __call__(self) -> int:
        at_least("--at-once", self.at_once, 0)
        folder = self.workdir or Path("runs") / f"{run_name(self.name)}-sweep"
        settings = search_space.settings(
            self.axes, self.random, self.draw_seed, self.file, self.name
        )
        new = [path for path in (folder / "lock", folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / "lock", timeout=0):
                try:
                    runs = sweep.Sweep(folder, self.name, self.common_options(), settings)
                except Refused:
                    remove_empty(new)
                    raise
                return self.carry_out(runs, self.screen())
        except filelock.Timeout:
            raise Refused(
                f"{folder} is in use by another sweep: stop that, or give another --workdir."
            ) from None
        except OSError as error:
            raise Refused(
                f"cannot write in {folder}: {error.strerror or error}; give another --workdir."
            ) from None

    def common_options(self) -> list[str]:
        """The raw options without the sweep's own: those that every run gets."""
        own = {SPELLED.get(field.name, field.name) for field in dataclasses.fields(Sweep)}
        own -= {"name", "options", "experiment", "config"}
        common: list[str] = []
        seen = set()
        is_own = False
        for word in self.options:
            if word.startswith("--"):
                name = word[2:].split("=")[0].replace("-", "_")
                is_own = name in own
                if is_own and name in seen:
                    option = name.replace("_", "-")
                    raise Refused(f"--{option} is given twice: write all its values after one.")
                seen.add(name)
            if not is_own:
                common.append(word)
        return common

    def carry_out(self, runs: sweep.Sweep, screen: Screen) -> int:
        """Runs or submits what is not done, and prints the ranking; an exit code."""
        if self.slurm is not None:
            return self.submit_array(runs, self.slurm)
        finished = True
        if self.at_once:
            finished = runs.run(self.at_once, screen.say)
        result = runs.result()
        drawn = draw(result, runs.folder / "sweep.png")
        self.emit(result, (f"\n{self.name}, by eval/{result['criterion']}", sweep_ranking(result)))
        picture = f", drawn: {runs.folder}/sweep.png" if drawn else ""
        screen.say(f"\nall results: {runs.folder}/sweep.json{picture}")
        if not finished and runs.waiting():
            screen.say("interrupted: run the same command to resume")
            return INTERRUPTED
        return FAILED if runs.failures else DONE

    def submit_array(self, runs: sweep.Sweep, options: Sequence[str]) -> int:
        """Prints the unfinished runs as a Slurm array, and submits it if asked; an exit code."""
        words = [self.name, *(f"--{option}" for option in options)]
        job = parse(Slurm, words, "jaxbig.launch.slurm", program="python -m")
        elements = tuple((number, tuple(runs.arguments(number))) for number in runs.waiting())
        job = dataclasses.replace(job, overrides=tuple(runs.common), elements=elements)
        if not elements:
            raise Refused(
                f"all runs of {runs.folder} are done: the same command without --slurm ranks them."
            )
        job.check()
        print(job.render(), flush=True)
        return job.start() if self.submit else DONE
