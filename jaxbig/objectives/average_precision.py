"""COCO's average precision of detected objects (Lin et al., 2014).

Letters in shape comments: I images, N true objects of an image at most, T thresholds, P detections.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.errors import Refused
from jaxbig.objectives.detection import check_outputs, edges
from jaxbig.objectives.metric import Kept, Metric

OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Least intersection over union of a right box."""
RECALLS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True)
class AveragePrecision(Metric):
    """COCO's AP as `ap`, the mean over the classes and over ten least intersections over union,
    0.50, 0.55, ..., 0.95; `ap50` and `ap75` are of one of these.

    Precision is averaged over 101 recalls. A detection within a crowd counts neither as right nor
    as wrong, and a class without an object does not count.
    """

    most: PositiveInt = 100
    """Detections of an image, those with the highest scores."""

    def check(self, outputs: Any, batch: Any) -> None:
        check_outputs(outputs)
        if lost := {"targets", "boxes", "present", "crowd"} - set(batch):
            raise Refused(f"metrics: AveragePrecision needs {', '.join(sorted(lost))} of the data.")

    def keep(self, outputs: Any, batch: Kept) -> Kept:
        logits = np.asarray(outputs["logits"][:, -1], np.float32)  # [B, Q, K]
        flat = logits.reshape(len(logits), -1)
        first = np.argsort(-flat, axis=1, kind="stable")[:, : self.most]  # [B, P]
        query = first // logits.shape[2]
        boxes = np.asarray(outputs["boxes"][:, -1], np.float64)
        kept = {
            "scores": np.take_along_axis(flat, first, axis=1),
            "classes": first % logits.shape[2],
            "found": np.take_along_axis(boxes, query[..., None], axis=1),
        }
        kept |= {name: batch[name] for name in ("targets", "boxes", "present", "crowd")}
        real = batch["mask"] > 0
        return {name: each[real] for name, each in kept.items()}

    def result(self, kept: Kept) -> dict[str, float]:
        there = (kept["present"] > 0) | (kept["crowd"] > 0)
        known = np.unique(kept["targets"][kept["present"] > 0])
        if not len(known):
            return dict.fromkeys(("ap", "ap50", "ap75"), float("nan"))
        found = edges(kept["found"])  # [I, P, 4]
        true = edges(kept["boxes"].astype(np.float64))
        precisions = []
        for k in known:
            scores = []
            right = []
            counts = []
            for image, of_class in enumerate(kept["classes"] == k):
                objects = there[image] & (kept["targets"][image] == k)
                crowd = kept["crowd"][image][objects] > 0
                scores.append(kept["scores"][image][of_class])
                outcome = judge(found[image][of_class], true[image][objects], crowd)
                right.append(outcome == 1)
                counts.append(outcome >= 0)
            objects = int(((kept["targets"] == k) & (kept["present"] > 0)).sum())
            order = np.argsort(-np.concatenate(scores), kind="stable")
            hits = np.concatenate(right, axis=1)[:, order]
            tried = np.concatenate(counts, axis=1)[:, order]
            precisions.append(average_precision(hits, tried, objects))
        of_overlap = np.mean(precisions, axis=0)  # [T]
        return {"ap": of_overlap.mean(), "ap50": of_overlap[0], "ap75": of_overlap[5]}


def judge(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Whether each detection of a class in an image is right, with each of `OVERLAPS`.

    Detections choose in order: each takes the free object that it overlaps most.

    Args:
      found: boxes [P, 4], the highest score first; left, top, right and bottom edges.
      true: boxes [N, 4].
      crowd: which of these are around many objects, [N].

    Returns:
      int [T, P]: 1 is right, 0 wrong, and -1 does not count.
    """
    outcome = np.zeros((len(OVERLAPS), len(found)), int)
    if not len(true) or not len(found):
        return outcome
    size = np.prod(found[:, 2:] - found[:, :2], axis=1)[:, None]  # [P, 1]
    low = np.maximum(found[:, None, :2], true[:, :2])
    high = np.minimum(found[:, None, 2:], true[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)  # [P, N]
    union = size + np.prod(true[:, 2:] - true[:, :2], axis=1) - shared
    overlap = shared / np.maximum(np.where(crowd, size, union), 1e-12)
    near = overlap[:, None] >= OVERLAPS[:, None]  # [P, T, N]
    free = np.broadcast_to(~crowd, near.shape[1:]).copy()  # [T, N]
    for number in np.flatnonzero(near.any(axis=(1, 2))):
        fits = near[number] & free
        best = np.where(fits, overlap[number], -1).argmax(axis=1)  # [T]
        hit = fits.any(axis=1)
        free[hit, best[hit]] = False
        within = (near[number] & crowd).any(axis=1)
        outcome[:, number] = np.where(hit, 1, np.where(within, -1, 0))
    return outcome


def average_precision(right: np.ndarray, counts: np.ndarray, objects: int) -> np.ndarray:
    """The mean precision over `RECALLS`, [T].

    Args:
      right: detections of all images that are right, the highest score first, [T, P].
      counts: those that are right or wrong, [T, P].
      objects: how many there are to be found.
    """
    hits = np.cumsum(right, axis=1)
    precision = hits / np.maximum(np.cumsum(counts, axis=1), 1)
    # at each recall the best precision with this recall or more
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # of recalls that are not reached
    places = [np.searchsorted(each / objects, RECALLS) for each in hits]
    return np.take_along_axis(precision, np.stack(places), axis=1).mean(axis=1)
