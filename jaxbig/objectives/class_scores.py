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
class AUC(Metric):
    """Area under the ROC curve, the mean over the classes, each against the rest, as `auc`.

    A class without an example, or with nothing but examples, does not count.
    """

    def check(self, outputs: Any, batch: Any) -> None:
        super().check(outputs, batch)
        targets = batch["targets"]
        if outputs.ndim != batch["mask"].ndim + 1 or not (
            targets.shape == outputs.shape
            or (targets.shape == outputs.shape[:-1] and np.issubdtype(targets.dtype, np.integer))
        ):
            raise Refused(
                f"metrics: AUC needs a logit for each class, and a class or a number for each "
                f"class as targets; the model returns {outputs.shape}, and targets are "
                f"{targets.shape}, {targets.dtype}."
            )

    def result(self, kept: Kept) -> dict[str, float]:
        areas = areas_under_curves(kept["outputs"], kept["targets"])
        known = [area for area in areas if area is not None]
        return {"auc": float(np.mean(known)) if known else float("nan")}


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
    scores = logits.astype(np.float64)
    if targets.ndim == 1:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
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
