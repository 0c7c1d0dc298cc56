"""The base class of evaluators that fit a classifier on the frozen features of a model.

Letters in shape comments: N examples to fit, M to classify, D features.
"""

import abc
import dataclasses
from typing import Any

import numpy as np

from jaxbig.config.evaluator import Evaluator
from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Source
from jaxbig.errors import Refused
from jaxbig.train.passes import Evaluation, evenly


@dataclasses.dataclass(frozen=True)
class FrozenFeatures(Evaluator):
    """Fits a classifier on the features of training examples; its accuracy on others.

    The features are those that the model's method `features` gives: by default the input of its
    classifier head. The devices compute them; process 0 fits, with scikit-learn.
    """

    of: str = dataclasses.field(default="eval", kw_only=True)
    """The split that is classified: eval, or test where the data has such a split."""
    most: PositiveInt = dataclasses.field(default=10_000, kw_only=True)
    """The most training examples to fit, evenly spread over all."""

    @abc.abstractmethod
    def classify(self, features: np.ndarray, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The classes of other examples, int [M].

        Args:
          features: [N, D], of the examples to fit.
          targets: their classes, int [N], two or more different ones.
          others: [M, D], features of the examples to classify.
        """

    def check(self, evaluation: Evaluation) -> None:
        shapes = evaluation.feature_shapes()
        features = shapes["features"].shape
        model = type(evaluation.experiment.model).__name__
        if len(features) != 2:
            raise Refused(
                f"the features of {model} are {list(features)}, and must be [batch, features]: "
                f"give it a method features(self, inputs, train=False) that returns these."
            )
        targets = shapes.get("targets")
        if targets is None or targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
            has = "none" if targets is None else f"{targets.dtype} {list(targets.shape)}"
            raise Refused(
                f"each example must have one class, as targets int32 {list(features[:1])}; this "
                f"data's targets are {has}."
            )
        self.fitted(evaluation)
        evaluation.source(self.of)

    def fitted(self, evaluation: Evaluation) -> Source:
        """The training examples to fit."""
        return evenly(evaluation.source("train"), self.most)

    def run(self, evaluation: Evaluation, state: Any) -> dict[str, float]:
        fitted = evaluation.features(state, self.fitted(evaluation))
        others = evaluation.features(state, evaluation.source(self.of))

        def accuracy() -> float:
            features = fitted["features"]
            targets = fitted["targets"]
            if not (np.isfinite(features).all() and np.isfinite(others["features"]).all()):
                return float("nan")
            if len(np.unique(targets)) == 1:
                return float(np.mean(others["targets"] == targets[0]))
            found = self.classify(features, targets, others["features"])
            return float(np.mean(found == others["targets"]))

        return {"accuracy": evaluation.on_process_zero(accuracy)}
