"""The gated delta rule by chunks against loops over its equation, ours and transformers', and the
layer against a loop over its own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_triangular
from scipy.special import expit

from jaxbig.models.deltanet import GatedDelta, gated_delta, solve

Array = np.ndarray
CHUNKS = (1, 3, 4, 16)
LAYER = GatedDelta(heads=2, key_width=3, value_width=4, chunk=4)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def drawn(batch: int, length: int, heads: int, key: int, value: int) -> tuple[Array, ...]:
    """Arguments of `gated_delta`, with one position that forgets all but e^-200 of the state."""
    log_decay = -np.exp(normal(batch, length, heads, seed=4) - 1)
    log_decay[:, length // 2] = -200
    return (
        normal(batch, length, heads, key, seed=0),
        unit(normal(batch, length, heads, key, seed=1)),
        normal(batch, length, heads, value, seed=2),
        expit(normal(batch, length, heads, seed=3)),
        log_decay,
        normal(batch, heads, key, value, seed=5),
    )


def looped(
    queries: Array, keys: Array, values: Array, beta: Array, log_decay: Array, state: Array
) -> tuple[Array, Array]:
    """The equation, a position and a head at a time, in float64."""
    state = np.float64(state)
    outputs = np.zeros(values.shape)
    for b, t, h in np.ndindex(*beta.shape):
        k = np.float64(keys[b, t, h])
        rate = np.float64(beta[b, t, h])
        kept = np.exp(np.float64(log_decay[b, t, h])) * (np.eye(k.size) - rate * np.outer(k, k))
        state[b, h] = kept @ state[b, h] + rate * np.outer(k, values[b, t, h])
        outputs[b, t, h] = queries[b, t, h] @ state[b, h]
    return outputs, state


def sequential(*arguments: Any) -> Any:
    """The same for all heads at once, with a derivative."""
    *inputs, state = arguments

    def step(state: Any, now: Any) -> Any:
        q, k, v, beta, log_decay = now
        state = jnp.exp(log_decay)[..., None, None] * state
        new = beta[..., None] * (v - jnp.einsum("bhkv,bhk->bhv", state, k))
        state = state + jnp.einsum("bhk,bhv->bhkv", k, new)
        return state, jnp.einsum("bhkv,bhk->bhv", state, q)

    state, outputs = jax.lax.scan(step, state, [jnp.swapaxes(x, 0, 1) for x in inputs])
    return jnp.swapaxes(outputs, 0, 1), state


def close(ours: Any, expected: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected
    )


def test_chunks_of_any_size_are_the_loop_over_its_equation() -> None:
    arguments = drawn(2, 11, 2, 4, 3)
    expected = looped(*arguments)
    for ours in jax.jit(lambda *x: [gated_delta(*x, chunk) for chunk in CHUNKS])(*arguments):
        assert ours[0].dtype == np.float32
        close(ours, expected)


def test_its_gradients_are_those_of_a_scan_over_positions() -> None:
    arguments = drawn(2, 11, 2, 4, 3)

    def gradients(rule: Any) -> Any:
        def scalar(*arguments: Any) -> Any:
            return sum(jnp.sum(jnp.sin(x)) for x in rule(*arguments))

        return jax.grad(scalar, argnums=tuple(range(6)))(*arguments)

    ours, expected = jax.jit(
        lambda: (gradients(lambda *x: gated_delta(*x, 4)), gradients(sequential))
    )()
    close(ours, expected)


def test_equal_keys_that_are_never_forgotten_are_still_solved() -> None:
    """The system of a chunk is then all ones: powers of it would lose all digits."""
    queries, keys, values, beta, log_decay, state = drawn(1, 128, 1, 4, 3)
    keys = np.broadcast_to(keys[:, :1], keys.shape)
    arguments = queries, keys, values, np.ones_like(beta), np.zeros_like(log_decay), state
    close(jax.jit(lambda: gated_delta(*arguments, 64))(), looped(*arguments))


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_a_system_of_any_size_is_solved_as_by_scipy(size: int) -> None:
    system = 0.3 * normal(size, size)  # what is not below its diagonal is not read
    sides = normal(size, 3, seed=1)
    expected = solve_triangular(
        np.float64(system), np.float64(sides), lower=True, unit_diagonal=True
    )
    close(jax.jit(solve)(system, sides) / np.abs(expected).max(), expected / np.abs(expected).max())


@pytest.mark.slow
def test_it_is_that_of_qwen3_next() -> None:
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    arguments = drawn(2, 70, 2, 4, 3)
    queries, keys, values, beta, log_decay, state = map(torch.tensor, arguments)
    expected = theirs.torch_chunk_gated_delta_rule(
        2 * queries,  # which it divides by the root of 4
        keys,
        values,
        log_decay,
        beta,
        initial_state=state,
        output_final_state=True,
    )
    close(jax.jit(lambda: gated_delta(*arguments, 64))(), tuple(x.numpy() for x in expected))


def test_the_layer_is_a_loop_over_its_equations() -> None:
    x = normal(2, 6, 5)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: LAYER.init(jax.random.key(0), x)))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    p = jax.tree.unflatten(
        tree, [0.4 * normal(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)]
    )

    def silu(x: Array) -> Array:
        return x * expit(x)

    def short(name: str) -> Array:
        y = x @ p[name]["kernel"]
        kernel, bias = (p[f"{name}_convolution"][part] for part in ("kernel", "bias"))
        for b, channel in np.ndindex(2, y.shape[-1]):
            y[b, :, channel] = np.convolve(y[b, :, channel], kernel[:, channel])[:6]
        return silu(y + bias).reshape(2, 6, 2, -1)

    decay = -np.exp(p["rate"]) * np.logaddexp(0, x @ p["decay"]["kernel"] + p["bias"])
    y, _ = looped(
        unit(short("query")) / 3**0.5,
        unit(short("key")),
        short("value"),
        expit(x @ p["beta"]["kernel"]),
        decay,
        np.zeros((2, 2, 3, 4)),
    )
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
    y = y.reshape(2, 6, 8) * silu(x @ p["gate"]["kernel"])
    ours = jax.jit(lambda: LAYER.apply({"params": p}, x))()
    np.testing.assert_allclose(ours, y @ p["out"]["kernel"], rtol=1e-4, atol=1e-5)


def test_it_begins_to_forget_in_one_to_a_thousand_positions() -> None:
    module = GatedDelta(heads=500, key_width=1, value_width=1, chunk=2)
    p = nn.meta.unbox(jax.jit(lambda: module.init(jax.random.key(0), normal(1, 2, 3)))())["params"]
    assert 1 <= np.exp(p["rate"]).min() < 1.2 and 15 < np.exp(p["rate"]).max() <= 16
    steps = np.logaddexp(0, np.float64(p["bias"]))
    assert 0.00099 < steps.min() < 0.0012 and 0.09 < steps.max() < 0.1001
    assert 0.008 < np.median(steps) < 0.0125  # uniform in the logarithm
