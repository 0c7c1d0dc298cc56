"""Draws docs/screen.svg: what `jaxbig train digits_convnet` prints, as rich exports it.

JAX_NUM_CPU_DEVICES=1 python benchmarks/screenshot.py
"""

import contextlib
import io
import re
import tempfile
from pathlib import Path
from unittest import mock

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from jaxbig.cli import main
from jaxbig.tracking.console import Screen

FILE = Path(__file__).parents[1] / "docs" / "screen.svg"
SHOWN_AT = 570
"""The step at which the bar is drawn."""


def record(console: Console) -> None:
    """Trains in an empty folder; what it prints goes to the console."""
    make = Screen.__init__
    train = Screen.train

    def start(screen: Screen, *args: object, **options: object) -> None:
        make(screen, *args, **options)  # type: ignore[arg-type]
        screen.console = console

    def draw_once(screen: Screen, step: int, values: dict[str, float]) -> None:
        train(screen, step, values)
        if step == SHOWN_AT and screen._progress is not None:
            console.print(screen._progress.get_renderable())

    with (
        mock.patch.object(Screen, "__init__", start),
        mock.patch.object(Screen, "train", draw_once),
        mock.patch("rich.progress.Progress.start"),  # a bar that moves cannot be exported
        mock.patch("rich.progress.Progress.stop"),
    ):
        main.run(["train", "digits_convnet"])


if __name__ == "__main__":
    console = Console(
        record=True, width=92, force_terminal=True, highlight=False, file=io.StringIO()
    )
    console.print("$ jaxbig train digits_convnet", style="bold")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        record(console)
    plain = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(FILE), title="jaxbig", code_format=plain)  # asks no other site for fonts
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
