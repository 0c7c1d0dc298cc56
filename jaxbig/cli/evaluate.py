"""`jaxbig evaluate`: evaluates a checkpoint of a run."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxbig.cli.experiment_command import RunCommand
from jaxbig.cli.tables import Table, pairs
from jaxbig.config.options import Flag
from jaxbig.distributed.multihost import is_process_zero
from jaxbig.errors import Refused
from jaxbig.system.exit_codes import DONE
from jaxbig.tracking.console import Screen
from jaxbig.train.class_report import report_classes
from jaxbig.train.evaluate import evaluate_run
from jaxbig.train.evaluate_checkpoints import evaluate_checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(RunCommand):
    """Evaluates a checkpoint of a run, or every one, on its evaluation split, or another.

    Only --every-checkpoint writes into the run's folder: a row for each, in evaluations.jsonl.
    """

    step: str = "last"
    """Which checkpoint: last, best, or the number of its step."""
    split: str = "eval"
    """train, eval, or test where the data has such a split."""
    report: Flag = False
    """Show precision, recall, F1 and AUC of each class, and draw the confusion matrix."""
    picture: Path = Path("confusion.png")
    """Where --report draws the confusion matrix."""
    evaluators: Flag = False
    """Run the experiment's evaluators too."""
    every_checkpoint: Flag = False
    """Evaluate each checkpoint that has no row in evaluations.jsonl yet, the oldest first."""
    watch: Flag = False
    """With --every-checkpoint, in a process of its own while the run trains: wait for further ones,
    until the run is finished."""

    def __call__(self) -> int:
        self.check_options()
        screen = self.join()
        if self.every_checkpoint:
            return self.evaluate_all(screen)
        if self.report:
            result = report_classes(
                self.experiment, self.folder, self.step, self.split, picture=self.picture
            )
        else:
            result = evaluate_run(
                self.experiment, self.folder, self.step, self.split, evaluators=self.evaluators
            )
        if not is_process_zero():
            return DONE
        title = f"{self.name} at step {result['step']}, split {self.split}"
        tables = [(title, pairs("metric", result["metrics"]))]
        tables += [
            (f"\n{split}", pairs("metric", values))
            for split, values in result.get("evaluators", {}).items()
        ]
        if self.report:
            tables += report_tables(result["report"])
        return self.emit(result, *tables)

    def check_options(self) -> None:
        """Raises `Refused` for options that contradict each other."""
        if self.watch and not self.every_checkpoint:
            raise Refused("--watch waits for checkpoints: give --every-checkpoint too.")
        if self.every_checkpoint and self.report:
            raise Refused("--report is of one checkpoint: leave out --every-checkpoint.")
        if self.every_checkpoint and self.step != "last":
            raise Refused(f"--step {self.step} is one checkpoint: leave out --every-checkpoint.")
        if self.evaluators and self.report:
            raise Refused("--report is of one split: leave out --evaluators.")

    def evaluate_all(self, screen: Screen) -> int:
        """Evaluates every checkpoint, and shows each row as it comes; an exit code."""
        rows = []
        for row in evaluate_checkpoints(
            self.experiment, self.folder, self.split, evaluators=self.evaluators, watch=self.watch
        ):
            rows.append(row)
            values = {
                name: value
                for name, value in row.items()
                if name not in ("step", "split", "state_sha256")
            }
            if row["split"] == self.split:
                screen.evaluation(row["step"], values)
            else:
                screen.evaluator(row["step"], row["split"], values)
        if not is_process_zero():
            return DONE
        if not rows:
            screen.say("every checkpoint is evaluated already: see evaluations.jsonl")
        return self.emit({"evaluations": rows})


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
