"""Evaluates a program as JAX traced it (its jaxpr), one operation at a time.

Loops are unrolled and calls entered, so an operation is one of the source, in the forward or
backward pass, even if XLA would fuse it.
"""

import abc
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxbig.arrays.jaxprs import opened, source_frame

INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters in which a call operation keeps the program that it calls."""


class Interpreter(abc.ABC):
    """Evaluates programs; `judge` sees each operation."""

    @abc.abstractmethod
    def judge(self, equation: Any, given: list[Any], made: list[Any]) -> None:
        """Called after each operation.

        Args:
          equation: of the jaxpr.
          given: its inputs.
          made: its outputs.
        """

    def run(self, jaxpr: Any, constants: Any, *values: Any) -> list[Any]:
        """The outputs of a program."""
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
        # arrays with one more axis outside the body are stacked, a row a turn; the names of the
        # numbers of constants and carries differ between versions of JAX
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


def where(equation: Any) -> dict[str, str]:
    """Where in the source an operation is: `where`, the nearest line outside libraries (file, line
    and function), and `within`, its module and pass."""
    frame = source_frame(equation)
    text = "unknown"
    if frame is not None:
        text = f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
    return {"where": text, "within": str(equation.source_info.name_stack)}
