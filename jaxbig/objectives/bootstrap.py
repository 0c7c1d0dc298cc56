"""Intervals of a metric by the bootstrap: what it would be on other examples of the same kind."""

import dataclasses
from typing import Annotated, Any

import numpy as np

from jaxbig.constraints import PositiveInt, Range, Seed
from jaxbig.objectives.metric import Kept, Metric


@dataclasses.dataclass(frozen=True)
class Bootstrap(Metric):
    """A metric with its interval, as `auc`, `auc_low` and `auc_high` (Efron, 1979).

    The metric is computed again and again on as many examples, drawn with replacement; of these
    values the interval has the share `level` in the middle.
    """

    metric: Metric
    """The metric, such as `Accuracy()`."""
    samples: PositiveInt = 200
    """How often it is computed."""
    level: Annotated[float, Range(float, gt=0, lt=1)] = 0.95
    """The share of the values in the interval."""
    seed: Seed = 0
    """Of the draws: the same outputs have the same interval."""

    def check(self, outputs: Any, batch: Any) -> None:
        self.metric.check(outputs, batch)

    def keep(self, outputs: Any, batch: Kept) -> Kept:
        return self.metric.keep(outputs, batch)

    def result(self, kept: Kept) -> dict[str, float]:
        count = len(next(iter(kept.values())))
        generator = np.random.default_rng(self.seed)
        drawn = [generator.integers(count, size=count) for _ in range(self.samples)]
        values = [
            self.metric.result({name: field[rows] for name, field in kept.items()})
            for rows in drawn
        ]
        found = dict(self.metric.result(kept))
        for name in list(found):
            each = np.array([value[name] for value in values], np.float64)
            each = each[np.isfinite(each)]  # of classes without an example, some have none
            for end, share in (("low", (1 - self.level) / 2), ("high", (1 + self.level) / 2)):
                found[f"{name}_{end}"] = float(np.quantile(each, share)) if len(each) else np.nan
        return found
