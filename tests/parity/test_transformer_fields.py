"""Fields of Transformers that Llama 3.1, Qwen, Gemma 2 and T5 need, against values by hand."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.config.fingerprint import without_added
from jaxbig.config.serialize import to_json
from jaxbig.errors import Refused
from jaxbig.models.language_model import Decoder, EncoderDecoder
from jaxbig.models.layers.attention import Attention, rotary
from jaxbig.models.layers.basic import RMSNorm
from jaxbig.models.layers.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling

Array = np.ndarray
KEY = jax.random.key(0)
SMALL = {"vocab": 11, "depth": 2, "width": 16, "heads": 4}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(module: nn.Module, *inputs: Any) -> Any:
    """Random numbers in the shapes of the module's parameters."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(KEY, *inputs)))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(
        tree, [normal(*leaf.shape, seed=100 + number) for number, leaf in enumerate(leaves)]
    )


def run(module: nn.Module, p: Any, *inputs: Any) -> Array:
    return np.asarray(jax.jit(lambda p: module.apply({"params": p}, *inputs))(p))


def rms(x: Array) -> Array:
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6)


def attention_by_hand(p: Any, x: Array, fields: dict[str, Any]) -> Array:
    """Causal attention of [B, T, D], a head at a time, by the formulas of the papers."""
    out = np.zeros(x.shape)
    width = p["query"]["kernel"].shape[2]
    repeats = p["query"]["kernel"].shape[1] // p["key_value"]["kernel"].shape[2]
    for head in range(p["query"]["kernel"].shape[1]):
        group = head // repeats
        query = x @ p["query"]["kernel"][:, head]
        key, value = (x @ p["key_value"]["kernel"][:, which, group] for which in (0, 1))
        if "bias" in p["query"]:
            query = query + p["query"]["bias"][head]
            key = key + p["key_value"]["bias"][0, group]
            value = value + p["key_value"]["bias"][1, group]
        if "query_norm" in p:
            query = rms(query) * p["query_norm"]["scale"]
            key = rms(key) * p["key_norm"]["scale"]
        scores = query @ np.swapaxes(key, 1, 2) * fields.get("attention_scale", width**-0.5)
        if cap := fields.get("attention_soft_cap"):
            scores = cap * np.tanh(scores / cap)
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = out + shares / shares.sum(axis=-1, keepdims=True) @ value @ p["out"]["kernel"][head]
    return out + p["out"].get("bias", 0)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"head_width": 5}, {"query/kernel": (12, 4, 5), "out/kernel": (4, 5, 12)}),
        ({"qkv_bias": True}, {"query/bias": (4, 3), "key_value/bias": (2, 2, 3)}),
        ({"bias": True, "qkv_bias": False}, {"out/bias": (12,)}),
        ({"qk_norm": "rms"}, {"query_norm/scale": (3,), "key_norm/scale": (3,)}),
        ({"attention_scale": 1.0}, {}),
        ({"attention_soft_cap": 2.0}, {}),
    ],
    ids=str,
)
def test_each_field_of_attention_is_its_formula(
    fields: dict[str, Any], changed: dict[str, tuple[int, ...]]
) -> None:
    x = normal(2, 6, 12)
    module = Attention(heads=4, kv_heads=2, causal=True, **fields)
    p = weights(module, x)
    shapes = {f"{a}/{b}": leaf.shape for a, leaves in p.items() for b, leaf in leaves.items()}
    usual = {
        "query/kernel": (12, 4, 3),
        "out/kernel": (4, 3, 12),
        "key_value/kernel": (12, 2, 2, 3),
    }
    if "head_width" in fields:
        usual["key_value/kernel"] = (12, 2, 2, 5)
    assert shapes == usual | changed
    np.testing.assert_allclose(run(module, p, x), attention_by_hand(p, x, fields), atol=2e-4)


def turns(scaling: RotaryScaling, base: float, width: int = 16) -> Array:
    """The angle a position of each pair of a head's vector, as `rotary` turns it."""
    x = np.zeros((1, 2, 1, width), np.float32)
    x[..., : width // 2] = 1
    y = np.asarray(rotary(x, base=base, scaling=scaling))[0, 1, 0]
    return np.arctan2(y[width // 2 :], y[: width // 2])


def test_linear_scaling_divides_every_position() -> None:
    expected = 100.0 ** (-np.arange(8) / 8) / 4
    np.testing.assert_allclose(turns(LinearScaling(factor=4.0), 100.0), expected, rtol=1e-5)


def test_llama_3_scaling_slows_the_slow_frequencies_alone() -> None:
    scaling = Llama3Scaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=64
    )
    frequencies = 100.0 ** (-np.arange(8) / 8)
    expected = []
    for frequency in frequencies:  # as transformers does it, by lengths of waves
        length = 2 * math.pi / frequency
        smooth = (64 / length - 1.0) / (4.0 - 1.0)
        if length < 64 / 4.0:
            expected.append(frequency)
        elif length > 64 / 1.0:
            expected.append(frequency / 8)
        else:
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    found = turns(scaling, 100.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    ratios = found / frequencies
    assert ratios[0] == pytest.approx(1) and ratios[-1] == pytest.approx(1 / 8)
    assert ((ratios > 0.2) & (ratios < 0.9)).any(), "none is between"


def test_rms_plus_one_is_rms_with_a_scale_one_larger() -> None:
    x = normal(3, 8)
    scale = normal(8, seed=1)
    np.testing.assert_array_equal(
        run(RMSNorm(plus_one=True), {"scale": scale}, x), run(RMSNorm(), {"scale": 1 + scale}, x)
    )
    start = nn.meta.unbox(RMSNorm(plus_one=True).init(KEY, x))["params"]
    np.testing.assert_array_equal(start["scale"], np.zeros(8))


def test_sandwich_norm_normalizes_what_each_branch_adds() -> None:
    x = np.arange(10, dtype=np.int32).reshape(2, 5)
    model = Decoder(**SMALL, sandwich_norm=True)
    p = weights(model, x)
    for block in ("block_0", "block_1"):
        for name in ("attention_out_norm", "mlp_out_norm"):
            p["blocks"][block][name] = {"scale": np.zeros(16, np.float32)}
    hidden = jax.jit(lambda p: model.apply({"params": p}, x, method="hidden"))
    expected = rms(p["tokens"]["embedding"][x]) * p["blocks"]["norm"]["scale"]
    np.testing.assert_allclose(hidden(p), expected, atol=1e-5)
    # each adds a vector of its norm's length, however large its products are
    p["blocks"]["block_1"]["mlp_out_norm"] = {"scale": np.ones(16, np.float32)}
    once = hidden(p)
    p["blocks"]["block_1"]["down"] = {"kernel": 1000 * p["blocks"]["block_1"]["down"]["kernel"]}
    np.testing.assert_allclose(hidden(p), once, atol=1e-3)
    assert np.abs(once - expected).max() > 0.1


def test_mlp_bias_alone_is_on_the_mlp() -> None:
    x = np.zeros((1, 4), np.int32)
    for chunks in (0, 2):
        model = Decoder(**SMALL, mlp_bias=True, mlp_chunks=chunks)
        block = weights(model, x)["blocks"]["block_0"]
        assert {name for name, leaves in block.items() if "bias" in leaves} == {"up", "down"}


def test_logits_are_capped_by_their_tanh() -> None:
    x = np.arange(10, dtype=np.int32).reshape(2, 5)
    model = Decoder(**(SMALL | {"depth": 1}))
    p = weights(model, x)
    logits = run(model, p, x)
    capped = run(model.clone(logit_soft_cap=1.5), p, x)
    np.testing.assert_allclose(capped, 1.5 * np.tanh(logits / 1.5), atol=1e-6)
    assert np.abs(logits).max() > 2


def test_scaled_logits_are_over_the_root_of_the_width() -> None:
    x = np.arange(1, 9, dtype=np.int32).reshape(2, 4)
    model = EncoderDecoder(
        **(SMALL | {"depth": 1}), positions="relative", attention_scale=1.0, head_width=3
    )
    p = weights(model, x, x)
    scaled = run(model.clone(scale_logits=True), p, x, x)
    np.testing.assert_allclose(scaled, run(model, p, x, x) / 4, rtol=1e-5, atol=1e-5)


def stacked(blocks: dict[str, Any], depth: int) -> dict[str, Any]:
    """Parameters of unrolled blocks as those of scanned ones."""
    layers = [blocks[f"block_{layer}"] for layer in range(depth)]
    block = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return {"block": block, "norm": blocks["norm"]}


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_a_window_pattern_is_the_same_scanned_and_unrolled(remat: str) -> None:
    x = np.arange(8, dtype=np.int32)[None]
    model = Decoder(
        **(SMALL | {"depth": 3}), window=2, window_pattern=(True, True, False), remat=remat
    )
    p = jax.tree.map(lambda leaf: leaf / 4, weights(model, x))

    def value_and_gradient(model: Decoder, p: Any) -> Any:
        def total(p: Any) -> Any:
            logits = model.apply({"params": p}, x)
            return jnp.sum(logits * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)), logits

        (_, logits), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(p)
        return logits, gradient

    logits, gradient = value_and_gradient(model, p)
    by_scan = value_and_gradient(
        model.clone(scan=True), p | {"blocks": stacked(p["blocks"], depth=3)}
    )
    unrolled = logits, gradient | {"blocks": stacked(gradient["blocks"], depth=3)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
        by_scan,
        unrolled,
    )


def test_the_window_pattern_says_which_blocks_see_all() -> None:
    x = np.arange(8, dtype=np.int32)[None]
    model = Decoder(**SMALL, window=2)
    p = weights(model, x)
    first, second, both, neither = (
        run(model.clone(window_pattern=pattern), p, x)
        for pattern in ((False, True), (True, False), (False,), (True,))
    )
    np.testing.assert_array_equal(both, run(model.clone(window=None), p, x))
    results = [first, second, both, neither]
    for number, one in enumerate(results):
        assert all(np.abs(one - other).max() > 1e-3 for other in results[:number])


def test_the_fields_at_their_defaults_do_not_change_the_identity_of_older_runs() -> None:
    for model in (Decoder(**SMALL), EncoderDecoder(**SMALL)):
        fields = set(without_added(to_json(model)))
        assert not fields & {
            "attention_scale",
            "attention_soft_cap",
            "expert_dispatch",
            "head_width",
            "logit_soft_cap",
            "mlp_bias",
            "qk_norm",
            "qkv_bias",
            "rotary_scaling",
            "sandwich_norm",
            "scale_logits",
            "window_pattern",
        }
        assert "heads" in fields
    changed = Decoder(**SMALL, qk_norm=True, rotary_scaling=LinearScaling(factor=2.0))
    assert {"qk_norm", "rotary_scaling"} <= set(without_added(to_json(changed)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sandwich_norm": True, "pre_norm": False}, "sandwich-norm needs pre_norm"),
        ({"window_pattern": (True, False)}, "window-pattern .* give a window too"),
        ({"window": 3, "window_pattern": ()}, "window-pattern is empty"),
        (
            {"rotary_scaling": LinearScaling(factor=2.0), "positions": "learned"},
            "rotary-scaling LinearScaling: .* positions rotary, not learned",
        ),
        (
            {"rotary_scaling": Llama3Scaling(factor=2.0, low_frequency_factor=9.0)},
            "low-frequency-factor 9.0: it must be below its high_frequency_factor, 4.0",
        ),
        ({"rotary_scaling": LinearScaling(factor=0.5)}, "factor 0.5: it must be 1 or more"),
        ({"head_width": 5}, "head_width 5: rotary positions need an even one"),
        ({"attention_soft_cap": 0.0}, "soft-cap 0.0: it must be above 0"),
        ({"attention_soft_cap": 9.0, "attention_kernel": "fused"}, "'fused' needs .* no soft cap"),
    ],
    ids=str,
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    model = Decoder(**SMALL, **fields)
    with pytest.raises(Refused, match=words):
        jax.eval_shape(lambda: model.init(KEY, np.zeros((1, 8), np.int32)))
