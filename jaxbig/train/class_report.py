"""Scores of each class in an evaluation of a run, as a table and as a confusion matrix in a PNG."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import class_name
from jaxbig.errors import Refused
from jaxbig.objectives.class_scores import AUC, class_scores, most_confused
from jaxbig.objectives.metric import Collector
from jaxbig.tracking.figures import PLAIN, optional, printable
from jaxbig.train.evaluate import evaluate_run

NUMBERED = 20
"""The most classes whose counts are written into the picture."""
NAMED = 60
"""The most classes that are named in the picture."""


def report_classes(
    experiment: Experiment, workdir: Path, which: str, split: str, *, picture: Path
) -> dict[str, Any]:
    """Evaluates a checkpoint as `evaluate_run` does, with the scores of each class.

    Args:
      experiment: gives the model and the data; those of the run.
      workdir: the run directory.
      which: the checkpoint, as `evaluate_run` takes it.
      split: "eval" or "test".
      picture: PNG to write, if an example has one class.

    Returns:
      What `evaluate_run` returns, and `report`: what `class_scores` returns, `confused`, what
      `most_confused` returns, and `picture`, its file or None.

    Raises:
      Refused: the data has no classes, or the model no logit for each of them.
    """
    count = getattr(experiment.data, "classes", None)
    if not isinstance(count, int):
        raise Refused(f"--report: {type(experiment.data).__name__} has no classes: leave it out.")
    metric = AUC()  # keeps outputs and targets, and checks that these are of classes
    collector = Collector(metric)
    checked = dataclasses.replace(experiment, metrics=(*experiment.metrics, metric))
    result = evaluate_run(checked, workdir, which, split, collectors=[collector])
    kept = collector.joined()
    names = [class_name(experiment.data, k) for k in range(kept["outputs"].shape[1])]
    multi_label = bool(getattr(experiment.objective, "multi_label", False))
    report = class_scores(kept["outputs"], kept["targets"], names, multi_label=multi_label)
    report["confused"] = []
    report["picture"] = None
    if report["confusion"] is not None:
        report["confused"] = most_confused(report["confusion"], names)
        with optional(f"no picture {picture}"):
            draw_confusion(report["confusion"], names, picture)
            report["picture"] = str(picture)
    return {**result, "report": report}


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], file: Path) -> None:
    """Draws a confusion matrix: a row for each class, with the shares of its examples.

    Args:
      confusion: [K][K], how many of each class (row) were classified as each (column).
      names: of the classes, [K].
      file: PNG to write.
    """
    from matplotlib.figure import Figure  # here: slow to import

    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    count = len(names)
    side = min(max(0.45 * count, 3.5), 12)
    figure = Figure(figsize=(side + 1.6, side + 0.8), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, shrink=0.8, label="share of the class")
    if count <= NAMED:
        shown = [printable(name)[:24] for name in names]
        size = 9 if count <= NUMBERED else 6
        turned = 90 if max(map(len, shown)) > 2 else 0
        axes.set_xticks(range(count), shown, rotation=turned, fontsize=size, **PLAIN)
        axes.set_yticks(range(count), shown, fontsize=size, **PLAIN)
    if count <= NUMBERED:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            place = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
            axes.text(column, row, str(counts[row, column]), **place)
    axes.set_xlabel("classified as")
    axes.set_ylabel("class")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
