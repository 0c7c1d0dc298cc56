"""The calibration error: how far a classifier's confidence is from its accuracy.

Letters in shape comments: N examples, K classes.
"""

import dataclasses

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.objectives.class_scores import ClassMetric
from jaxbig.objectives.metric import Kept


@dataclasses.dataclass(frozen=True)
class CalibrationError(ClassMetric):
    """The expected calibration error (Guo et al., 2017), as `calibration_error`.

    Examples are put into bins of equal width by the probability of the likeliest class; the error
    is the mean over the examples of how far the accuracy of their bin is from its mean probability.
    With any number of classes an example, the probability of each class counts, against how often
    it is there.
    """

    bins: PositiveInt = 15
    """Their number."""

    def result(self, kept: Kept) -> dict[str, float]:
        logits = kept["outputs"].astype(np.float64)  # [N, K]
        targets = kept["targets"]
        if targets.ndim == 2:
            confidence = 0.5 * (1 + np.tanh(logits / 2)).reshape(-1)
            right = (targets > 0.5).reshape(-1)
        else:
            highest = logits.max(axis=1, keepdims=True)
            confidence = 1 / np.exp(logits - highest).sum(axis=1)
            right = logits.argmax(axis=1) == targets
        if not np.isfinite(confidence).all():
            return {"calibration_error": float("nan")}
        number = np.minimum((confidence * self.bins).astype(int), self.bins - 1)
        gaps = np.bincount(number, weights=right - confidence, minlength=self.bins)
        return {"calibration_error": float(np.abs(gaps).sum() / len(right))}
