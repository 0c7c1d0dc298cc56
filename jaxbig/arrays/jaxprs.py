"""Walks traced programs (jaxprs): inner programs, and source lines of operations."""

from collections.abc import Iterator
from typing import Any

import jax
from jax._src import source_info_util  # an operation's line of source has no public name


def opened(jaxpr: Any) -> Any:
    """A jaxpr without its constants, from one with or without them."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation runs."""
    values = jax.tree.leaves(
        tuple(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
    )
    yield from (
        opened(value) for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    )


def source_frame(equation: Any) -> Any:
    """The frame of the source that made an equation: the nearest outside libraries.

    If all are inside libraries, the nearest; None if there is no frame.
    """
    frames = list(source_info_util.user_frames(equation.source_info.traceback))
    ours = [frame for frame in frames if "site-packages" not in frame.file_name]
    return next(iter(ours or frames), None)
