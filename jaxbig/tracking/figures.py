"""What pictures have in common: text that can be drawn, and that a picture which fails ends nothing."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("jaxbig")
PLAIN: dict[str, Any] = {"parse_math": False}
"""For matplotlib's text: a $ is a dollar."""


def printable(text: str) -> str:
    """The text without what no font has: bytes of file names that are not UTF-8, and characters that control."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """For what only shows a run, and may fail without ending it: the error is logged, and the run goes on."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        log.warning(
            "%s: %s: %s; the run goes on", what, type(error).__name__, printable(said)[:300]
        )
