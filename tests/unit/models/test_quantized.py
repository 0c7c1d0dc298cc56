"""Dense products in 8 bits against NumPy and ml_dtypes, and a run with them."""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.experiment import Experiment
from jaxbig.config.fingerprint import fingerprint, identity
from jaxbig.config.precision import Precision
from jaxbig.config.serialize import to_json
from jaxbig.cost.flops import count_flops
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.layers import quantized
from jaxbig.models.layers.quantized import dense_product, products_in
from jaxbig.program.program import make_program
from jaxbig.tools.shrink import random_batch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("qwix") is None, reason="qwix is not installed"
)
TYPES: dict[str, tuple[Any, Any]] = {
    "float8": (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    "int8": (np.int8, np.int8),
}
BOUND = {np.int8: 127.5, ml_dtypes.float8_e4m3fn: 448.0, ml_dtypes.float8_e5m2: 57344.0}


def quantize(x: np.ndarray, kind: Any, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a type, as float64, and the float32 scale of each row or column."""
    scale = np.abs(x).max(axis=axis, keepdims=True) / np.float32(BOUND[kind])
    scaled = x / scale
    if kind is np.int8:
        return np.clip(np.round(scaled), -128, 127).astype(np.float64), scale
    return scaled.astype(kind).astype(np.float64), scale


def expected(
    x: np.ndarray, kernel: np.ndarray, g: np.ndarray, compute: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The product [N, F] of x [N, D] and a kernel [D, F], and the gradients of both.

    Sums are exact, in float64, and are rounded to float32 once.
    """
    forward, backward = TYPES[compute]
    left, of_rows = quantize(x, forward, 1)
    right, of_columns = quantize(kernel, forward, 0)
    y = (left @ right).astype(np.float32) * of_rows * of_columns
    first, scale = quantize(g * of_columns, backward, 1)
    of_x = (first @ right.T).astype(np.float32) * scale
    second, scale = quantize(g * of_rows, backward, 0)
    return y, of_x, (left.T @ second).astype(np.float32) * scale


def ours(x: Any, kernel: Any, g: Any, compute: str) -> list[np.ndarray]:
    """What `dense_product` makes of the same, without XLA's fusions."""
    with products_in(compute):
        y, pull_back = jax.vjp(dense_product, jnp.asarray(x), jnp.asarray(kernel))
    return [np.asarray(each) for each in (y, *pull_back(jnp.asarray(g)))]


@pytest.mark.parametrize("compute", TYPES)
def test_product_and_gradients_are_numpys_bit_for_bit(compute: str) -> None:
    # maxima that make every scale a power of two, so that no division rounds
    top = 7.0 if compute == "float8" else 127.5 / 32
    rng = np.random.default_rng(0)
    x, kernel, g = (
        rng.standard_normal(shape).astype(np.float32).clip(-3.9, 3.9)
        for shape in ((24, 32), (32, 16), (24, 16))
    )
    if compute == "float8":  # few bits, so that float32 sums are exact in any order
        x, kernel, g = (np.round(each * 4) / 4 for each in (x, kernel, g))
    x[:, 0] = top
    kernel[0] = top
    g[:, 1] = top
    g[2] = top
    x *= 2.0 ** (np.arange(24)[:, None] % 3)
    kernel *= 2.0 ** (np.arange(16) % 2)
    found = ours(x, kernel, g, compute)
    for one, other in zip(found, expected(x, kernel, g, compute), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("compute", TYPES)
def test_products_are_near_those_of_float32(compute: str) -> None:
    rng = np.random.default_rng(1)
    x, kernel, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((2, 5, 3, 8), (3, 8, 4, 6), (2, 5, 4, 6))
    )

    def product(x: Any, kernel: Any) -> Any:
        return dense_product(x, kernel, 2)

    wanted, pull_back = jax.vjp(product, x, kernel)
    with products_in(compute):
        found, pull = jax.vjp(product, x, kernel)
    for one, other in zip((found, *pull(g)), (wanted, *pull_back(g)), strict=True):
        error = np.linalg.norm(np.asarray(one - other)) / np.linalg.norm(np.asarray(other))
        assert 1e-4 < error < (0.02 if compute == "int8" else 0.12), error


def transformer(compute: str, **changes: Any) -> Experiment:
    precision: Any = Precision(compute=compute)  # type: ignore[arg-type]
    return small("pytext_transformer", precision=precision, **changes)


def losses(experiment: Experiment, devices: int = 1, steps: int = 2) -> list[float]:
    program = make_program(experiment, jax.devices()[:devices])
    found = []
    with program.activate():
        state = program.init()
        for step in range(steps):
            batch = device_put_batch(random_batch(experiment, step), program.mesh)
            state, metrics = program.train_step(state, batch)
            found.append(float(metrics["loss"]))
        sums, _ = program.eval_step(program.merged(state), batch)
    return [*found, float(sums["loss"].mean())]


@pytest.mark.slow
def test_scales_are_of_the_whole_array_on_a_mesh() -> None:
    one = losses(transformer("int8"))
    split = losses(transformer("int8", mesh=Mesh(fsdp=2, tensor=2)), 4)
    np.testing.assert_allclose(split, one, rtol=2e-4)
    assert np.abs(np.subtract(one, losses(transformer("dtype")))).min() > 1e-6


@pytest.mark.slow
def test_state_and_flops_are_the_same_and_the_fingerprint_is_not() -> None:
    plain, int8 = (make_program(transformer(c), jax.devices()[:1]) for c in ("dtype", "int8"))
    assert flatten_with_paths(plain.abstract) == flatten_with_paths(int8.abstract)
    counted = []
    for program in (plain, int8):
        with program.activate():
            traced = program.train_step.trace(program.abstract, program.train_batch)
        counted.append(count_flops(traced.jaxpr))
    assert counted[0] == counted[1]
    prints = [fingerprint(identity(to_json(p.experiment), "data")) for p in (plain, int8)]
    assert prints[0] != prints[1]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match=r"compute 'fp8': it must be one of dtype, float8, int8"):
        Precision(compute="fp8").check("float32")  # type: ignore[arg-type]
    resnet = small("digits_resnet", precision=Precision(compute="int8"))
    program = make_program(resnet, jax.devices()[:1])
    with program.activate(), pytest.raises(Refused, match="ResNet has no dense layer"):
        jax.eval_shape(program.train_step, program.abstract, program.batch)
    monkeypatch.setattr(quantized, "MOST_ROWS", 3)
    with pytest.raises(Refused, match=r"sums 4 rows in int32, .* above 3: give --accumulate 2"):
        ours(np.ones((4, 2)), np.ones((2, 2)), np.ones((4, 2)), "int8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'jaxbig\[quantized\]'"):
        Precision(compute="int8").check("float32")


@pytest.mark.slow
def test_a_scanned_model_with_remat_and_chunks_learns() -> None:
    experiment = transformer("float8")
    model = dataclasses.replace(
        experiment.model, scan=True, remat="full", mlp_chunks=2, dtype="bfloat16"
    )
    experiment = experiment.replace(model=model, accumulate=2)
    found = losses(experiment, steps=1)
    assert np.isfinite(found).all()
