"""Float32 reductions: products and sums of a bfloat16 or float16 function accumulate in float32.

One device accumulates in float32 by itself, but partial sums of several devices are added in the
dtype of the result: the gradient of a bfloat16 model over 512 devices would be summed in 8 bits.
The partitioner inserts that sum right after its product, and most products are in a backward pass
that nobody wrote, so the dtypes are changed in the traced program.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
"""Primitives with a parameter for the dtype of their result."""
SUMS = ("reduce_sum", "psum", "psum_invariant", "reduce_scatter")
"""Primitives whose result has the dtype of what is summed."""


def float32_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with float32 accumulation outside Pallas kernels; results keep their dtypes."""

    def summed(*arguments: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = core.jaxpr_as_fun(widened(traced))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return summed


def widened(value: Any) -> Any:
    """A jaxpr with float32 accumulation, also in the jaxprs it contains; anything else as it is."""
    if type(value) is tuple:
        return tuple(map(widened, value))
    if isinstance(value, core.Jaxpr):  # with jax 0.12 a closed one too
        return value.replace(eqns=[new for equation in value.eqns for new in _widened(equation)])
    return (
        value.replace(jaxpr=widened(value.jaxpr)) if isinstance(value, core.ClosedJaxpr) else value
    )


def _widened(equation: core.JaxprEqn) -> list[core.JaxprEqn]:
    name = equation.primitive.name
    params = equation.params
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

    inputs = list(equation.invars)
    results = list(equation.outvars)
    before = []
    after = []
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
            # without this rounding XLA folds the conversion back into the product's dtype
            after += [
                apply(primitives.reduce_precision_p, rounded, results[place], **kept),
                convert(old, rounded),
            ]
    return [*before, equation.replace(invars=inputs, outvars=results, params=params), *after]


def narrow(value: Any) -> bool:
    return getattr(value.aval, "dtype", None) in (jnp.bfloat16, jnp.float16)


def float32_like(value: Any) -> core.Var:
    """A new variable of the same shape in float32."""
    return core.Var(value.aval.update(dtype=jnp.dtype(jnp.float32), weak_type=False))
