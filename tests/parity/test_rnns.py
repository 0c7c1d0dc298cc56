"""Recurrent nets against PyTorch's, against loops over their equations, and what must hold to the
bit."""

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.special import expit, softmax

from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import parameter_shardings
from jaxbig.errors import Refused
from jaxbig.models.deltanet import DeltaNet
from jaxbig.models.griffin import LRU, RGLRU, Griffin, associative
from jaxbig.models.layers.rnn_cells import EQUATIONS, GRU, LSTM, Elman, Layer
from jaxbig.models.linear_recurrent import CausalConv
from jaxbig.models.rnn import RNN, Recurrence, RNNLanguageModel, masked_softmax

Array = np.ndarray
KEY = jax.random.key(0)
LENGTHS = np.array([5, 1, 3], np.int32)
BEYOND = np.arange(5) >= LENGTHS[:, None]  # [B, L]
CELLS = list(EQUATIONS)
TWO = RNN(width=6, classes=3, layers=2)
LANGUAGE = RNNLanguageModel(vocab=11, width=6, layers=2)
GRIFFIN = Griffin(vocab=11, depth=3, width=8, heads=2, window=3)
DELTA = DeltaNet(vocab=11, depth=2, width=8, heads=2, key_width=2, value_width=4, chunk=3)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 11, shape, dtype=np.int32)


def weights(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    """Numbers in the shapes of the module's parameters, so that no bias is 0."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(KEY, *inputs, **named)))["params"]
    seeds = itertools.count(100)
    return jax.tree.map(
        lambda leaf: np.float32(0.4) * normal(*leaf.shape, seed=next(seeds)), shapes
    )


def forward(module: nn.Module, p: Any, *inputs: Any, **named: Any) -> Any:
    return module.apply({"params": p}, *inputs, **named)


def applied(module: nn.Module, p: Any, *inputs: Any, **named: Any) -> Any:
    return jax.jit(lambda p, inputs: forward(module, p, *inputs, **named))(p, inputs)


def close(ours: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Within a tolerance of the largest entry of each leaf."""

    def check(a: Any, b: Any) -> None:
        scale = max(1.0, np.max(np.abs(b), initial=0))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)

    jax.tree.map(check, ours, expected)


def same_bits(ours: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, expected)


# -- layers against PyTorch


def torchs(p: Any, cell: str) -> dict[str, Any]:
    """Our parameters, or gradients, as PyTorch names and orders them."""
    named = {}
    for name, layer in p.items():
        suffix = "l" + name.removeprefix(f"{cell}_")
        named[f"weight_ih_{suffix}"] = layer["input"]["kernel"].reshape(-1, layer["bias"].size).T
        named[f"weight_hh_{suffix}"] = layer["recurrent"].reshape(-1, layer["bias"].size).T
        named[f"bias_hh_{suffix}"] = layer["bias"].reshape(-1)
        if cell == "gru":
            named[f"bias_ih_{suffix}"] = layer["input"]["bias"].reshape(-1)
    return named


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_and_all_their_gradients_are_pytorchs(cell: str, lengths: Array | None) -> None:
    torch = pytest.importorskip("torch")
    x = normal(3, 5, 4)
    module = Recurrence(width=6, cell=cell, layers=2, bidirectional=True)
    p = weights(module, x)
    cotangent = normal(3, 5, 12, seed=1)
    cotangent = cotangent if lengths is None else np.where(BEYOND[..., None], 0, cotangent)
    last_cotangent = normal(3, 12, seed=2)

    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(cell, torch.nn.RNN)
    extra = (
        {"nonlinearity": "relu" if cell == "elman_relu" else "tanh"} if kind is torch.nn.RNN else {}
    )
    theirs = kind(4, 6, num_layers=2, bidirectional=True, batch_first=True, **extra)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
        for name, value in torchs(p, cell).items():
            getattr(theirs, name).copy_(torch.tensor(np.asarray(value)))
    source = torch.tensor(x, requires_grad=True)
    packed = source
    if lengths is not None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            source, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
    output, last = theirs(packed)
    if lengths is not None:
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    last = last[0] if cell == "lstm" else last
    last = torch.cat([last[-2], last[-1]], dim=-1)
    (
        (output * torch.tensor(cotangent)).sum() + (last * torch.tensor(last_cotangent)).sum()
    ).backward()

    @jax.jit
    def outcome(p: Any, x: Any) -> Any:
        (states, last), back = jax.vjp(lambda p, x: forward(module, p, x, lengths)[:2], p, x)
        return states, last, *back((cotangent, last_cotangent))

    states, ours_last, of_p, of_x = outcome(p, x)
    inside = np.ones((3, 5, 1), bool) if lengths is None else ~BEYOND[..., None]
    close(np.where(inside, states, 0), output.detach().numpy())
    close(ours_last, last.detach().numpy())
    close(of_x, source.grad.numpy())
    for name, value in torchs(of_p, cell).items():
        close(value, getattr(theirs, name).grad.numpy())


def looped(cell: str, p: Any, x: Array, lengths: Any, reverse: bool) -> tuple[Array, Array]:
    """The equations of the docstrings, a row and a step at a time: each h_t [B, L, W] and each
    row's last [B, W]."""
    kernel = p["input"]["kernel"]
    recurrent = p["recurrent"]
    bias = p["bias"]
    states = np.zeros((*x.shape[:2], len(recurrent)))
    last = np.zeros((len(x), len(recurrent)))
    for row, length in enumerate(lengths):
        hidden, memory = np.zeros((2, len(recurrent)))
        for t in sorted(range(length), reverse=reverse):
            product = np.einsum("d,dgw->gw", x[row, t], kernel)
            again = np.einsum("v,vgw->gw", hidden, recurrent) + bias
            if cell == "lstm":
                i, f, g, o = product + again
                memory = expit(f) * memory + expit(i) * np.tanh(g)
                hidden = expit(o) * np.tanh(memory)
            elif cell == "gru":
                product = product + p["input"]["bias"]
                r, u = expit(product[:2] + again[:2])
                hidden = (1 - u) * np.tanh(product[2] + r * again[2]) + u * hidden
            else:
                hidden = (np.tanh if cell == "elman" else lambda v: np.maximum(v, 0))(
                    product + again
                )[0]
            states[row, t] = hidden
        states[row, length:] = 0 if reverse else hidden
        last[row] = hidden
    return states, last


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_is_the_loop_over_its_equations(cell: str, reverse: bool) -> None:
    x = normal(3, 5, 4)
    module = Layer(6, cell)
    p = weights(module, x)
    states, carry = applied(module, p, x, LENGTHS, reverse=reverse)
    close((states, carry[0]), looped(cell, p, x, LENGTHS, reverse))


def test_the_cells_have_names_of_their_own() -> None:
    assert [kind(3).cell for kind in (LSTM, GRU, Elman)] == ["lstm", "gru", "elman"]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_gradients_are_those_of_finite_differences_also_by_the_first_carry(
    cell: str, reverse: bool
) -> None:
    x = normal(3, 5, 2)
    module = Layer(3, cell)
    with jax.enable_x64(True):
        p, x = jax.tree.map(np.float64, (weights(module, x), x))
        start = tuple(np.float64(normal(3, 3, seed=n)) for n in range(EQUATIONS[cell].carries))

        @jax.jit
        @jax.remat
        def outcome(p: Any, x: Any, start: Any) -> Any:
            return forward(module, p, x, LENGTHS, start, reverse)

        assert outcome(p, x, start)[0].dtype == np.float64
        check_grads(outcome, (p, x, start), 1, ["rev"], rtol=1e-6)


@pytest.mark.parametrize(
    ("cell", "pooling"),
    [("lstm", "last"), ("gru", "attention"), ("elman", "mean"), ("elman_relu", "attention")],
)
def test_padding_changes_no_bit_of_values_and_gradients_even_if_it_is_not_a_number(
    cell: str, pooling: str
) -> None:
    module = RNN(width=6, classes=3, layers=2, cell=cell, bidirectional=True, pooling=pooling)
    x = normal(3, 5, 4)

    @jax.jit
    def outcome(p: Any, x: Any) -> Any:
        logits, back = jax.vjp(lambda p, x: forward(module, p, x, LENGTHS), p, x)
        return logits, *back(jnp.cos(logits))

    p = weights(module, x)
    ours = outcome(p, x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(ours))
    for value in (100.0, np.nan, np.inf):
        same_bits(ours, outcome(p, np.where(BEYOND[..., None], value, x).astype(np.float32)))
    assert np.array_equal(np.any(ours[2], axis=-1), ~BEYOND)  # the input's gradient


def test_more_padding_changes_nothing() -> None:
    x = normal(3, 5, 4)
    p = weights(TWO, x)
    longer = np.concatenate([x, normal(3, 3, 4, seed=1)], axis=1)
    close(applied(TWO, p, longer, LENGTHS), applied(TWO, p, x, LENGTHS), 1e-6)


def test_lengths_that_are_whole_change_nothing() -> None:
    x = normal(3, 5, 4)
    module = dataclasses.replace(TWO, bidirectional=True)
    p = weights(module, x)
    close(applied(module, p, x), applied(module, p, x, np.full(3, 5)), 1e-6)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(CELLS), st.integers(1, 5))
def test_recurrence_continues_from_its_carry(cell: str, cut: int) -> None:
    x = normal(2, 6, 3)
    module = Recurrence(4, cell, layers=2)
    p = weights(module, x)
    states, last, _ = applied(module, p, x)
    first, _, carry = applied(module, p, x[:, :cut])
    second, last_of_both, _ = applied(module, p, x[:, cut:], carries=carry)
    close((np.concatenate([first, second], axis=1), last_of_both), (states, last), 1e-6)


# -- the classifier


def test_an_rnn_is_its_layers_and_a_head_on_the_last_state() -> None:
    x = normal(3, 5, 2, 2)  # images are sequences of rows
    p = weights(TWO, x)
    states, _ = looped("lstm", p["trunk"]["lstm_0"], x.reshape(3, 5, 4), LENGTHS, False)
    _, last = looped("lstm", p["trunk"]["lstm_1"], states, LENGTHS, False)
    close(applied(TWO, p, x, LENGTHS), last @ p["head"]["kernel"] + p["head"]["bias"])


def test_masked_softmax_is_scipys_where_the_mask_is_1_and_0_elsewhere() -> None:
    scores = normal(3, 4)
    mask = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    expected = np.zeros((3, 4), np.float32)
    expected[0] = softmax(scores[0])
    expected[1, [1, 3]] = softmax(scores[1, [1, 3]])
    np.testing.assert_allclose(masked_softmax(scores, mask), expected, rtol=1e-6)
    rough = masked_softmax(jnp.asarray(scores, jnp.bfloat16), mask)
    assert rough.dtype == jnp.float32 and not np.any(np.asarray(rough)[mask == 0])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_pooling_is_a_mean_within_the_length(pooling: str) -> None:
    module = RNN(width=6, classes=3, vocab=11, embedding=4, pooling=pooling)
    p = weights(module, tokens(3, 5))
    states, _ = looped(
        "lstm", p["trunk"]["lstm_0"], p["embedding"]["embedding"][tokens(3, 5)], LENGTHS, False
    )
    pooled = []
    for row, length in enumerate(LENGTHS):
        part = states[row, :length]
        share = np.full(length, 1 / length)
        if pooling == "attention":
            share = softmax(
                np.tanh(part @ p["pooling"]["kernel"] + p["pooling"]["bias"])
                @ p["score"]["kernel"][:, 0]
            )
        pooled.append(share @ part)
    expected = np.stack(pooled) @ p["head"]["kernel"] + p["head"]["bias"]
    close(applied(module, p, tokens(3, 5), LENGTHS), expected)


def test_the_forget_gate_alone_begins_open() -> None:
    p = nn.meta.unbox(jax.jit(lambda: TWO.init(KEY, normal(1, 5, 4)))())["params"]
    same_bits(
        p["trunk"]["lstm_1"]["bias"], np.array([[0] * 6, [1] * 6, [0] * 6, [0] * 6], np.float32)
    )


def test_an_rnn_has_as_many_parameters_as_by_hand() -> None:
    shapes = jax.eval_shape(lambda: RNN(128, 10, 2).init(KEY, normal(1, 8, 8)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 70_144 + 131_584 + 1_290


@pytest.mark.parametrize(
    "module",
    [TWO, LANGUAGE, GRIFFIN, dataclasses.replace(GRIFFIN, recurrence="lru"), DELTA],
    ids=repr,
)
def test_bfloat16_gives_float32_logits_near_those_of_float32(module: Any) -> None:
    x = normal(3, 5, 4) if module is TWO else tokens(3, 5)
    p = weights(module, x)
    exact = applied(module, p, x)
    rough = applied(dataclasses.replace(module, dtype="bfloat16"), p, x)
    assert rough.dtype == np.float32
    assert 0 < np.max(np.abs(rough - exact)) < 0.1 * np.max(np.abs(exact))


def test_the_carry_stays_float32_in_bfloat16() -> None:
    x = normal(2, 4, 3)
    module = LSTM(4)
    states, carry = applied(module, weights(module, x), x.astype(jnp.bfloat16))
    assert states.dtype == jnp.bfloat16 and [part.dtype for part in carry] == [np.float32] * 2


# -- language models


@pytest.mark.parametrize(
    "module", [LANGUAGE, GRIFFIN, dataclasses.replace(GRIFFIN, recurrence="lru"), DELTA], ids=repr
)
def test_logits_see_no_later_token(module: Any) -> None:
    module = dataclasses.replace(module, tie_embeddings=False)
    p = weights(module, tokens(1, 7))

    def logits(rows: Any) -> Any:  # the token at t has row t of the table to itself
        return forward(module, {**p, "tokens": {"embedding": rows}}, jnp.arange(7)[None])[0].sum(-1)

    jacobian = jax.jit(jax.jacrev(logits))(p["tokens"]["embedding"])  # [L, V, D]
    assert np.array_equal(np.any(jacobian, axis=-1)[:, :7], np.tri(7))


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("module", [LANGUAGE, GRIFFIN], ids=["rnn", "griffin"])
def test_logits_are_hidden_times_unembedding(module: Any, tie_embeddings: bool) -> None:
    module = dataclasses.replace(module, tie_embeddings=tie_embeddings)
    p = weights(module, tokens(2, 5))
    assert ("head" in p) != tie_embeddings

    def both(forward: Any) -> Any:
        return forward(tokens(2, 5)), forward.hidden(tokens(2, 5)), forward.unembedding()

    logits, hidden, matrix = jax.jit(lambda p: nn.apply(both, module)({"params": p}))(p)
    close(logits, hidden @ matrix)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_two_halves_are_the_whole_and_starting_rows_reset_their_carry(cell: str) -> None:
    module = dataclasses.replace(LANGUAGE, cell=cell)
    numbers = tokens(2, 8)
    variables = nn.meta.unbox(jax.jit(lambda: module.init(KEY, numbers, np.ones(2, np.int32)))())
    carry = variables["carry"]
    p = weights(module, numbers)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(carry))

    @jax.jit
    def run(carry: Any, numbers: Any, starts: Any) -> Any:
        return module.apply({"params": p, "carry": carry}, numbers, starts, mutable=["carry"])

    whole = applied(module, p, numbers)  # not mutable: from zeros
    start = np.array([1, 1])
    first, kept = run(carry, numbers[:, :4], start)
    second, _ = run(kept["carry"], numbers[:, 4:], np.array([0, 0]))
    close(np.concatenate([first, second], axis=1), whole, 1e-6)
    mixed, _ = run(kept["carry"], numbers[:, 4:], np.array([0, 1]))
    same_bits(mixed[0], second[0])
    close(mixed[1], applied(module, p, numbers[:, 4:])[1], 1e-6)
    assert jax.tree.structure(kept["carry"]) == jax.tree.structure(carry)
    of_carry = jax.grad(lambda c: run(c, numbers[:, 4:], np.array([0, 0]))[0].sum())(kept["carry"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_carry))  # truncated
    with pytest.raises(Refused, match="2 rows and the batch 1"):
        run(kept["carry"], numbers[:1], start[:1])


# -- linear recurrences


def sequential(decay: Array, x: Array) -> Any:
    def step(h: Any, now: Any) -> Any:
        h = now[0] * h + now[1]
        return h, h

    _, states = jax.lax.scan(
        step, jnp.zeros_like(x[:, 0]), (jnp.swapaxes(decay, 0, 1), jnp.swapaxes(x, 0, 1))
    )
    return jnp.swapaxes(states, 0, 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 17), st.integers(1, 3), st.booleans())
def test_associative_is_sequential_with_its_gradients(
    batch: int, length: int, width: int, of_complex: bool
) -> None:
    decay = expit(normal(batch, length, width))
    x = normal(batch, length, width, seed=1)
    if of_complex:
        rotation = np.exp(1j * x).astype(np.complex64)
        x = x + 1j * decay
        decay = decay * rotation

    def outcome(recurrence: Any) -> Any:
        states, back = jax.vjp(recurrence, decay, x)
        return states, back(jnp.sin(states))

    ours, expected = jax.jit(lambda: (outcome(associative), outcome(sequential)))()
    close(ours, expected)


def test_lru_is_the_loop_over_complex_numbers() -> None:
    x = normal(2, 6, 3)
    module = LRU(4)
    p = weights(module, x)
    decay = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    b = p["input"][0] + 1j * p["input"][1]
    c = p["output"][0] + 1j * p["output"][1]
    y = np.zeros((2, 6, 3))
    for row in range(2):
        h = np.zeros(4, complex)
        for t in range(6):
            h = decay * h + np.exp(p["gamma"]) * (x[row, t] @ b)
            y[row, t] = (h @ c).real + p["skip"] * x[row, t]
    close(applied(module, p, x), y)


def test_an_lru_begins_in_its_ring_and_normalized() -> None:
    p = nn.meta.unbox(jax.jit(lambda: LRU(500).init(KEY, normal(1, 2, 3)))())["params"]
    size = np.exp(-np.exp(p["nu"]))
    assert 0.9 <= size.min() < 0.91 and 0.99 < size.max() <= 0.999
    close(np.exp(p["gamma"]), np.sqrt(1 - size**2), 1e-4)
    assert np.exp(p["theta"]).min() > 0 and np.exp(p["theta"]).max() <= 2 * np.pi


def test_rg_lru_is_the_loop_over_its_equations() -> None:
    x = normal(2, 6, 4)
    module = RGLRU(heads=2)
    p = weights(module, x)
    y = np.zeros((2, 6, 4))
    for row in range(2):
        h = np.zeros(4)
        for t in range(6):
            parts = x[row, t].reshape(2, 2)
            r, i = (
                expit(np.einsum("hk,hkj->hj", parts, p["gates"][n]) + p["bias"][n]).reshape(4)
                for n in range(2)
            )
            a = expit(p["lambda"]) ** (8 * r)
            h = a * h + np.sqrt(1 - a**2) * (i * x[row, t])
            y[row, t] = h
    close(applied(module, p, x), y)
    with jax.enable_x64(True):
        p, x = jax.tree.map(np.float64, (p, x))
        check_grads(jax.jit(lambda p, x: forward(module, p, x)), (p, x), 1, ["rev"], rtol=1e-5)


def test_an_rg_lru_begins_slow() -> None:
    p = nn.meta.unbox(jax.jit(lambda: RGLRU().init(KEY, normal(1, 2, 500)))())["params"]
    decay = expit(np.float64(p["lambda"])) ** 8
    assert 0.9 <= decay.min() < 0.91 and 0.99 < decay.max() <= 0.9991


def test_a_causal_convolution_is_numpys() -> None:
    x = normal(2, 6, 3)
    module = CausalConv(4)
    p = weights(module, x)
    expected = [
        [np.convolve(row[:, n], p["kernel"][:, n])[:6] + p["bias"][n] for n in range(3)]
        for row in x
    ]
    close(applied(module, p, x), np.moveaxis(np.array(expected), 1, 2))


# -- over meshes, and refusals


MODELS = {
    "lstm": (RNN(16, 8, 2, bidirectional=True, pooling="attention"), normal(16, 5, 8)),
    "gru": (RNN(16, 8, 2, cell="gru", vocab=16), np.arange(80, dtype=np.int32).reshape(16, 5) % 16),
    "language": (
        RNNLanguageModel(vocab=16, width=16),
        np.arange(80, dtype=np.int32).reshape(16, 5) % 16,
    ),
    "griffin": (
        Griffin(16, depth=2, width=16, heads=8, kv_heads=8, window=3, attention_every=2),
        np.arange(80, dtype=np.int32).reshape(16, 5) % 16,
    ),
}


@functools.cache
def gradient(name: str, mesh: Mesh | None) -> Any:
    """Of the mean square of the logits, over a mesh, or on one device."""
    module, x = MODELS[name]
    one = Mesh(data=1).build(jax.devices()[:1])
    devices = one if mesh is None else mesh.build()
    named = {} if module.__class__ is not RNN else {"lengths": np.arange(16) % 5 + 1}
    with activate(devices):
        boxed = jax.eval_shape(lambda: module.init(KEY, x, **named))["params"]
    shardings = parameter_shardings(boxed, devices)
    p = jax.device_put(weights(module, x, **named), shardings)
    with activate(devices):
        rows = jax.device_put(x, jax.NamedSharding(devices, jax.P(("data", "fsdp"))))

        def loss(p: Any, x: Any) -> Any:
            return jnp.mean(jnp.square(forward(module, p, x, **named)))

        return jax.tree.map(np.array, jax.jit(jax.grad(loss), out_shardings=shardings)(p, rows))


OVER = [
    *((name, Mesh(data=2, fsdp=2, tensor=2)) for name in MODELS),
    ("gru", Mesh(data=8)),
    ("gru", Mesh(fsdp=8, data=1)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), OVER, ids=str)
def test_gradients_over_a_mesh_are_those_of_one_device(name: str, mesh: Mesh) -> None:
    ours = gradient(name, mesh)
    expected = gradient(name, None)
    for (path, leaf), right in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        assert np.linalg.norm(leaf - right) <= 1e-5 * np.linalg.norm(right), path


BAD: dict[str, tuple[nn.Module, Array]] = {
    "width 0": (RNN(0, 3), normal(1, 2, 2)),
    "layers 0": (RNN(4, 3, layers=0), normal(1, 2, 2)),
    "dropout 1.5": (RNN(4, 3, dropout=1.5), normal(1, 2, 2)),
    "no vocab": (RNN(4, 3), normal(2, 3)),
    "pooling 'max'": (RNN(4, 3, pooling="max"), normal(1, 2, 2)),  # type: ignore[arg-type]
    "cell 'lstn' gru": (RNN(4, 3, cell="lstn"), normal(1, 2, 2)),  # type: ignore[arg-type]
    "dtype 'int8'": (RNN(4, 3, dtype="int8"), normal(1, 2, 2)),  # type: ignore[arg-type]
    "width 8 heads 3": (dataclasses.replace(GRIFFIN, heads=3), tokens(1, 2)),
    "depth 0": (dataclasses.replace(GRIFFIN, depth=0), tokens(1, 2)),
    "recurrence 'gru'": (dataclasses.replace(GRIFFIN, recurrence="gru"), tokens(1, 2)),
    "smallest 0.9 largest 0.8": (LRU(4, largest=0.8), normal(1, 2, 2)),
}


@pytest.mark.parametrize("words", BAD)
def test_fields_that_do_not_fit_are_refused_with_their_numbers(words: str) -> None:
    module, x = BAD[words]
    with pytest.raises(Refused) as refused:
        jax.eval_shape(lambda: module.init(KEY, x))
    assert all(word in str(refused.value) for word in words.split())
