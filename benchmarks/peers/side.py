"""One side of a comparison."""

import inspect
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


def with_sizes(rival: Any, ours: Any, **others: int) -> Any:
    """An instance of a rival's class, whose arguments are named as fields of our model or here."""
    names = inspect.signature(rival).parameters.keys() - {"parent", "name"}  # every Linen module's
    values = {name: getattr(ours, name) for name in names - others.keys()}
    return rival(**values, **{name: value for name, value in others.items() if name in names})
