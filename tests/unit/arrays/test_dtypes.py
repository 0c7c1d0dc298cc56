"""Dtypes that sums, norms and losses are computed in."""

import jax.numpy as jnp
import pytest

from jaxbig.arrays.dtypes import accumulation_dtype, upcast


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_sums_of_a_dtype_are_in_float32_or_in_what_is_wider(dtype: str, expected: str) -> None:
    assert accumulation_dtype(jnp.dtype(dtype)) == jnp.dtype(expected)


def test_upcast_keeps_values_and_widens_half_precision() -> None:
    found = upcast(jnp.array([1.0, 1 / 3], jnp.bfloat16))
    assert found.dtype == jnp.float32
    assert found.tolist() == [1.0, float(jnp.bfloat16(1 / 3))]
