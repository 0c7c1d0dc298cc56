"""Which operation of a program first makes a number that is not finite: the program is made again, one at a time.

The program is read as JAX traced it (its jaxpr), loops unrolled and calls entered, so what is named is an operation of
the source, in the forward or the backward pass, though the run itself had fused it with others.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util  # an operation's line of source has no public name
from jax.extend import core

from jaxbig.arrays.tree import flatten_with_paths

INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""The parameters in which an operation that is a call keeps the program it calls."""


class Blame:
    """Evaluates programs, and notes the first operation that makes an infinity, and the first that makes a NaN: its
    outputs have one, and no input has."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def run(self, jaxpr: Any, constants: Any, *values: Any) -> list[Any]:
        """What the program gives; ends early once a NaN was made, by `Found`."""
        known: dict[Any, Any] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *values], strict=True)
        )
        read: Callable[[Any], Any] = lambda atom: (
            atom.val if isinstance(atom, core.Literal) else known[atom]
        )
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
        name, has = equation.primitive.name, equation.params
        if name == "scan":
            return self.scan(equation, given)
        if name == "while":
            return self.loop(has, given)
        if name == "cond":
            number = int(np.clip(given[0], 0, len(has["branches"]) - 1))
            return self.closed(has["branches"][number], given[1:])
        inside = next((has[key] for key in INSIDE if key in has), None)
        if name == "shard_map" or inside is None or len(given) != len(_open(inside)[0].invars):
            return None
        return self.closed(inside, given)

    def closed(self, inside: Any, given: list[Any]) -> list[Any]:
        jaxpr, constants = _open(inside)
        return self.run(jaxpr, constants, *given)

    def scan(self, equation: Any, given: list[Any]) -> list[Any]:
        """A scan, one turn after another."""
        has, body = equation.params, _open(equation.params["jaxpr"])[0]
        # what has an axis more outside is of a turn each; versions of JAX count the rest in ways of their own
        carried = sum(
            of.aval.ndim == all_of.aval.ndim
            for of, all_of in zip(body.outvars, equation.outvars, strict=True)
        )
        kept = sum(
            of.aval.ndim == all_of.aval.ndim
            for of, all_of in zip(body.invars, equation.invars, strict=True)
        )
        fixed = kept - carried
        constants, carry, rows = given[:fixed], given[fixed:kept], given[kept:]
        turns = []
        for turn in range(has["length"])[:: -1 if has["reverse"] else 1]:
            made = self.closed(has["jaxpr"], [*constants, *carry, *(each[turn] for each in rows)])
            carry, out = made[:carried], made[carried:]
            turns.append(out)
        turns = turns[::-1] if has["reverse"] else turns
        return [*carry, *(jnp.stack(each) for each in zip(*turns, strict=True))]

    def loop(self, has: dict[str, Any], given: list[Any]) -> list[Any]:
        """A while loop, one turn after another."""
        first, second = has["cond_nconsts"], has["cond_nconsts"] + has["body_nconsts"]
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
    """The first NaN was made: what follows tells nothing."""


def first_bad(program: Any, values: list[Any]) -> list[dict[str, str]]:
    """{`made`: inf or nan, `operation`, `where`: file, line and function, `within`: of which module and pass} of the
    first operation that made an infinity and of the first that made a NaN, in that order, of a closed jaxpr."""
    blame = Blame()
    with contextlib.suppress(Found):
        blame.closed(program, values)
    return list(blame.found.values())


def bad_inputs(tree: Any) -> list[str]:
    """The paths of the leaves of a tree that are not finite."""
    return [name for name, leaf in flatten_with_paths(tree).items() if _any(_not_finite, [leaf])]


def _not_finite(x: Any) -> Any:
    return ~jnp.isfinite(x)


def _any(test: Callable[[Any], Any], values: list[Any]) -> bool:
    inexact = (x for x in values if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact))
    return any(bool(test(x).any()) for x in inexact)


def _open(inside: Any) -> tuple[Any, Any]:
    return (inside.jaxpr, inside.consts) if hasattr(inside, "consts") else (inside, ())


def _where(equation: Any) -> dict[str, str]:
    """Where in the source an operation stands: the nearest line that is no library's."""
    info = equation.source_info
    frames = list(_frames(info))
    ours = [each for each in frames if "site-packages" not in each] or frames or ["unknown"]
    return {"where": ours[0], "within": str(info.name_stack)}


def _frames(info: Any) -> Iterator[str]:
    for frame in source_info_util.user_frames(info.traceback):
        yield f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
