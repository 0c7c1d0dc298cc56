"""Number formats: which a model computes in, and what needs one that is exact."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
"""float16 asks for `--precision.loss-scale`. float64 is for comparisons, and needs JAX_ENABLE_X64=1; `check` turns it
on by itself."""
HIGHEST = jax.lax.Precision.HIGHEST
"""The precision of a product that must be float32: accelerators else round what is multiplied, to bfloat16 on a TPU and
to TensorFloat-32 on a GPU since Ampere. A CPU rounds nothing."""


def wide(dtype: Any) -> Any:
    """float32, or float64 in a program of that: for norms, softmax, losses and sums, in which bf16 and float16 lie."""
    return jnp.promote_types(dtype, jnp.float32)


def exact(x: jax.Array) -> jax.Array:
    """The same numbers in the `wide` format."""
    return x.astype(wide(x.dtype))
