"""`jaxbig lr-find`: suggests a learning rate."""

import dataclasses
import shlex
from pathlib import Path

from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import pairs
from jaxbig.config.experiment_files import run_folder
from jaxbig.config.options import run_name, without
from jaxbig.system.exit_codes import DONE
from jaxbig.tools.find_learning_rate import find_learning_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class LrFind(ExperimentCommand):
    """Suggests a learning rate: raises it over a few steps until the loss diverges, and draws that.

    No run's folder is read or changed.
    """

    start: float = 1e-7
    """The learning rate of the first step."""
    end: float = 10.0
    """The learning rate of the last step."""
    search_steps: int = 200
    """The number of steps, if the loss does not diverge before."""
    picture: Path = Path("lr_find.png")
    """Where the loss is drawn over the learning rate."""

    def __call__(self) -> int:
        screen = self.screen()
        result = find_learning_rate(
            self.experiment,
            start=self.start,
            end=self.end,
            steps=self.search_steps,
            picture=self.picture,
            screen=screen,
        )
        rate = result["suggestion"]
        rows = {
            "suggestion": "none: the loss did not fall" if rate is None else f"{rate:.2g}",
            "lowest loss at": f"{result['lowest']:.2g}",
            "ended by": "divergence" if result["diverged"] else "the last step",
            "steps": result["steps"],
            "picture": result["picture"],
        }
        self.emit(result, ("", pairs("learning rate", rows)))
        if rate is not None and hasattr(self.experiment.optimizer.learning_rate, "peak"):
            words = ["jaxbig", "train", self.name, *self.common_options()]
            if run_folder(self.name):
                words += ["--workdir", f"runs/{run_name(self.name)}-lr"]
            screen.say(f"\nnext: {shlex.join(words)} --optimizer.learning-rate.peak {rate:.2g}")
        return DONE

    def common_options(self) -> list[str]:
        """The raw options of the experiment, without this command's own."""
        own = {field.name for field in dataclasses.fields(LrFind)}
        own -= {field.name for field in dataclasses.fields(ExperimentCommand)} - {"json"}
        valued = [f"--{name.replace('_', '-')}" for name in own - {"json"}]
        return without(self.options, [*valued, "--optimizer.learning-rate.peak"], flags=["--json"])
