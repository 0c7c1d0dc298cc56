"""One side of a comparison."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Side(NamedTuple):
    """A model with its optimizer and one batch."""

    step: Callable[[], float]
    """Makes one train step, waits for it, and returns the loss before its update."""
    parameters: int
    """How many numbers are trained."""
    compiled: Any = None
    """XLA's executable, where there is one."""
