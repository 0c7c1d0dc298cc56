"""`sweep.png`: the best of each run over each swept option, and the loss curves of all runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.sweep.search_space import format_setting, literal
from jaxbig.tracking.figures import PLAIN, optional, printable
from jaxbig.tracking.metrics_writer import read_metrics

NAMED = 8
"""The most runs that have a color and a place in the legend; the others are gray."""
OTHERS = "0.8"


def draw(result: dict[str, Any], file: Path) -> bool:
    """Draws a sweep as a PNG.

    Args:
      result: the content of `sweep.json`.
      file: PNG to write, in the sweep's folder.

    Returns:
      Whether it drew: not if no run has an evaluation, or nothing is swept.
    """
    with optional(f"no picture {file}"):
        return _draw(result, file)
    return False


def _draw(result: dict[str, Any], file: Path) -> bool:
    from matplotlib.figure import Figure  # here: slow to import
    from matplotlib.lines import Line2D

    runs = [result["runs"][number] for number in result["ranked"]]
    paths = list(dict.fromkeys(path for run in runs for path in run["setting"]))
    if not paths:
        return False
    widths = [*[3.2] * len(paths), 4.6]
    height = 3.8 + 0.1 * min(len(runs), NAMED + 1)
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for path, axes in zip(paths, panels, strict=False):
        _draw_option(axes, path, [run for run in runs if path in run["setting"]])
        if axes is not panels[0]:
            axes.sharey(panels[0])
            axes.tick_params(labelleft=False)
    panels[0].set_ylabel(f"best eval/{result['criterion']}")
    _draw_losses(panels[-1], runs, file.parent)
    shown = runs[:NAMED]
    handles = [Line2D([], [], color=f"C{rank}", marker="o") for rank in range(len(shown))]
    labels = [_label(run) for run in shown]
    if len(runs) > NAMED:
        handles.append(Line2D([], [], color=OTHERS, marker="o"))
        labels.append(f"{len(runs) - NAMED} more")
    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        fontsize=8,
        ncols=2,
        title="runs, the best first",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(file, dpi=110)
    return True


def _label(run: dict[str, Any]) -> str:
    """A run in the legend: its folder, its setting without the front of the options, its best."""
    setting = {path.split(".")[-1]: value for path, value in run["setting"].items()}
    if len(setting) < len(run["setting"]):
        setting = run["setting"]
    return printable(f"{run['folder']}  {format_setting(setting)[:50]}  {run['best']:.4g}")


def _color(rank: int) -> str:
    return f"C{rank}" if rank < NAMED else OTHERS


def _draw_option(axes: Any, path: str, runs: Sequence[dict[str, Any]]) -> None:
    """The best of each run over the values of an option, the best run first."""
    values = [run["setting"][path] for run in runs]
    values = [literal(value) if isinstance(value, str) else value for value in values]
    if not all(isinstance(value, int | float) and type(value) is not bool for value in values):
        names = sorted({str(value) for value in values})
        axes.set_xticks(range(len(names)), [printable(name)[:20] for name in names], **PLAIN)
        if max(map(len, names)) > 6:
            axes.tick_params(axis="x", labelrotation=30)
        values = [names.index(str(value)) for value in values]
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif log_spaced(values):
        axes.set_xscale("log")
    for rank in reversed(range(len(runs))):  # the best are drawn over the others
        size = 9 if rank == 0 else 6
        axes.plot(values[rank], runs[rank]["best"], "o", color=_color(rank), markersize=size)
    axes.set_xlabel(path)
    axes.grid(alpha=0.3)


def _draw_losses(axes: Any, runs: Sequence[dict[str, Any]], folder: Path) -> None:
    """The evaluation loss of each run over its steps."""
    lowest = float("inf")
    highest = 0.0
    for rank in reversed(range(len(runs))):
        lines = read_metrics(folder / runs[rank]["folder"])
        points = [
            (line["step"], line["loss"])
            for line in lines
            if line["split"] == "eval" and line.get("loss") is not None
        ]
        if not points:
            continue
        steps, losses = zip(*points, strict=True)
        lowest = min(lowest, *losses)
        highest = max(highest, *losses)
        axes.plot(steps, losses, ".-", color=_color(rank), linewidth=2 if rank == 0 else 1)
    if 0 < 10 * lowest < highest:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("eval/loss")
    axes.grid(alpha=0.3)


def log_spaced(values: Sequence[float]) -> bool:
    """Whether numbers are spaced more evenly in their logarithm than in themselves."""
    numbers = np.unique(np.array(values, np.float64))
    if numbers.min() <= 0 or len(numbers) < 2:
        return False
    if len(numbers) == 2:
        return bool(numbers[1] >= 10 * numbers[0])
    plain = np.diff(numbers)
    logarithmic = np.diff(np.log(numbers))
    return bool(logarithmic.std() / logarithmic.mean() < plain.std() / plain.mean())
