"""`jaxbig predict`: what a run predicts for files, texts, tables or a split of its data."""

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from jaxbig.cli.restored_run import RestoredRunCommand
from jaxbig.distributed.multihost import refuse_started_together
from jaxbig.errors import Failed, Refused
from jaxbig.inference.inputs import check_paths, inputs_at, inputs_of
from jaxbig.inference.outputs import as_line, check_output, pictures_in, without_picture, written_to
from jaxbig.inference.predict import (
    TOP,
    Prediction,
    named,
    predict_inputs,
    predict_split,
    with_batch,
)
from jaxbig.system.exit_codes import DONE
from jaxbig.system.json_files import to_json_text
from jaxbig.train.run import Run, open_run_split

log = logging.getLogger("jaxbig")
LOG_EVERY_S = 10
"""Seconds between two lines on the progress, where there is no terminal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(RestoredRunCommand):
    """What a run predicts for files, texts or tables, as a line of JSON each."""

    inputs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files, folders, patterns, tables (.csv, .parquet, .jsonl, .npz), or - for lines of standard
    input: texts, or the paths of files."""
    text: tuple[str, ...] = ()
    """Texts to predict, in place of files."""
    split: str = ""
    """Predict a split of the run's data in place of files: train, eval, or test if it has one."""
    top: int = TOP
    """How many classes or tokens to list, the likeliest first."""
    output: Path | None = None
    """A file to write in place of standard output: .jsonl, .npz (arrays) or .parquet."""
    pictures: Path | None = None
    """A new folder for the images that are answers, such as masks."""
    batch: int = 0
    """How many examples are computed at a time; 0: as in training."""

    def __call__(self) -> int:
        refuse_started_together("predict")
        if self.output is not None:
            check_output(self.output)
        if bool(self.inputs) + bool(self.text) + bool(self.split) != 1:
            raise Refused("predict needs one of files (or - for lines), --text, and --split.")
        check_paths(self.inputs)
        run = with_batch(self.restored(), self.batch)
        good = 0
        bad: list[Prediction] = []
        shown = []
        with contextlib.ExitStack() as stack:
            write = print_line
            if self.output is not None:
                write = stack.enter_context(written_to(self.output))
            elif self.json:
                write = shown.append
            save = stack.enter_context(pictures_in(self.pictures)) if self.pictures else None
            for each in stack.enter_context(contextlib.closing(self.counted(run))):
                write(save(each) if save else each)
                if "error" in each.row:
                    bad.append(each)
                else:
                    good += 1
        if self.json:
            rows = [without_picture(each.row) for each in shown]
            summary = {"run": str(run.directory), "step": run.step, "records": good + len(bad)}
            found = {"output": str(self.output)} if self.output else {"predictions": rows}
            print(to_json_text({**summary, "errors": len(bad), **found}, indent=1))
        elif self.output is not None:
            log.info("%s predictions: %s", f"{good:,}", self.output)
        if bad:
            first = bad[0].row
            raise Failed(
                f"{len(bad)} of {good + len(bad)} records cannot be read, such as "
                f"{named(first['record'])}: {first['error']}; the others are predicted."
            )
        return DONE

    def counted(self, run: Run) -> Generator[Prediction]:
        """The predictions; how many there are is shown unless they are."""
        hidden = self.output is not None or self.json or not sys.stdout.isatty()
        show = progress if hidden and not self.quiet else passed_on
        if self.split:
            source = open_run_split(run, self.split)
            return show(predict_split(run, source, self.split, top=self.top), len(source))
        data = run.experiment.data
        given = inputs_of(data, list(self.text)) if self.text else inputs_at(data, self.inputs)
        total = len(given) if isinstance(given, list) else None
        return show(predict_inputs(run, given, top=self.top), total)


def print_line(prediction: Prediction) -> None:
    """Prints a prediction as a line of JSON."""
    print(as_line(prediction, sys.stdout.encoding or "ascii"), flush=True)


def progress(predictions: Iterator[Prediction], total: int | None) -> Generator[Prediction]:
    """Yields the predictions, and shows on standard error how many of how many there are."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (MofNCompleteColumn(), BarColumn(bar_width=None), TimeRemainingColumn())
        with Progress("predicted", *columns, console=console, transient=True) as bar:
            yield from bar.track(predictions, total=total)
        return
    shown = 0.0
    for number, each in enumerate(predictions, 1):
        yield each
        shown = shown or time.monotonic()
        if time.monotonic() > shown + LOG_EVERY_S:
            shown = time.monotonic()
            log.info("%s%s predicted", f"{number:,}", f" of {total:,}" if total else "")


def passed_on(predictions: Iterator[Prediction], total: int | None) -> Generator[Prediction]:
    """Yields the predictions."""
    yield from predictions
