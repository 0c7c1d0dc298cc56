"""Ranks among candidates by hand, and what is refused."""

from typing import Any

import numpy as np
import pytest
from support.experiments import small

from jaxbig.config.evaluator import Every
from jaxbig.errors import Refused
from jaxbig.evaluators.matching import Matching, ranks
from jaxbig.program.program import make_program
from jaxbig.train.passes import Evaluation, check_evaluators


def test_ranks_are_those_by_hand() -> None:
    """Equal scores count against, and what is no number is never found."""
    scores = np.array([[3.0, 1, 2], [5, 4, 4], [np.nan, 0, np.nan]])
    assert ranks(scores).tolist() == [1, 3, 3]


def test_recall_is_the_share_of_pairs_whose_half_is_among_the_best() -> None:
    class Found:
        """Pairs 0 and 1 are confused in one direction."""

        def source(self, split: str) -> Any:
            return range(3)

        def predictions(self, state: Any, source: Any) -> dict[str, np.ndarray]:
            vectors = np.array([[1.0, 0, 0], [2, 1, 0], [0, 0, 1]])
            return {"vector": vectors, "other_vector": np.eye(3)}

    evaluation: Any = Found()
    found = Matching(candidates=3).run(evaluation, None)
    # given the first other half 2 > 1: the second one is taken; and given the second input too
    assert found == {
        "recall_1": pytest.approx(2 / 3),
        "recall_5": 1.0,
        "reverse_recall_1": pytest.approx(2 / 3),
        "reverse_recall_5": 1.0,
    }


def test_what_does_not_fit_is_refused() -> None:
    every = Every(1, Matching())
    experiment = small("digits_convnet", evaluators=(every,))
    with pytest.raises(Refused, match="not Classification"):
        check_evaluators(Evaluation(make_program(experiment)))

    class Few:
        """Of 9 pairs."""

        def prediction_shapes(self) -> dict[str, Any]:
            return {"vector": None, "other_vector": None}

        def source(self, split: str) -> Any:
            return range(9)

    evaluation: Any = Few()
    Matching(candidates=9).check(evaluation)
    with pytest.raises(Refused, match="candidates 10: there are 9 pairs"):
        Matching(candidates=10).check(evaluation)
