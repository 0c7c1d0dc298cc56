"""Attention of recurrent nets against loops over its equations, and translation with it."""

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import parameter_shardings
from jaxbig.errors import Refused
from jaxbig.models.rnn_seq2seq import Additive, Multiplicative, RNNEncoderDecoder

Array = np.ndarray
KEY = jax.random.key(0)
LENGTHS = np.array([5, 1, 3], np.int32)
INSIDE = np.arange(5) < LENGTHS[:, None]  # [B, S]
MODEL = RNNEncoderDecoder(vocab=11, target_vocab=7, width=6)
KINDS = {
    "additive": Additive(4),
    "general": Multiplicative(4),
    "dot": Multiplicative(4, general=False),
}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(*shape: int, vocab: int = 7, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, vocab, shape, dtype=np.int32)


SOURCE = tokens(3, 5, vocab=11)
TARGET = tokens(3, 4, seed=1)


def weights(module: nn.Module, *inputs: Any) -> Any:
    """Numbers in the shapes of the module's parameters, so that no bias is 0."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(KEY, *inputs)))["params"]
    seeds = itertools.count(100)
    return jax.tree.map(
        lambda leaf: np.float32(0.4) * normal(*leaf.shape, seed=next(seeds)), shapes
    )


def applied(module: nn.Module, p: Any, *inputs: Any) -> Any:
    return jax.jit(lambda p, inputs: module.apply({"params": p}, *inputs))(p, inputs)


def close(ours: Any, expected: Any, tolerance: float = 1e-5) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        ours,
        expected,
    )


def same_bits(ours: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, expected)


def scores(kind: str, p: Any, query: Array, memory: Array) -> Array:
    """Of one query [W] with one row's memory [S, M], by the papers."""
    if kind == "dot":
        return memory @ query
    if kind == "general":
        return memory @ p["keys"]["kernel"] @ query
    return (
        np.tanh(query @ p["query"] + memory @ p["keys"]["kernel"] + p["keys"]["bias"])
        @ p["score"][:, 0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_its_equations_and_exactly_zero_on_padding(kind: str) -> None:
    query = normal(3, 4)
    memory = normal(3, 5, 4 if kind == "dot" else 3, seed=1)
    module = KINDS[kind]
    p = weights(module, query, memory) if kind != "dot" else {}
    context, share = applied(module, p, query, memory, INSIDE)
    assert np.array_equal(share > 0, INSIDE)
    close(share.sum(axis=1), np.ones(3), 1e-6)
    for row, length in enumerate(LENGTHS):
        expected = softmax(scores(kind, p, query[row], memory[row, :length]))
        close(share[row, :length], expected)
        close(context[row], expected @ memory[row, :length])


def test_dot_attention_of_unequal_widths_is_refused() -> None:
    with pytest.raises(Refused, match="query of 4 and a memory of 3"):
        jax.eval_shape(lambda: KINDS["dot"].init(KEY, normal(3, 4), normal(3, 5, 3)))
    with pytest.raises(Refused, match="attention 'max'"):
        jax.eval_shape(
            lambda: dataclasses.replace(MODEL, attention="max").init(KEY, SOURCE, TARGET)
        )  # type: ignore[arg-type]


def test_the_decoder_is_the_loop_over_its_equations() -> None:
    p = weights(MODEL, SOURCE, TARGET)

    def parts(model: Any) -> Any:
        memory = model.encode(SOURCE, LENGTHS)
        return memory, model.decode(TARGET, memory)

    (memory, logits), kept = jax.jit(
        lambda p: nn.apply(parts, MODEL, mutable=["intermediates"])({"params": p})
    )(p)
    memory, logits = jax.tree.map(np.asarray, (memory, logits))
    share = np.asarray(kept["intermediates"]["attention"][0])
    d = p["decoder"]
    cell = p["decoder"]["gru"]
    for row, length in enumerate(LENGTHS):
        states = memory["states"][row, :length]
        hidden = np.tanh(memory["last"][row] @ d["start"]["kernel"] + d["start"]["bias"])
        for t in range(4):
            x = p["target_tokens"]["embedding"][TARGET[row, t]]
            expected = softmax(scores("additive", d["attention"], hidden, states))
            close(share[row, t, :length], expected)
            assert not np.any(share[row, t, length:])
            context = expected @ states
            product = np.einsum("d,dgw->gw", x, cell["input"]["kernel"]) + cell["input"]["bias"]
            product += np.einsum("m,mgw->gw", context, d["context"])
            again = np.einsum("v,vgw->gw", hidden, cell["recurrent"]) + cell["bias"]
            r, u = expit(product[:2] + again[:2])
            hidden = (1 - u) * np.tanh(product[2] + r * again[2]) + u * hidden
            y = np.concatenate([hidden, context, x]) @ p["readout"]["kernel"] + p["readout"]["bias"]
            close(logits[row, t], np.tanh(y) @ p["head"]["kernel"] + p["head"]["bias"])


MODELS = {
    "gru": MODEL,
    "lstm": dataclasses.replace(MODEL, cell="lstm", attention="general", layers=2),
    "elman": dataclasses.replace(MODEL, cell="elman", attention="dot", bidirectional=False),
}


@pytest.mark.parametrize("module", MODELS.values(), ids=MODELS)
def test_decoding_token_by_token_gives_the_logits_of_all_at_once(module: RNNEncoderDecoder) -> None:
    p = weights(module, SOURCE, TARGET)
    whole = applied(module, p, SOURCE, TARGET, LENGTHS)
    memory = jax.jit(lambda p: module.apply({"params": p}, SOURCE, LENGTHS, method="encode"))(p)

    @jax.jit
    def decode(cache: Any, now: Any) -> Any:
        return module.apply(
            {"params": p, **cache}, now, memory, cache=9, method="decode", mutable=["cache"]
        )

    cache = {}
    logits = []
    for t in range(4):
        now, cache = decode(cache, TARGET[:, t : t + 1])
        logits.append(now)
    close(np.concatenate(logits, axis=1), whole)


@pytest.mark.parametrize("module", MODELS.values(), ids=MODELS)
def test_padding_of_the_source_and_later_targets_change_no_bit(module: RNNEncoderDecoder) -> None:
    p = weights(module, SOURCE, TARGET)

    @jax.jit
    def outcome(p: Any, source: Any, target: Any) -> Any:
        logits, back = jax.vjp(lambda p: module.apply({"params": p}, source, target, LENGTHS), p)
        return logits, back(jnp.cos(logits))[0]

    logits, gradient = outcome(p, SOURCE, TARGET)
    same_bits((logits, gradient), outcome(p, np.where(INSIDE, SOURCE, 10), TARGET))
    later = np.where(np.arange(4) < 2, TARGET, (TARGET + 1) % 7)
    changed = np.any(np.asarray(outcome(p, SOURCE, later)[0]) != logits, axis=-1)
    assert np.array_equal(changed, np.broadcast_to(np.arange(4) >= 2, (3, 4)))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_gives_float32_logits_near_those_of_float32() -> None:
    p = weights(MODEL, SOURCE, TARGET)
    exact = applied(MODEL, p, SOURCE, TARGET, LENGTHS)
    rough = applied(dataclasses.replace(MODEL, dtype="bfloat16"), p, SOURCE, TARGET, LENGTHS)
    assert rough.dtype == np.float32
    assert 0 < np.max(np.abs(rough - exact)) < 0.1 * np.max(np.abs(exact))


def gradient(mesh: jax.sharding.Mesh) -> Any:
    module = RNNEncoderDecoder(16, 16, 16, attention="additive")
    source = tokens(16, 5)
    target = tokens(16, 4)
    with activate(mesh):
        boxed = jax.eval_shape(lambda: module.init(KEY, source, target))["params"]
    shardings = parameter_shardings(boxed, mesh)
    with activate(mesh):
        init = jax.jit(
            lambda: nn.meta.unbox(module.init(KEY, source, target)["params"]),
            out_shardings=shardings,
        )
        rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))

        def loss(p: Any, source: Any, target: Any) -> Any:
            return jnp.mean(
                jnp.square(module.apply({"params": p}, source, target, np.arange(16) % 5 + 1))
            )

        step = jax.jit(jax.grad(loss), out_shardings=shardings)
        return jax.tree.map(np.array, step(init(), *jax.device_put((source, target), rows)))


@pytest.mark.slow
def test_gradients_over_meshes_are_those_of_one_device() -> None:
    one = Mesh(data=1).build(jax.devices()[:1])
    expected = gradient(one)
    for mesh in (Mesh(data=8), Mesh(fsdp=8, data=1), Mesh(data=2, fsdp=2, tensor=2)):
        ours = gradient(mesh.build())
        for (path, leaf), right in zip(
            jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True
        ):
            assert np.linalg.norm(leaf - right) <= 1e-5 * np.linalg.norm(right), (mesh, path)
