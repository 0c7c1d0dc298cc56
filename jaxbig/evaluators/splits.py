"""The evaluators of other splits and other data: the run's objective and metrics there."""

import dataclasses

from jaxbig.config.evaluator import Evaluator
from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Data, Source
from jaxbig.program.program import Program
from jaxbig.program.state import TrainState
from jaxbig.train.passes import Evaluation


@dataclasses.dataclass(frozen=True)
class Split(Evaluator):
    """Another split of the run's data, by the run's objective and metrics.

    The data is transformed as for an evaluation: training examples without augmentation.
    """

    of: str = "test"
    """train, eval, or test where the data has such a split."""
    batches: PositiveInt | None = None
    """Only the first batches; None: every example once."""

    @property
    def split(self) -> str:
        return self.name or f"{self.of}_split"

    def check(self, evaluation: Evaluation) -> None:
        self.opened(evaluation)

    def opened(self, evaluation: Evaluation) -> tuple[Program, Source]:
        """The compiled functions for the data, and its examples."""
        return evaluation.program, evaluation.source(self.of)

    def run(self, evaluation: Evaluation, state: TrainState) -> dict[str, float]:
        program, source = self.opened(evaluation)
        return evaluation.metrics(state, source, program, batches=self.batches)


@dataclasses.dataclass(frozen=True)
class OtherData(Split):
    """Other data, by the run's objective and metrics.

    Its batches must have the fields of the run's data. What the run's data has learned, such as a
    tokenizer, class names or the mean and standard deviation of columns, is used for it too.
    """

    data: Data = dataclasses.field(kw_only=True)
    """Where the examples are."""
    of: str = "eval"
    """Its split: train, eval, or test where it has one."""

    @property
    def split(self) -> str:
        return self.name or Evaluator.split.fget(self)  # type: ignore[misc]

    def opened(self, evaluation: Evaluation) -> tuple[Program, Source]:
        program = evaluation.program_on(self.data)
        return program, evaluation.source(self.of, program)
