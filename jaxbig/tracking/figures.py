"""Helpers for figures: text that can be drawn, and failures that do not end a run."""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("jaxbig")
PLAIN: dict[str, Any] = {"parse_math": False}
"""For matplotlib's text: a $ is a dollar."""


def printable(text: str) -> str:
    """Replaces what no font has: control characters, and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def grid(count: int, across: int, *, width: float, height: float) -> tuple[Any, list[Any]]:
    """A matplotlib figure and its axes, `count` in rows of `across`, each `width` x `height`
    inches."""
    from matplotlib.figure import Figure  # here: slow to import

    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Logs an error in the output of a run, and continues: it is no reason to end the run."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        log.warning(
            "%s: %s: %s; the run continues", what, type(error).__name__, printable(said)[:300]
        )
