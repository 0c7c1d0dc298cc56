"""Products of dense layers in 8 bits, by Qwix: `precision.compute` is `float8` or `int8`.

Each row of the input and each column of the kernel has its own scale, its largest absolute value
over the largest number of the type, of the whole array also where a mesh splits it. The gradient
of the output is quantized too, once for each of the two backward products. Sums are int32 or
float32.

Qwix's own provider replaces functions of jax while a model is called. Here the layers call Qwix
instead: so it is plain which products are quantized, and nothing else can be.
"""

import contextlib
import functools
import importlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.errors import Refused

TYPES = {"float8": (jnp.float8_e4m3fn, jnp.float8_e5m2), "int8": (jnp.int8, jnp.int8)}
"""The types of inputs and kernels, and of gradients (Micikevicius et al., 2022; Jacob et al.,
2018)."""
MOST_ROWS = 2**31 // 2**14
"""An int32 sum of this many products of int8 cannot overflow."""
_compute: ContextVar[str] = ContextVar("compute", default="dtype")
_count: ContextVar[list[int] | None] = ContextVar("count", default=None)


@contextlib.contextmanager
def products_in(compute: str) -> Iterator[list[int]]:
    """Sets how `dense_product` multiplies while a model is traced: `dtype`, `float8` or `int8`.

    Yields:
      A list that gets an item for each product that is quantized.
    """
    count: list[int] = []
    tokens = _compute.set(compute), _count.set(count)
    try:
        yield count
    finally:
        _compute.reset(tokens[0])
        _count.reset(tokens[1])


def dense_product(x: jax.Array, kernel: jax.Array, inputs: int = 1) -> jax.Array:
    """[..., *K] and a kernel [*K, *F] -> [..., *F] in the dtype of x, where K are `inputs` axes."""
    compute = _compute.get()
    if compute == "dtype":
        return jnp.tensordot(x, kernel, axes=inputs)
    if (count := _count.get()) is not None:
        count.append(1)
    return quantized_product(x, kernel, inputs, compute)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def quantized_product(x: jax.Array, kernel: jax.Array, inputs: int, compute: str) -> jax.Array:
    """`dense_product` in 8 bits.

    Args:
      x: [..., *K].
      kernel: [*K, *F], of the dtype of x.
      inputs: the number of axes K.
      compute: a name of `TYPES`.

    Raises:
      Refused: in the gradient, int32 sums over more than `MOST_ROWS` rows could overflow.
    """
    return _forward(x, kernel, inputs, compute)[0]


def _forward(x: jax.Array, kernel: jax.Array, inputs: int, compute: str) -> tuple[jax.Array, Any]:
    qwix = importlib.import_module("qwix")
    rows = x.ndim - inputs
    kind = TYPES[compute][0]
    # in float32: a bfloat16 scale would round again
    left = qwix.quantize(upcast(x), kind, channelwise_axes=range(rows))
    right = qwix.quantize(upcast(kernel), kind, channelwise_axes=range(inputs, kernel.ndim))
    y = qwix.dot_general(left, right, (_ranges(rows, inputs, 0), ((), ())))
    return y.astype(x.dtype), (left, right)


def _backward(inputs: int, compute: str, kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    qwix = importlib.import_module("qwix")
    left, right = kept
    rows = left.qvalue.ndim - inputs
    columns = g.ndim - rows
    kind = TYPES[compute][1]
    count = math.prod(g.shape[:rows])
    if compute == "int8" and count > MOST_ROWS:
        raise Refused(
            f"--precision.compute int8: the gradient of a kernel sums {count:,} rows in int32, "
            f"which may overflow above {MOST_ROWS:,}: give --accumulate "
            f"{2 ** math.ceil(math.log2(count / MOST_ROWS))} or more."
        )
    wide = upcast(g)
    # The scale of the axis that is summed cannot be taken out of the sum: it goes into the gradient
    # before that is quantized, so that the numbers of the forward pass serve again.
    scaled = wide * right.scale.reshape((1,) * rows + right.scale.shape[inputs:])
    first = qwix.quantize(scaled, kind, channelwise_axes=range(rows))
    of_x = qwix.dot_general(first, right.qvalue, (_ranges(rows, columns, inputs), ((), ())))
    scaled = wide * left.scale.reshape(left.scale.shape[:rows] + (1,) * columns)
    second = qwix.quantize(scaled, kind, channelwise_axes=range(rows, g.ndim))
    of_kernel = qwix.dot_general(left.qvalue, second, (_ranges(0, rows, 0), ((), ())))
    return of_x.astype(g.dtype), of_kernel.astype(g.dtype)


def _ranges(first: int, count: int, second: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`count` axes of two arrays that are summed, from `first` and from `second` on."""
    return tuple(range(first, first + count)), tuple(range(second, second + count))


quantized_product.defvjp(_forward, _backward)
