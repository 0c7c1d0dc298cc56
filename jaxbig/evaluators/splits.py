"""The evaluators of other splits and other data: the run's objective and metrics there."""

import dataclasses
from typing import Any

from jaxbig.config.evaluator import Evaluator
from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Data
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
        self.on_data(evaluation).source(self.of)

    def on_data(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation on the data that is meant."""
        return evaluation

    def run(self, evaluation: Evaluation, state: Any) -> dict[str, float]:
        there = self.on_data(evaluation)
        return there.metrics(state, there.source(self.of), batches=self.batches)


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

    def on_data(self, evaluation: Evaluation) -> Evaluation:
        return evaluation.on(self.data)
