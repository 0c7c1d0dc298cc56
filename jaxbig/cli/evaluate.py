"""`jaxbig evaluate`: evaluates a checkpoint of a run."""

import dataclasses

from jaxbig.cli.experiment_command import RunCommand
from jaxbig.cli.tables import pairs
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.system.exit_codes import DONE
from jaxbig.train.evaluate import evaluate_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(RunCommand):
    """Evaluates a checkpoint of a run on its evaluation or test split; writes nothing there."""

    step: str = "last"
    """Which checkpoint: last, best, or the number of its step."""
    split: str = "eval"
    """eval, or test where the data has such a split."""

    def __call__(self) -> int:
        self.join()
        result = evaluate_run(self.experiment, self.folder, self.step, self.split)
        if not is_process_zero():
            return DONE
        title = f"{self.name} at step {result['step']}, split {self.split}"
        return self.emit(result, (title, pairs("metric", result["metrics"])))
