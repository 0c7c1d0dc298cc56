"""Sums in float32: what a function's products and sums give in bfloat16 or float16 is float32 first, rounded after.

A device adds up in float32 by itself, but what several have each added up is added in the dtype of the result: so the
gradient of a bfloat16 model over 512 devices is added in 8 bits, where the small are lost in the large. A partitioner
puts that sum right behind the product it belongs to, and most of these are in a backward pass that nobody wrote, so
the dtypes are changed in the traced program.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
"""Primitives that are told the dtype of their result."""
SUMS = ("reduce_sum", "psum", "psum_invariant", "reduce_scatter")
"""Those whose result has the dtype of what is added."""


def float32_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of the same dtypes. Pallas kernels, which say for themselves, stay as they are."""

    def summed(*arguments: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = core.jaxpr_as_fun(widened(traced))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return summed


def widened(value: Any) -> Any:
    """A jaxpr with its sums, and those of the jaxprs within it, in float32; anything else as it is."""
    if type(value) is tuple:
        return tuple(map(widened, value))
    if isinstance(value, core.Jaxpr):  # with jax 0.12 a closed one too
        return value.replace(eqns=[new for equation in value.eqns for new in _widened(equation)])
    return (
        value.replace(jaxpr=widened(value.jaxpr)) if isinstance(value, core.ClosedJaxpr) else value
    )


def _widened(equation: core.JaxprEqn) -> list[core.JaxprEqn]:
    name, params = equation.primitive.name, equation.params
    if name == "pallas_call":
        return [equation]
    if name not in PRODUCTS + SUMS or not any(map(narrow, equation.outvars)):
        return [equation.replace(params={key: widened(each) for key, each in params.items()})]

    def apply(primitive: Any, into: Any, given: Any, **params: Any) -> core.JaxprEqn:
        return equation.replace(
            invars=[given], outvars=[into], primitive=primitive, params=params, effects=set()
        )

    def convert(into: Any, given: Any) -> core.JaxprEqn:
        to = {"new_dtype": into.aval.dtype, "weak_type": False, "sharding": None}
        return apply(primitives.convert_element_type_p, into, given, **to)

    inputs, results, before, after = list(equation.invars), list(equation.outvars), [], []
    if name in PRODUCTS:
        params = params | {"preferred_element_type": jnp.dtype(jnp.float32)}
    else:
        inputs = [float32_like(each) if narrow(each) else each for each in inputs]
        before = [
            convert(n, old) for n, old in zip(inputs, equation.invars, strict=True) if n is not old
        ]
    for place, old in enumerate(equation.outvars):
        if narrow(old):
            results[place] = float32_like(old)
            rounded = float32_like(old)
            bits = jnp.finfo(old.aval.dtype)  # type: ignore[attr-defined]
            kept = {"exponent_bits": bits.nexp, "mantissa_bits": bits.nmant}
            # a conversion alone XLA would take for the product's own dtype again
            after += [
                apply(primitives.reduce_precision_p, rounded, results[place], **kept),
                convert(old, rounded),
            ]
    return [*before, equation.replace(invars=inputs, outvars=results, params=params), *after]


def narrow(value: Any) -> bool:
    return getattr(value.aval, "dtype", None) in (jnp.bfloat16, jnp.float16)


def float32_like(value: Any) -> core.Var:
    """A new variable like another, but for its dtype."""
    return core.Var(value.aval.update(dtype=jnp.dtype(jnp.float32), weak_type=False))
