"""The base class of evaluators: what a run measures besides its evaluation split."""

import abc
import dataclasses
import re
from typing import Any, Self

from jaxbig.constraints import PositiveInt

WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""The places between the words of a class's name."""


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
    """Measures the model of a run in a way of its own: other data, frozen features, written texts.

    A metric (`Metric`) is made of the outputs that an evaluation has anyway. An evaluator chooses
    the data and what the model does with it; it can use metrics. It sees a run and does not change
    it. Its results are a row of `metrics.jsonl`, with the evaluator's name as split.

    Every process of a run calls `check` and `run`, so that both can use all devices. An error in
    one ends the run, as any error does.
    """

    name: str = dataclasses.field(default="", kw_only=True)
    """The split of its rows; empty: its class in small letters, as k_nearest."""

    @property
    def split(self) -> str:
        """The split of its rows."""
        return self.name or re.sub(WORDS, "_", type(self).__name__).lower()

    def standalone(self) -> Self:
        """A copy that needs no other run, for a quick test; by default the same."""
        return self

    def check(self, evaluation: Any) -> None:  # noqa: B027
        """Raises `Refused` if it does not fit the run; called before anything is compiled.

        Args:
          evaluation: an `Evaluation` (train/passes.py), as `run` takes it.
        """

    @abc.abstractmethod
    def run(self, evaluation: Any, state: Any) -> dict[str, float]:
        """The metrics by name.

        Args:
          evaluation: an `Evaluation`: the run's data and what can be computed on it.
          state: the `TrainState` to evaluate.
        """


@dataclasses.dataclass(frozen=True)
class Every:
    """An evaluator, and after how many steps it is run."""

    steps: PositiveInt
    """Steps between two evaluations; after the last step there is one too."""
    evaluator: Evaluator
    """What is evaluated."""
