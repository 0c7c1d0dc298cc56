"""Scores of each class over an evaluation: precision, recall, F1, AUC, and the confusion matrix.

Letters in shape comments: N examples, K classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbig.errors import Refused
from jaxbig.objectives.metric import Kept, Metric


@dataclasses.dataclass(frozen=True)
class ClassMetric(Metric):
    """Base class of metrics of a classifier: a logit for each class, and the true classes."""

    def check(self, outputs: Any, batch: Any) -> None:
        super().check(outputs, batch)
        targets = batch["targets"]
        if outputs.ndim != batch["mask"].ndim + 1 or not (
            targets.shape == outputs.shape
            or (targets.shape == outputs.shape[:-1] and np.issubdtype(targets.dtype, np.integer))
        ):
            raise Refused(
                f"metrics: {type(self).__name__} needs a logit for each class, and a class or a "
                f"number for each class as targets; the model returns {outputs.shape}, and targets "
                f"are {targets.shape}, {targets.dtype}."
            )


@dataclasses.dataclass(frozen=True)
class Accuracy(ClassMetric):
    """The share of examples whose class has the largest logit, as `accuracy`.

    `Classification` has it already; here it is for `Bootstrap`. With any number of classes an
    example it is the share of decisions that are right.
    """

    def result(self, kept: Kept) -> dict[str, float]:
        outputs = kept["outputs"]
        targets = kept["targets"]
        if targets.shape == outputs.shape:
            return {"accuracy": float(np.mean((outputs > 0) == (targets > 0.5)))}
        return {"accuracy": float(np.mean(outputs.argmax(axis=-1) == targets))}


@dataclasses.dataclass(frozen=True)
class AUC(ClassMetric):
    """Area under the ROC curve, the mean over the classes, each against the rest, as `auc`.

    A class without an example, or with nothing but examples, does not count.
    """

    def result(self, kept: Kept) -> dict[str, float]:
        areas = areas_under_curves(kept["outputs"], kept["targets"])
        known = [area for area in areas if area is not None]
        return {"auc": float(np.mean(known)) if known else float("nan")}


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision(ClassMetric):
    """Average precision, the mean over the classes, each against the rest, as
    `mean_average_precision`.

    Of a class it is the mean of the precision at each of its examples, ranked by the probability of
    the class (scikit-learn's `average_precision_score`). A class without an example does not count.
    """

    def result(self, kept: Kept) -> dict[str, float]:
        from sklearn.metrics import average_precision_score  # here: slow to import

        logits = kept["outputs"]
        targets = kept["targets"]
        actual = actual_classes(logits, targets)
        scores = class_probabilities(logits, targets)
        found = [
            average_precision_score(actual[:, k], scores[:, k])
            for k in range(scores.shape[1])
            if actual[:, k].any() and np.isfinite(scores[:, k]).all()
        ]
        return {"mean_average_precision": float(np.mean(found)) if found else float("nan")}


def class_probabilities(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logits [N, K] -> float64 [N, K] that rank examples as the probabilities of the classes do.

    With targets [N], softmax; with targets [N, K], any number of classes an example, the logits.
    """
    scores = logits.astype(np.float64)
    if targets.ndim == 1:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    return scores


def actual_classes(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logits [N, K], targets [N] or [N, K] -> which classes each example has, bool [N, K]."""
    if targets.shape == outputs.shape:
        return targets > 0.5
    return targets[:, None] == np.arange(outputs.shape[1])


def areas_under_curves(logits: np.ndarray, targets: np.ndarray) -> list[float | None]:
    """The area under the ROC curve of each class against the rest; None where it is undefined.

    Examples are ranked by the probability of the class.

    Args:
      logits: [N, K].
      targets: the class of each example, int [N]; or whether it has each class, [N, K].
    """
    from sklearn.metrics import roc_auc_score  # here: slow to import

    actual = actual_classes(logits, targets)
    scores = class_probabilities(logits, targets)
    areas: list[float | None] = []
    for k in range(scores.shape[1]):
        defined = 0 < actual[:, k].sum() < len(actual) and np.isfinite(scores[:, k]).all()
        areas.append(float(roc_auc_score(actual[:, k], scores[:, k])) if defined else None)
    return areas


def class_scores(
    logits: np.ndarray, targets: np.ndarray, names: Sequence[str], *, multi_label: bool
) -> dict[str, Any]:
    """The scores of each class and their means.

    Args:
      logits: [N, K].
      targets: the class of each example, int [N]; or whether it has each class, [N, K].
      names: of the classes, [K].
      multi_label: whether an example may have any number of classes.

    Returns:
      `classes`: `class`, `precision`, `recall`, `f1`, `auc` and `support` of each (0, and for AUC
      None, where it is undefined); `macro` and `weighted`, the same, as means over the classes,
      plain and weighted by support; `confusion`, [K][K], how many of each class (row) were
      classified as each (column), None if `multi_label`.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    areas = areas_under_curves(logits, targets)
    undefined: Any = {"zero_division": 0}
    if multi_label:
        actual = actual_classes(logits, targets)
        predicted = logits > 0
        confusion = None
        scores = precision_recall_fscore_support(actual, predicted, **undefined)
    else:
        labels = list(range(len(names)))
        numbers = targets if targets.ndim == 1 else targets.argmax(axis=1)
        best = logits.argmax(axis=1)
        confusion = confusion_matrix(numbers, best, labels=labels).tolist()
        scores = precision_recall_fscore_support(numbers, best, labels=labels, **undefined)
    precision, recall, f1, support = (np.asarray(each) for each in scores)
    rows = [
        {
            "class": name,
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "auc": areas[k],
            "support": int(support[k]),
        }
        for k, name in enumerate(names)
    ]
    return {
        "classes": rows,
        "macro": mean_scores(rows, [1] * len(rows)),
        "weighted": mean_scores(rows, [row["support"] for row in rows]),
        "confusion": confusion,
    }


def mean_scores(rows: Sequence[dict[str, Any]], weights: Sequence[float]) -> dict[str, Any]:
    """The weighted means of the classes' scores; the sum of `support`."""
    means: dict[str, Any] = {}
    for name in ("precision", "recall", "f1", "auc"):
        pairs = zip(rows, weights, strict=True)
        known = [(row[name], weight) for row, weight in pairs if row[name] is not None]
        total = sum(weight for _, weight in known)
        means[name] = sum(value * weight for value, weight in known) / total if total else None
    return {**means, "support": sum(row["support"] for row in rows)}


def most_confused(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of classes that are confused most often, at most five."""
    pairs = [
        (count, row, column)
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [
        {"class": names[row], "classified as": names[column], "times": count}
        for count, row, column in pairs[:5]
    ]
