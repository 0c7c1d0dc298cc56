"""The evaluator of a linear probe: logistic regression on frozen features (Alain & Bengio, 2016).

Letters in shape comments: N examples to fit, M to classify, D features.
"""

import dataclasses
import warnings

import numpy as np

from jaxbig.constraints import PositiveFloat, PositiveInt
from jaxbig.evaluators.frozen_features import FrozenFeatures


@dataclasses.dataclass(frozen=True)
class LinearProbe(FrozenFeatures):
    """Accuracy of logistic regression on the model's features, each scaled to variance 1.

    The model is frozen; each time another regression is fitted.
    """

    inverse_penalty: PositiveFloat = 1.0
    """Less keeps weights smaller (scikit-learn's C)."""
    iterations: PositiveInt = 1_000
    """The most of the fit."""

    def classify(self, features: np.ndarray, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
        # here: slow to import
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(C=self.inverse_penalty, max_iter=self.iterations)
        probe = make_pipeline(StandardScaler(), regression)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return probe.fit(features.astype(np.float64), targets).predict(others)
