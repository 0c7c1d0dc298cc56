"""`jaxbig train`: trains an experiment, or resumes its run."""

import dataclasses
import re
import shlex
from typing import Any

from jaxbig.cli.experiment_command import RunCommand
from jaxbig.cli.tables import pairs
from jaxbig.config.deserialize import load_run
from jaxbig.config.options import TrainOptions, lasting, names, without
from jaxbig.config.serialize import flat
from jaxbig.distributed.mesh import format_mesh
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.errors import Refused
from jaxbig.system.exit_codes import DONE, INTERRUPTED
from jaxbig.tools.smoke_test import emptied, smoke
from jaxbig.train.dry_run import dry_run
from jaxbig.train.epochs import with_epochs
from jaxbig.train.step_profiler import traced_steps
from jaxbig.train.trainer import fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainOptions, RunCommand):
    """Trains; resumes automatically from the last good checkpoint in the run's folder."""

    def __call__(self) -> int:
        self.check_options()
        screen = self.join(saves=True)
        if self.smoke:
            folder = self.workdir or self.folder.with_name(f"{self.folder.name}-smoke")
            shrunken = smoke(self.experiment)
            profile = traced_steps(self.profile, shrunken.steps)
            result = fit(shrunken, emptied(folder), screen, profile=profile, dump=self.dump)
            return self.emit(result, ("", pairs("smoke test", dict(flat(result["metrics"])))))
        experiment = self.experiment
        if self.epochs:
            experiment = with_epochs(experiment, self.epochs)
        how = {"fork": self.fork, "adopt": self.adopt, "resume_from": self.resume_from}
        profile = traced_steps(self.profile, experiment.steps)
        if self.dry_run:
            return self.show_dry_run(dry_run(experiment, self.folder, **how))
        result = fit(experiment, self.folder, screen, profile=profile, dump=self.dump, **how)
        if not is_process_zero():
            return INTERRUPTED if result["interrupted"] else DONE
        self.emit(result)
        if result["interrupted"]:
            saved = "no step was finished yet"
            if result["step"]:
                saved = f"saved at step {result['step']}"
            screen.say(f"interrupted; {saved}: run the same command to resume")
            return INTERRUPTED
        screen.result(f"{self.name} is done", result, self.folder, self.hints())
        return DONE

    def show_dry_run(self, result: dict[str, Any]) -> int:
        """Prints what a run would do; an exit code."""
        if not is_process_zero():
            return DONE
        shown = {name: value for name, value in result.items() if name != "experiment"}
        shown["mesh"] = format_mesh(shown["mesh"])
        title = f"{self.name} could run here"
        return self.emit(result, (title, pairs("dry run", shown)))

    def check_options(self) -> None:
        """Raises `Refused` for options that contradict each other."""
        if self.epochs and "--steps" in names(self.options):
            raise Refused("--epochs and --steps both set the length of the run: give one of them.")
        if self.fork and self.resume_from:
            raise Refused(
                "--resume-from goes back in a run, and --fork starts another: give one of them."
            )

    def hints(self) -> list[str]:
        """Commands to try next: evaluate, repeat with another seed in another folder, compare.

        They name the run's folder, or where its run.json cannot give the experiment, as it has
        classes of the user's own, the experiment with its options.
        """
        name = str(self.folder)
        same: list[str] = []
        try:
            load_run(self.folder)
        except Refused:
            name = self.name
            same = lasting(self.options)
        seed = str(self.experiment.seed + 1)
        other = f"{re.sub(r'-seed[0-9]+$', '', str(self.folder))}-seed{seed}"
        repeated = [*without(same, ("--seed", "--workdir")), "--seed", seed, "--workdir", other]
        commands = [
            ["evaluate", name, *without(same, ("--epochs",))],
            ["train", name, *repeated],
            ["compare", str(self.folder), other],
            ["train", self.name, "--help"],
        ]
        return [shlex.join(["jaxbig", *words]) for words in commands]
