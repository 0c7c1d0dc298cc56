"""The evaluator of the parts of a mixture, each apart."""

import dataclasses
from typing import Any

import numpy as np

from jaxbig.config.evaluator import Evaluator
from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Source
from jaxbig.data.records.mixture import OpenMixture
from jaxbig.errors import Refused
from jaxbig.train.passes import Evaluation, Subset


@dataclasses.dataclass(frozen=True)
class MixtureParts(Evaluator):
    """Each part of the `Mixture` of a run's data, by the run's objective and metrics.

    A metric has the number of its part before its name, as 1/loss.
    """

    of: str = "eval"
    """train, eval, or test where all parts have such a split."""
    batches: PositiveInt | None = None
    """Only the first batches of each part; None: every example once."""

    def check(self, evaluation: Evaluation) -> None:
        self.parts(evaluation)

    def parts(self, evaluation: Evaluation) -> list[Source]:
        """The examples of each part."""
        source = evaluation.source(self.of)
        records = getattr(source, "records", None)
        if not isinstance(records, OpenMixture):
            name = type(evaluation.experiment.data).__name__
            raise Refused(f"the records of {name} are no Mixture: leave MixtureParts out.")
        ends = records.begins[1:]
        return [
            Subset(source, np.arange(begin, end))
            for begin, end in zip(records.begins, ends, strict=False)
        ]

    def run(self, evaluation: Evaluation, state: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, part in enumerate(self.parts(evaluation), 1):
            values = evaluation.metrics(state, part, batches=self.batches)
            found |= {f"{number}/{name}": value for name, value in values.items()}
        return found
