"""The evaluator of pairs: which half belongs to which, by the rank among a number of candidates."""

import dataclasses
from typing import Any

import numpy as np

from jaxbig.config.evaluator import Evaluator
from jaxbig.constraints import PositiveInt
from jaxbig.errors import Refused
from jaxbig.train.passes import Evaluation, evenly

BEST = (1, 5)
"""The ranks up to which recall is measured."""


@dataclasses.dataclass(frozen=True)
class Matching(Evaluator):
    """Recall at 1 and 5 of the other half of a pair among those of all candidates, in both
    directions: of `inputs` given `other`, and as `reverse_recall` of `other` given `inputs`.

    The score is the product of both vectors. Of equal scores a wrong half comes first.
    """

    of: str = "eval"
    """train, eval, or test where the data has such a split."""
    candidates: PositiveInt = 1_000
    """How many pairs, evenly spread over all; each half is looked for once."""

    def check(self, evaluation: Evaluation) -> None:
        if not {"vector", "other_vector"} <= evaluation.prediction_shapes().keys():
            raise Refused(
                f"Matching needs the vectors of both halves of pairs, as the objective Contrastive "
                f"predicts, and not {type(evaluation.experiment.objective).__name__}."
            )
        count = len(evaluation.source(self.of))
        if self.candidates > count:
            raise Refused(
                f"candidates {self.candidates:,}: there are {count:,} pairs: make it {count:,} or "
                f"less."
            )

    def run(self, evaluation: Evaluation, state: Any) -> dict[str, float]:
        source = evenly(evaluation.source(self.of), self.candidates)
        found = evaluation.predictions(state, source)
        scores = found["other_vector"] @ found["vector"].T
        return {
            f"{name}recall_{best}": float(np.mean(ranks(each) <= best))
            for name, each in (("", scores), ("reverse_", scores.T))
            for best in BEST
        }


def ranks(scores: np.ndarray) -> np.ndarray:
    """The rank from 1 of each row's own column in scores [N, N], the last among equal ones."""
    return len(scores) - np.sum(scores < scores.diagonal()[:, None], axis=1)
