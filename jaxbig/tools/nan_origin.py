"""Finds the operation that first produces a NaN or an infinity, by evaluating one at a time.

The program is evaluated as JAX traced it (its jaxpr), with loops unrolled and calls entered. So the
result is an operation of the source, in the forward or backward pass, even if the run fused it.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxbig.arrays.jaxprs import opened, source_frame
from jaxbig.arrays.tree import flatten_with_paths

INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters in which a call operation keeps the program that it calls."""


class NanFinder:
    """Evaluates programs and records the first operation that makes an infinity, and a NaN.

    Such an operation has one in its outputs and none in its inputs.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def run(self, jaxpr: Any, constants: Any, *values: Any) -> list[Any]:
        """The outputs of a program; raises `Found` at the first NaN."""
        known: dict[Any, Any] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *values], strict=True)
        )

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            given = [read(atom) for atom in equation.invars]
            made = self.entered(equation, given)
            if made is None:
                made = equation.primitive.bind(*given, **equation.params)
                made = list(made) if equation.primitive.multiple_results else [made]
                self.judge(equation, given, made)
            known |= dict(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def entered(self, equation: Any, given: list[Any]) -> list[Any] | None:
        """What a call, a branch or a loop gives, by its operations; None if it is none of these."""
        name = equation.primitive.name
        has = equation.params
        if name == "scan":
            return self.scan(equation, given)
        if name == "while":
            return self.loop(has, given)
        if name == "cond":
            number = int(np.clip(given[0], 0, len(has["branches"]) - 1))
            return self.closed(has["branches"][number], given[1:])
        inside = next((has[key] for key in INSIDE if key in has), None)
        if name == "shard_map" or inside is None or len(given) != len(opened(inside).invars):
            return None
        return self.closed(inside, given)

    def closed(self, inside: Any, given: list[Any]) -> list[Any]:
        return self.run(opened(inside), getattr(inside, "consts", ()), *given)

    def scan(self, equation: Any, given: list[Any]) -> list[Any]:
        """A scan, one turn after another."""
        has = equation.params
        body = opened(has["jaxpr"])
        # what has an axis more outside is of a turn each; versions of JAX count the rest in ways of
        # their own
        carried = sum(
            of.aval.ndim == all_of.aval.ndim
            for of, all_of in zip(body.outvars, equation.outvars, strict=True)
        )
        kept = sum(
            of.aval.ndim == all_of.aval.ndim
            for of, all_of in zip(body.invars, equation.invars, strict=True)
        )
        fixed = kept - carried
        constants = given[:fixed]
        carry = given[fixed:kept]
        rows = given[kept:]
        turns = []
        for turn in range(has["length"])[:: -1 if has["reverse"] else 1]:
            made = self.closed(has["jaxpr"], [*constants, *carry, *(each[turn] for each in rows)])
            carry = made[:carried]
            turns.append(made[carried:])
        turns = turns[::-1] if has["reverse"] else turns
        return [*carry, *(jnp.stack(each) for each in zip(*turns, strict=True))]

    def loop(self, has: dict[str, Any], given: list[Any]) -> list[Any]:
        """A while loop, one turn after another."""
        first = has["cond_nconsts"]
        second = first + has["body_nconsts"]
        carry = given[second:]
        while bool(self.closed(has["cond_jaxpr"], [*given[:first], *carry])[0]):
            carry = self.closed(has["body_jaxpr"], [*given[first:second], *carry])
        return carry

    def judge(self, equation: Any, given: list[Any], made: list[Any]) -> None:
        """Notes the operation if it is the first of its kind; `Found` at a NaN."""
        for what, test, before in (("inf", jnp.isinf, _not_finite), ("nan", jnp.isnan, jnp.isnan)):
            if what not in self.found and _any(test, made) and not _any(before, given):
                self.found[what] = {
                    "made": what,
                    "operation": equation.primitive.name,
                    **_where(equation),
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


def _where(equation: Any) -> dict[str, str]:
    """Where in the source an operation is: the nearest line outside libraries."""
    frame = source_frame(equation)
    where = "unknown"
    if frame is not None:
        where = f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
    return {"where": where, "within": str(equation.source_info.name_stack)}
