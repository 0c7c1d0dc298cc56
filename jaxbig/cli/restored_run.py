"""The base class of the commands that use a trained run as it is: predict, generate."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tyro

from jaxbig.cli.command import Command
from jaxbig.config.deserialize import classes_of, experiment_file, from_run
from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.config.experiment_files import run_folder
from jaxbig.config.options import run_name
from jaxbig.errors import Refused
from jaxbig.system.accelerators import skip_absent_tpu
from jaxbig.tracking.console import Screen
from jaxbig.train.run import Run, restore
from jaxbig.train.run_description import read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoredRunCommand(Command):
    """A command on one checkpoint of a run."""

    run: tyro.conf.Positional[str]
    """The run's folder; or an experiment's name, or its file NAME.py, for runs/NAME."""
    step: str = "last"
    """Which checkpoint: last, best, or the number of its step."""
    experiment: str = ""
    """The experiment's file, where the run has classes of your own."""

    def restored(self) -> Run:
        """The run at the checkpoint that was asked for, without what only training needs."""
        skip_absent_tpu()
        Screen(True, quiet=self.quiet, verbose=self.verbose).with_log()
        found = run_folder(self.run)
        folder = found or Path("runs") / run_name(self.run)
        file = self.experiment or ("" if found else self.run)
        experiment = run_experiment(folder, classes_of(load(file)).values() if file else ())
        step: Any = int(self.step) if self.step.isdecimal() else self.step
        return restore(folder, step=step, experiment=experiment, for_training=False)


def run_experiment(folder: Path, own: Iterable[type]) -> Experiment:
    """The experiment of a run, with its options; `own` are classes that jaxbig does not ship."""
    described = read_run(folder)
    if described is None:
        raise Refused(f"{folder} holds no run: there is no file run.json.")
    try:
        return from_run(described, own, callbacks=False)
    except Refused as error:
        raise Refused(
            f"the experiment of {folder} cannot be rebuilt from its run.json: {error}; give its "
            f"file, as --experiment {experiment_file(described)}."
        ) from None
