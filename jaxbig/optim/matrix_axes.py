"""Which axes of a parameter are rows, columns, or a stack of matrices, by their logical names."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

Axes = Mapping[str, Sequence[str | None]]
"""The logical names of the axes of each parameter, by path; () where they have none."""
STACKED = ("layers", "experts")
INPUTS = ("embed", "rank")
"""Names of an axis that is all rows where it is first: the residual stream, and that of LoRA."""
VECTOR = re.compile(r"(^|[/_])(bias|scale)$")
"""Paths of parameters that are vectors, of whatever rank."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a parameter by what they are; a vector has no rows."""

    stack: tuple[int, ...]
    """Those of layers, experts, gates, or of keys and values: each has its own matrix."""
    rows: tuple[int, ...]
    """Inputs of the matrix."""
    columns: tuple[int, ...]
    """Outputs of the matrix, or the numbers of a vector."""

    @property
    def own(self) -> tuple[int, ...]:
        """The axes of one matrix or vector."""
        return (*self.rows, *self.columns)


def layout(path: str, shape: Sequence[int], axes: Axes) -> Layout:
    """The layout of a parameter.

    `layers` and `experts` are stacks. `embed` is the input of a matrix where it is first, and all
    else before the outputs is a stack, as in [embed, 4 gates, hidden]; outputs are the last axis,
    with `heads` before it. Axes without a name before two that have one are a stack too; so are
    heads before a matrix each. Else all axes but the last are inputs, as of a convolution.

    Args:
      path: of the parameter, as `block_0/up/kernel`.
      shape: of the parameter.
      axes: logical names; they may lack this parameter's.
    """
    given = axes.get(path, ())
    names: list[str | None] = [*given, *[None] * (len(shape) - len(given))]
    first = next((at for at, name in enumerate(names) if name not in STACKED), len(names))
    stack = tuple(range(first))
    rest = tuple(range(first, len(names)))
    of_heads = len(rest) > 2 and names[rest[-2]] == "heads" and names[rest[-1]] is None
    columns = rest[-2:] if of_heads else rest[-1:]
    before = rest[: len(rest) - len(columns)]
    if not before or VECTOR.search(path):
        return Layout(stack, (), rest)
    named = [at for at in before if names[at] is not None]
    in_heads = all(names[at] is None for at in (before[-1], *columns))
    if names[before[0]] in INPUTS:
        inputs = before[:1]
    elif in_heads and named and names[named[-1]] == "heads":
        inputs = before[named[-1] + 1 - first :]
    else:
        inputs = before[named[0] - first :] if named else before
    found = Layout((*stack, *(at for at in before if at not in inputs)), inputs, columns)
    _, *sides = matrix_shape(shape, found)
    return found if min(sides) > 1 else Layout(stack, (), rest)


def matrix_shape(shape: Sequence[int], found: Layout) -> tuple[int, int, int]:
    """The number of matrices of a parameter, and of their rows and columns."""
    count, rows, columns = (
        math.prod(shape[at] for at in axes) for axes in (found.stack, found.rows, found.columns)
    )
    return count, rows, columns
