"""Number formats of models (float32, bfloat16, float16), and casts to a more accurate one."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
"""float16 needs `--precision.loss-scale`. float64 is for comparisons and needs JAX_ENABLE_X64=1;
`jaxbig check` sets it."""
HIGHEST = jax.lax.Precision.HIGHEST
"""Precision of a matrix product that must be computed in float32. By default accelerators round its
inputs: to bfloat16 on a TPU, to TensorFloat-32 on a GPU since Ampere. A CPU does not round them."""


def accumulation_dtype(dtype: Any) -> Any:
    """float32, or float64 for float64 inputs.

    bfloat16 and float16 are too inaccurate for norms, softmax, losses and sums.
    """
    return jnp.promote_types(dtype, jnp.float32)


def upcast(x: jax.Array) -> jax.Array:
    """Casts an array to its `accumulation_dtype`."""
    return x.astype(accumulation_dtype(x.dtype))
