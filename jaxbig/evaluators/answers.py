"""The evaluator of answers to questions: SQuAD's exact match and F1."""

import collections
import dataclasses
import re
import string
from typing import Any

import numpy as np

from jaxbig.config.evaluator import Evaluator
from jaxbig.data.questions import Questions
from jaxbig.errors import Refused
from jaxbig.train.passes import Evaluation

ARTICLES = re.compile(r"\b(a|an|the)\b")
UNSIGNED = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Answers(Evaluator):
    """Exact match and F1 of answers, means over the questions of a split (Rajpurkar et al., 2016,
    section 6.1): of several right answers the one counts that fits best, and case, punctuation and
    articles do not count."""

    of: str = "eval"
    """train, eval, or test where the data has such a split."""

    def check(self, evaluation: Evaluation) -> None:
        experiment = evaluation.experiment
        data = experiment.data
        if not isinstance(data, Questions) or "spans" not in evaluation.prediction_shapes():
            raise Refused(
                f"Answers needs the data Questions and the objective Span, not "
                f"{type(data).__name__} and {type(experiment.objective).__name__}."
            )
        if data.may_leave_out():
            raise Refused("Answers needs every record: leave --data.skip-bad-records out.")
        evaluation.source(self.of)

    def run(self, evaluation: Evaluation, state: Any) -> dict[str, float]:
        data: Any = evaluation.experiment.data
        objective = evaluation.experiment.objective
        source: Any = evaluation.source(self.of)
        found = evaluation.predictions(state, source)
        scores = []
        for index in range(len(source)):
            one = {name: each[index] for name, each in found.items()}
            answer = objective.describe(one, data, top=1)["answer"]
            right = [text for text, _ in data.answers_of(source.records[index])]
            scores.append([max(score(answer, text) for text in right) for score in (exact, f1)])
        exact_match, overlap = np.mean(scores, axis=0)
        return {"exact_match": exact_match, "f1": overlap}


def normalized(text: str) -> list[str]:
    """The words of an answer in small letters, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(UNSIGNED)).split()


def exact(answer: str, right: str) -> float:
    """1 if two answers are the same but for case, punctuation, articles and spaces, else 0."""
    return float(normalized(answer) == normalized(right))


def f1(answer: str, right: str) -> float:
    """The harmonic mean of precision and recall of an answer's words; of no words 1 if neither has
    one, else 0."""
    words = normalized(answer)
    wanted = normalized(right)
    if not words or not wanted:
        return float(words == wanted)
    shared = (collections.Counter(words) & collections.Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))
