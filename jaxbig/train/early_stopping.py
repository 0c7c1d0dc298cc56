"""Early stopping: whether a run is over for lack of a better evaluation; reads its metrics only."""

import math
from collections.abc import Iterable
from typing import Any

from jaxbig.config.experiment import Experiment


def out_of_patience(metrics: Iterable[dict[str, Any]], experiment: Experiment) -> bool:
    """Whether the last `patience` evaluations had no better one among them; False if that is 0.

    It depends on the evaluations alone, so that a run ends at the same step however often it was
    interrupted.

    Args:
      metrics: lines of `metrics.jsonl`.
      experiment: gives `patience`, and the objective's criterion. A value that is not finite is not
        better, nor is an equal one.
    """
    criterion = experiment.objective.criterion
    sign = 1 if experiment.objective.higher_is_better else -1
    best = -math.inf
    waited = 0
    for line in metrics:
        if line["split"] != "eval":
            continue
        value = line.get(criterion)
        score = -math.inf if value is None else sign * value
        waited = 0 if score > best else waited + 1
        best = max(best, score)
    return 0 < experiment.patience <= waited
