"""Finds the operation that first produces a NaN or an infinity, by evaluating one at a time."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.program.interpreter import Interpreter, where


class NanFinder(Interpreter):
    """Evaluates programs and records the first operation that makes an infinity, and a NaN.

    Such an operation has one in its outputs and none in its inputs.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def judge(self, equation: Any, given: list[Any], made: list[Any]) -> None:
        """Notes the operation if it is the first of its kind; `Found` at a NaN."""
        for what, test, before in (("inf", jnp.isinf, _not_finite), ("nan", jnp.isnan, jnp.isnan)):
            if what not in self.found and _any(test, made) and not _any(before, given):
                self.found[what] = {
                    "made": what,
                    "operation": equation.primitive.name,
                    **where(equation),
                }
        if "nan" in self.found:
            raise Found


class Found(Exception):
    """Stops evaluation at the first NaN."""


def first_bad(program: Any, values: list[Any]) -> list[dict[str, str]]:
    """The first operation that made an infinity, and the first that made a NaN, in that order.

    Args:
      program: a closed jaxpr.
      values: its inputs.

    Returns:
      For each: `made` (inf or nan), `operation`, `where` (file, line and function), and `within`
      (its module and pass).
    """
    finder = NanFinder()
    with contextlib.suppress(Found):
        finder.closed(program, values)
    return list(finder.found.values())


def bad_inputs(tree: Any) -> list[str]:
    """The paths of the leaves of a tree that are not finite."""
    return [name for name, leaf in flatten_with_paths(tree).items() if _any(_not_finite, [leaf])]


def _not_finite(x: Any) -> Any:
    return ~jnp.isfinite(x)


def _any(test: Callable[[Any], Any], values: list[Any]) -> bool:
    inexact = (x for x in values if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact))
    return any(bool(test(x).any()) for x in inexact)
