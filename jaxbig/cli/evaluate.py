"""`jaxbig evaluate`: evaluates a checkpoint of a run."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxbig.cli.experiment_command import RunCommand
from jaxbig.cli.tables import Table, pairs
from jaxbig.config.options import Flag
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.system.exit_codes import DONE
from jaxbig.train.class_report import report_classes
from jaxbig.train.evaluate import evaluate_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(RunCommand):
    """Evaluates a checkpoint of a run on its evaluation split, or another; writes nothing there."""

    step: str = "last"
    """Which checkpoint: last, best, or the number of its step."""
    split: str = "eval"
    """train, eval, or test where the data has such a split."""
    report: Flag = False
    """Show precision, recall, F1 and AUC of each class, and draw the confusion matrix."""
    picture: Path = Path("confusion.png")
    """Where --report draws the confusion matrix."""

    def __call__(self) -> int:
        self.join()
        if self.report:
            result = report_classes(
                self.experiment, self.folder, self.step, self.split, picture=self.picture
            )
        else:
            result = evaluate_run(self.experiment, self.folder, self.step, self.split)
        if not is_process_zero():
            return DONE
        title = f"{self.name} at step {result['step']}, split {self.split}"
        tables = [(title, pairs("metric", result["metrics"]))]
        if self.report:
            tables += report_tables(result["report"])
        return self.emit(result, *tables)


def report_tables(report: dict[str, Any]) -> list[Table]:
    """The scores of the classes, which are confused most often, and the picture's file."""
    means = [{"class": f"{name} mean", **report[name]} for name in ("macro", "weighted")]
    rows = [
        {name: format_score(row[name]) for name in report["classes"][0]}
        for row in [*report["classes"], *means]
    ]
    tables: list[Table] = [("\nclasses", rows)]
    if report["confusion"] is not None:
        tables.append(("\nconfused most often", report["confused"] or [{"confused": "none"}]))
    if report["picture"]:
        tables.append(("", [{"confusion matrix": report["picture"]}]))
    return tables


def format_score(value: Any) -> Any:
    """A score as it is printed, with three digits."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else value
