"""`jaxbig stress`: how far a run's metrics fall as its inputs get worse."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from jaxbig.cli.restored_run import RestoredRunCommand
from jaxbig.cli.tables import Rows
from jaxbig.distributed.multihost import refuse_started_together
from jaxbig.errors import Refused
from jaxbig.tools.stress import draw, stress
from jaxbig.tracking.figures import optional

log = logging.getLogger("jaxbig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stress(RestoredRunCommand):
    """How far a run's metrics fall as its inputs get worse: noise, blur, typos, attacks."""

    changes: tuple[str, ...] = ()
    """noise, blur, contrast, jpeg, fgsm, pgd (of images), typos (of texts); all that fit by
    default."""
    split: str = "eval"
    """The split of the run's data: train, eval, or test if it has one."""
    batches: int = 0
    """Evaluate only this many batches of it; 0: all."""
    seed: int = 0
    """Of noise, typos and the start of pgd."""
    metric: str = ""
    """Which metric to print and draw; the objective's criterion by default."""
    picture: Path = Path("stress.png")
    """Where it is drawn over the strengths."""

    def __call__(self) -> int:
        refuse_started_together("stress")
        run = self.restored()
        metric = self.metric or run.experiment.objective.criterion
        found: list[dict[str, Any]] = []
        for each in stress(
            run,
            changes=self.changes,
            split=self.split,
            batches=self.batches or None,
            seed=self.seed,
        ):
            found.append(each)
            if metric not in each["metrics"]:
                known = ", ".join(each["metrics"])
                raise Refused(f"--metric {metric}: the run has {known}.")
            value = each["metrics"][metric]
            log.info("%s %g: %s %.4g", each["change"], each["strength"], metric, value)
        drawn = None
        with optional(f"no picture {self.picture}"):
            draw(found, metric, self.picture)
            drawn = str(self.picture)
            log.info("drawn: %s", self.picture)
        result = {
            "run": str(run.directory),
            "step": run.step,
            "split": self.split,
            "metric": metric,
            "found": found,
            "picture": drawn,
        }
        title = f"\n{metric} on {self.split}: {found[0]['metrics'][metric]:.3f} of unchanged inputs"
        return self.emit(result, (title, rows_of(found, metric)))


def rows_of(found: list[dict[str, Any]], metric: str) -> Rows:
    """A row for each change: the metric at each strength, the weakest first."""
    rows: dict[str, dict[str, Any]] = {}
    for each in found[1:]:
        row = rows.setdefault(each["change"], {"change": each["change"], "unit": each["unit"]})
        number = len(row) - 1
        row[f"strength {number}"] = f"{each['metrics'][metric]:.3f} at {each['strength']:g}"
    return list(rows.values())
