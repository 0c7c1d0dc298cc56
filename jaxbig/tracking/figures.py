"""Helpers for figures: text that can be drawn, and failures that do not end a run."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("jaxbig")
PLAIN: dict[str, Any] = {"parse_math": False}
"""For matplotlib's text: a $ is a dollar."""


def printable(text: str) -> str:
    """Replaces what no font has: control characters, and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


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
