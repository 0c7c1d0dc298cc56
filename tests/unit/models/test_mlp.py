"""The MLP against scikit-learn's and against the same equations in PyTorch."""

import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.neural_network

from jaxbig.errors import Refused
from jaxbig.models.mlp import MLP

KEY = jax.random.key(0)
X = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)


def parameters(model: MLP, x: Any = X) -> Any:
    """Numbers in the shapes of its parameters, none of them zero."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(KEY, x)))["params"]
    numbers = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: 0.5 * numbers.standard_normal(leaf.shape).astype(np.float32), shapes
    )


def applied(model: MLP, p: Any, x: Any = X, **how: Any) -> jax.Array:
    return jax.jit(lambda p, x: model.apply({"params": p}, x, **how))(p, x)


@pytest.mark.parametrize(("activation", "theirs"), [("relu", "relu"), ("tanh", "tanh")])
@pytest.mark.parametrize("widths", [(6,), (8, 4)])
@pytest.mark.parametrize("outputs", [1, 3])
def test_it_is_scikit_learns(widths: Any, activation: Any, theirs: str, outputs: int) -> None:
    model = MLP(widths=widths, outputs=outputs, activation=activation)
    p = parameters(model)
    other = sklearn.neural_network.MLPRegressor(
        hidden_layer_sizes=widths, activation=theirs, max_iter=1
    )
    with warnings.catch_warnings(
        action="ignore"
    ):  # that it has not converged: its weights are replaced
        other.fit(X, np.zeros((5, outputs))[:, slice(None) if outputs > 1 else 0])
    layers = [p[f"linear_{layer}"] for layer in range(len(widths))] + [p["head"]]
    other.coefs_ = [layer["kernel"].astype(np.float64) for layer in layers]
    other.intercepts_ = [layer["bias"].astype(np.float64) for layer in layers]
    ours = applied(model, p)
    expected = other.predict(X.astype(np.float64))
    assert ours.shape == expected.shape == ((5,) if outputs == 1 else (5, outputs))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh"])
def test_its_values_and_gradients_are_pytorchs(activation: Any) -> None:
    torch = pytest.importorskip("torch")
    apply = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "tanh": torch.tanh,
    }[activation]
    model = MLP(widths=(6, 4), outputs=2, activation=activation)
    p = parameters(model)
    theirs = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), p)
    y = torch.tensor(X)
    for name in ("linear_0", "linear_1", "head"):
        y = y @ theirs[name]["kernel"] + theirs[name]["bias"]
        y = y if name == "head" else apply(y)
    (y**2).sum().backward()
    np.testing.assert_allclose(applied(model, p), y.detach().numpy(), rtol=1e-5, atol=1e-5)

    def loss(p: Any) -> jax.Array:
        return jnp.sum(jnp.square(model.apply({"params": p}, X)))  # type: ignore[arg-type]

    gradient = jax.jit(jax.grad(loss))(p)
    expected = jax.tree.map(lambda leaf: leaf.grad.numpy(), theirs)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale),
        gradient,
        expected,
    )


def test_without_hidden_layers_it_is_a_line() -> None:
    p = parameters(MLP(widths=()))
    expected = X @ p["head"]["kernel"][:, 0] + p["head"]["bias"]
    np.testing.assert_allclose(applied(MLP(widths=()), p), expected, rtol=1e-5, atol=1e-5)


def test_an_input_of_many_axes_is_read_as_one() -> None:
    model = MLP(widths=(4,))
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 24
    p = parameters(model, x)
    np.testing.assert_array_equal(applied(model, p, x), applied(model, p, x.reshape(2, 12)))


def test_dropout_is_of_training_alone_and_after_each_hidden_layer() -> None:
    model = MLP(widths=(50, 50), dropout=0.5)
    p = parameters(model)
    np.testing.assert_array_equal(applied(model, p), applied(MLP(widths=(50, 50)), p))
    one, other = (
        applied(model, p, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1)
    )
    assert np.abs(one - other).min() > 0
    everything = MLP(widths=(50, 50), dropout=0.9999999)
    rngs = {"dropout": KEY}
    bias = np.full(5, p["head"]["bias"][0])
    np.testing.assert_array_equal(applied(everything, p, train=True, rngs=rngs), bias)


def test_in_bfloat16_it_gives_float32_from_float32_parameters() -> None:
    model = MLP(widths=(16,), dtype="bfloat16")
    p = parameters(model)
    y = applied(model, p)
    exact = applied(MLP(widths=(16,)), p)
    assert y.dtype == jnp.float32 and {leaf.dtype for leaf in jax.tree.leaves(p)} == {
        np.dtype(np.float32)
    }
    scale = np.abs(exact).max()
    assert 1e-5 * scale < np.abs(y - exact).max() < 0.05 * scale  # it did compute in bfloat16


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"widths": (8, 0)}, ("widths.1 0", "1 or more")),
        ({"outputs": 0}, ("outputs 0", "1 or more")),
        ({"activation": "elu"}, ("activation 'elu'", "relu, silu")),
        ({"dtype": "float8"}, ("dtype 'float8'", "bfloat16")),
        ({"dtype": "float64"}, ("dtype float64", "JAX_ENABLE_X64=1")),
    ],
)
def test_wrong_fields_are_refused(fields: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as refused:
        jax.eval_shape(lambda: MLP(**fields).init(KEY, X))
    assert all(word in str(refused.value) for word in words)
