"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses
import re
import shlex

from jaxbig.cli.command import DONE, Flag, OfRun, rows
from jaxbig.config.overrides import lasting, without
from jaxbig.config.serialize import flat
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.system.signals import INTERRUPTED
from jaxbig.tools.smoke_test import emptied, smoke
from jaxbig.train.trainer import fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(OfRun):
    """Runs it; goes on by itself from the last good checkpoint in its folder."""

    fork: Flag = False
    """Where the folder holds another run: begin anew there from that run's weights, and keep it aside."""

    adopt: Flag = False
    """Where the folder's run.json is lost or empty: resume from its checkpoints, which this very command must have
    made."""

    smoke: Flag = False
    """Two steps and an evaluation of a small sibling, on made-up records where the data is not here; in a folder of its
    own, which is emptied first."""

    def __call__(self) -> int:
        screen = self.join(saves=True)
        if self.smoke:
            folder = self.workdir or self.folder.with_name(f"{self.folder.name}-smoke")
            result = fit(smoke(self.experiment), emptied(folder), screen)
            return self.emit(result, ("", rows("smoke test", dict(flat(result["metrics"])))))
        result = fit(self.experiment, self.folder, screen, fork=self.fork, adopt=self.adopt)
        if not is_process_zero():
            return INTERRUPTED if result["interrupted"] else DONE
        self.emit(result)
        if result["interrupted"]:
            saved = (
                f"saved at step {result['step']}"
                if result["step"]
                else "nothing was to be saved yet"
            )
            screen.say(f"interrupted; {saved}: the same command goes on from there")
            return INTERRUPTED
        screen.result(f"{self.name} is done", result, self.folder, self.hints())
        return DONE

    def hints(self) -> list[str]:
        """Commands to try next: evaluate this run, repeat it with the next seed in a folder of its own, compare."""
        same, seed = lasting(self.options), str(self.experiment.seed + 1)
        other = f"{re.sub(r'-seed[0-9]+$', '', str(self.folder))}-seed{seed}"
        repeated = [*without(same, ("--seed", "--workdir")), "--seed", seed, "--workdir", other]
        commands = [
            ["evaluate", self.name, *same],
            ["train", self.name, *repeated],
            ["compare", str(self.folder), other],
            ["train", self.name, "--help"],
        ]
        return [shlex.join(["jaxbig", *words]) for words in commands]
