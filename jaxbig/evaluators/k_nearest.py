"""The evaluator of the nearest neighbors among frozen features (Wu et al., 2018).

Letters in shape comments: N examples to fit, M to classify, D features.
"""

import dataclasses

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.errors import Refused
from jaxbig.evaluators.frozen_features import FrozenFeatures
from jaxbig.train.passes import Evaluation


@dataclasses.dataclass(frozen=True)
class KNearest(FrozenFeatures):
    """Accuracy of the majority class among the k training examples with the most similar features.

    Similarity is the cosine. The model is frozen, and nothing is fitted.
    """

    k: PositiveInt = 20
    """The number of neighbors."""

    def check(self, evaluation: Evaluation) -> None:
        super().check(evaluation)
        count = len(self.fitted(evaluation))
        if self.k > count:
            of = f"by most={self.most}" if count == self.most else "all there are"
            raise Refused(
                f"k {self.k:,} neighbors of {count:,} training examples, {of}: make it {count:,} "
                f"or less."
            )

    def classify(self, features: np.ndarray, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
        from sklearn.neighbors import KNeighborsClassifier  # here: slow to import

        nearest = KNeighborsClassifier(self.k, metric="cosine").fit(features, targets)
        return nearest.predict(others)
