"""What the command line can do: a verb is a class, its fields are its options."""

import dataclasses

from jaxbig.cli.command import DONE, OfRun, rows
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.train.evaluate import evaluate_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(OfRun):
    """The last good checkpoint of a run on the evaluation split; changes nothing in its folder."""

    def __call__(self) -> int:
        self.join()
        result = evaluate_run(self.experiment, self.folder)
        if not is_process_zero():
            return DONE
        return self.emit(
            result, (f"{self.name} at step {result['step']}", rows("metric", result["metrics"]))
        )
