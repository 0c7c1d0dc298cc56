"""The terminal output of a run: a progress bar, a table of evaluations, and a final summary."""

import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.logging import RichHandler
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jaxbig.tracking.figures import optional

WIDTH = 9
"""Characters of a number in the table of evaluations, at least: 1.230e-05."""
shown = optional("the screen")
"""For a method that only shows a run."""


class Screen:
    """Prints to standard output, or to standard error where that is kept for JSON.

    Without a terminal there is no bar; a line of training metrics is printed every ten seconds
    instead, or in a notebook one that is overwritten. A quiet screen, as of all processes but the
    first, shows nothing.
    """

    def __init__(self, json: bool = False, quiet: bool = False, *, verbose: bool = False):
        self._in_notebook = Console().is_jupyter
        # plain text in a notebook too: rich's own blocks are far apart
        self.console = Console(stderr=json, highlight=False, quiet=quiet, force_jupyter=False)
        self._verbose = verbose and not quiet
        self._line: OverwrittenLine | None = None
        self._progress: Progress | None = None
        self._steps = 0
        self._columns: list[str] = []
        self._last_line = 0.0

    def with_log(self) -> Self:
        """Prints jaxbig's log too, a quiet screen only its warnings; for a program of its own.

        It replaces what else handles that log in this process. A verbose screen prints jax's log,
        and the time, as well.
        """
        quiet = self.console.quiet
        console = Console(stderr=True, highlight=False) if quiet else self.console
        handler = RichHandler(
            console=console, show_time=self._verbose, show_path=False, markup=False
        )
        for name in ("jaxbig", "jax") if self._verbose else ("jaxbig",):
            log = logging.getLogger(name)
            log.handlers = [handler]
            log.setLevel(logging.WARNING if quiet else logging.INFO)
            log.propagate = False
        return self

    @shown
    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    @shown
    def start(self, step: int, steps: int) -> None:
        """Shows the bar, at `step` of `steps`."""
        self._steps = steps
        if self.console.quiet:
            return
        if self._in_notebook:
            self._line = OverwrittenLine()
        elif self.console.is_terminal:
            left = MofNCompleteColumn(), BarColumn(bar_width=None)
            right = (
                TextColumn("{task.description}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
            )
            self._progress = Progress("step", *left, *right, console=self.console, transient=True)
            self._task = self._progress.add_task("", total=steps, completed=step)
            self._progress.start()

    @shown
    def train(self, step: int, values: dict[str, float]) -> None:
        """Training metrics of a step."""
        text = (
            f"loss {significant(values['loss'])}  learning rate {values['learning_rate']:.1e}  "
            f"{values['steps_per_second']:.1f} steps/s"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
            return
        left = (self._steps - step) / max(values["steps_per_second"], 1e-9)
        line = f"step {step}/{self._steps}  {text}  {left:.0f} s left"
        if self._line is not None:
            self._line.show(f"{'━' * round(20 * step / self._steps):·<20}  {line}")
        elif self._verbose or time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            self.say(line)

    @shown
    def evaluation(self, step: int, means: dict[str, float]) -> None:
        """A row of the table of evaluations, under a heading the first time."""
        if not self._columns:
            self._columns = list(means)
            self.say("".join(self._aligned({name: name for name in self._columns}, "evaluated at")))
        values = {name: significant(means[name]) for name in self._columns}
        self.say("".join(self._aligned(values, str(step))))

    @shown
    def evaluator(self, step: int, split: str, values: dict[str, float]) -> None:
        """A row of an evaluator, whose metrics are its own."""
        listed = "  ".join(f"{name} {significant(value)}" for name, value in values.items())
        self.say(f"{step:>12}  {split}: {listed}")

    def _aligned(self, values: dict[str, str], first: str) -> Iterator[str]:
        """The cells of a row of the table of evaluations, each in its column's width."""
        yield f"{first:>12}"
        for name, text in values.items():
            yield f"{text:>{max(len(name), WIDTH) + 2}}"

    @shown
    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @shown
    def result(self, title: str, summary: dict[str, Any], workdir: Path, hints: list[str]) -> None:
        """The final summary: metrics, the run directory, the digest, and what to try next."""
        shown = {
            name: value
            for name, value in summary["metrics"].items()
            if not name.startswith("train/")
        }
        names = sorted(shown, key=lambda name: not name.startswith("eval/"))
        rows = [(name, _cell(shown[name])) for name in names]
        best = [
            f"{name} {_cell(value)}"
            for name, value in (summary["best"] or {}).items()
            if name != "step"
        ]
        rows += [("best", f"{text} at step {summary['best']['step']}") for text in best]
        rows += [
            ("steps", f"{summary['step']:,}"),
            ("folder", str(workdir)),
            ("digest", summary["state_sha256"]),
        ]
        rows += [("next" if hint is hints[0] else "", hint) for hint in hints]
        grid = Table.grid(padding=(0, 2))
        for name, value in rows:
            grid.add_row(name, Text(value, overflow="fold"))
        self.console.print(Panel(grid, title=title, title_align="left", expand=False))


class OverwrittenLine:
    """A line in the output of a notebook's cell, which `show` overwrites."""

    def __init__(self):
        from IPython.display import display  # here: only a notebook has it

        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)

    def show(self, text: str) -> None:
        self._handle.update({"text/plain": text}, raw=True)


def table(rows: list[dict[str, Any]], title: str = "") -> None:
    """Prints rows as a table on standard output, a column a key."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        number = all(_is_number(row[name]) for row in rows)
        grid.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        cells = row.values()
        grid.add_row(*(cell if isinstance(cell, Text) else _cell(cell) for cell in cells))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if title:
        console.print(title, markup=False)
    console.print(grid, markup=False)


def significant(value: float) -> str:
    """A number with four significant digits, as it is shown while a run makes steps."""
    return f"{value:#.4g}".rstrip(".")


def _is_number(value: Any) -> bool:
    """Whether a cell is a number, or text that shows one or that there is none."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float) or value in ("", "-"):
        return True
    return (
        isinstance(value, str)
        and re.fullmatch(r"-?[0-9][0-9,.]*(e[+-][0-9]+)?%?", value) is not None
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
