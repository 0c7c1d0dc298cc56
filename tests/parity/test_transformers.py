"""Attention and Transformers against torch and NumPy, and what must hold exactly."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from support.compiling import fully

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.cost.flops import count_flops
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.errors import Refused
from jaxbig.models.base import Remat
from jaxbig.models.language_model import Decoder, Encoder, EncoderDecoder
from jaxbig.models.layers.attention import Attention, RelativePositions, attend, rotary, sinusoidal
from jaxbig.models.layers.attention_mask import from_lengths
from jaxbig.models.layers.basic import LayerNorm
from jaxbig.models.layers.rotary_scaling import LinearScaling
from jaxbig.models.vit import ViT

Array = np.ndarray
KEY = jax.random.key(0)
GPT2 = {
    "norm": "layer",
    "epsilon": 1e-5,
    "bias": True,
    "positions": "learned",
    "tie_embeddings": True,
}
LLAMA = {"activation": "swiglu", "epsilon": 1e-5}
GEMMA2 = {
    "kv_heads": 2,
    "head_width": 6,
    "activation": "geglu",
    "norm": "rms_plus_one",
    "sandwich_norm": True,
    "qk_norm": True,  # Gemma 3's
    "window": 3,
    "window_pattern": (True, False),
    "attention_scale": 0.3,
    "attention_soft_cap": 2.0,
    "logit_soft_cap": 3.0,
    "rotary_scaling": LinearScaling(factor=2.0),
}
SMALL = {"vocab": 11, "depth": 2, "width": 16, "heads": 4}
DECODERS = {
    "as it stands": Decoder(**SMALL),
    "gpt-2": Decoder(**SMALL, **GPT2, max_length=16),
    "llama, grouped": Decoder(**SMALL, **LLAMA, kv_heads=2),
    "relative": Decoder(**SMALL, positions="relative", activation="geglu"),
    "sinusoidal, windowed": Decoder(**SMALL, positions="sinusoidal", window=3, pre_norm=False),
    "no positions": Decoder(**SMALL, positions="none", scale_embedding=True),
    "gemma 2": Decoder(**SMALL, **GEMMA2),
}
SLOW = pytest.mark.slow
EACH = pytest.mark.parametrize("model", DECODERS.values(), ids=DECODERS)
BERT = Encoder(**SMALL, types=2, max_length=16)
TRANSLATOR = EncoderDecoder(**SMALL)
T5 = EncoderDecoder(**SMALL, positions="relative", norm="rms", pre_norm=True, bias=False)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(*shape: int, seed: int = 0, vocab: int = 11) -> Array:
    return np.random.default_rng(seed).integers(1, vocab, shape, dtype=np.int32)


def weights(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    """Numbers in the shapes of the module's parameters, so that no bias is 0 and no scale 1."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(KEY, *inputs, **named)))["params"]
    seeds = itertools.count(100)
    return jax.tree.map(
        lambda leaf: np.float32(0.4) * normal(*leaf.shape, seed=next(seeds)), shapes
    )


def run(module: nn.Module, p: Any, *inputs: Any, **named: Any) -> Any:
    return jax.jit(lambda p, inputs: module.apply({"params": p}, *inputs, **named))(p, inputs)


def value_and_gradient(
    module: nn.Module, p: Any, *inputs: Any, mask: Any = 1.0, **named: Any
) -> Any:
    """The outputs, and the gradient of a sum of all outputs, each times a number of its own."""

    def total(p: Any) -> Any:
        y = module.apply({"params": p}, *inputs, **named) * mask
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    (_, y), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(p)
    return y, gradient


def close(ours: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Within the tolerance, relative to the largest number of each array."""

    def compare(a: Any, b: Any) -> None:
        a = np.asarray(a)
        b = np.asarray(b)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1e-3)
        )

    jax.tree.map(compare, ours, expected)


# -- parts


def test_rotary_turns_pairs_by_angles_and_scores_depend_on_the_distance_alone() -> None:
    x = normal(1, 5, 2, 6)
    angle = np.arange(5)[:, None] * 10_000.0 ** (-np.arange(3) / 3)
    turned = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angle)[None, :, None]
    close(rotary(x), np.concatenate([turned.real, turned.imag], axis=-1))
    q = normal(1, 1, 1, 8)
    k = normal(1, 1, 1, 8, seed=1)
    scores = [
        float(jnp.sum(rotary(q, jnp.array([[a]])) * rotary(k, jnp.array([[b]]))))
        for a, b in ((9, 4), (5, 0), (105, 100))
    ]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-4)


def test_sinusoidal_positions_are_the_papers() -> None:
    y = np.asarray(sinusoidal(jnp.array([3]), 8))[0]
    for i in range(4):
        assert y[i] == pytest.approx(math.sin(3 / 10_000 ** (2 * i / 8)), abs=1e-6)
        assert y[4 + i] == pytest.approx(math.cos(3 / 10_000 ** (2 * i / 8)), abs=1e-6)


def t5_bucket(distance: int, causal: bool, buckets: int = 32, farthest: int = 128) -> int:
    """The bucket of a key `distance` before its query: near ones each, far ones by logarithm."""
    first = 0
    if not causal:
        buckets //= 2
        first = buckets if distance < 0 else 0
        distance = abs(distance)
    distance = max(distance, 0)
    if distance < buckets // 2:
        return first + distance
    share = math.log(distance / (buckets // 2)) / math.log(farthest / (buckets // 2))
    return first + min(buckets // 2 + int(share * (buckets - buckets // 2) + 1e-6), buckets - 1)


@pytest.mark.parametrize("causal", [True, False])
def test_relative_positions_look_up_t5s_bucket_of_each_distance(causal: bool) -> None:
    module = RelativePositions(2, causal)
    keys = jnp.arange(200)
    table = normal(32, 2)
    found = run(module, {"table": {"embedding": table}}, jnp.array([0, 150]), keys)[0]
    for row, query in enumerate((0, 150)):
        expected = [table[t5_bucket(query - key, causal)] for key in range(200)]
        np.testing.assert_array_equal(found[:, row].T, expected)


def test_layer_norm_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    x = normal(3, 5, 8)
    scale = normal(8, seed=1)
    bias = normal(8, seed=2)

    def ours(p: Any, x: Any) -> Any:
        return (LayerNorm(1e-5).apply({"params": p}, x) * jnp.cos(x)).sum()

    value, (by_p, by_x) = jax.jit(jax.value_and_grad(ours, (0, 1)))(
        {"scale": scale, "bias": bias}, x
    )
    norm = torch.nn.LayerNorm(8, eps=1e-5)
    norm.weight.data = torch.tensor(scale)
    norm.bias.data = torch.tensor(bias)
    there = torch.tensor(x, requires_grad=True)
    total = (norm(there) * torch.cos(torch.tensor(x))).sum() + (
        norm(torch.tensor(x)).detach() * torch.cos(there)
    ).sum()
    total.backward()
    close(value, float(total.detach()) / 2)
    close((by_p["scale"], by_p["bias"], by_x), (norm.weight.grad, norm.bias.grad, there.grad))


def to_torch(torch: Any, p: Any, width: int) -> dict[str, Any]:
    """The parameters of an `Attention` as torch.nn.MultiheadAttention names them."""
    query = p["query"]
    joint = p["key_value"]
    kernels = [query["kernel"], joint["kernel"][:, 0], joint["kernel"][:, 1]]  # [D, H, K] each
    biases = [query["bias"], joint["bias"][0], joint["bias"][1]]
    numbers = {
        "in_proj_weight": np.concatenate([kernel.reshape(width, width).T for kernel in kernels]),
        "in_proj_bias": np.concatenate([bias.reshape(-1) for bias in biases]),
        "out_proj.weight": p["out"]["kernel"].reshape(width, width).T,
        "out_proj.bias": p["out"]["bias"],
    }
    return {name: torch.tensor(np.array(value)) for name, value in numbers.items()}


@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_its_gradients_are_torchs(causal: bool) -> None:
    torch = pytest.importorskip("torch")
    width = 12
    heads = 3
    length = 7
    x = normal(2, length, width)
    lengths = np.array([7, 4])
    module = Attention(heads=heads, causal=causal, bias=True)
    segments = from_lengths(jnp.array(lengths), length)
    p = weights(module, x)
    mask = np.asarray(segments, np.float32)[..., None]

    def total(p: Any, x: Any) -> Any:
        return jnp.sum((module.apply({"params": p}, x, None, segments) * mask) ** 2)

    value, (by_p, by_x) = jax.jit(jax.value_and_grad(total, (0, 1)))(p, x)
    there = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    there.load_state_dict(to_torch(torch, p, width))
    y = torch.tensor(x, requires_grad=True)
    later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1) if causal else None
    padding = torch.tensor(np.arange(length)[None] >= lengths[:, None])
    out, _ = there(y, y, y, key_padding_mask=padding, attn_mask=later, need_weights=False)
    expected = ((out * torch.tensor(mask)) ** 2).sum()
    expected.backward()
    close(value, expected.detach())
    close(by_x, y.grad)
    found = to_torch(torch, jax.tree.map(np.asarray, by_p), width)
    for name, each in there.named_parameters():
        # torch's softmax is blind to the keys' bias; what comes there is rounding
        close(found[name], each.grad, 1e-5 if name != "in_proj_bias" else 3e-5)


def test_the_translation_transformer_and_its_gradients_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    width = 16
    x = tokens(2, 6)
    y = tokens(2, 5, seed=1)
    lengths = np.array([6, 4], np.int32)
    model = EncoderDecoder(**SMALL, epsilon=1e-5)
    p = weights(model, x, y)
    there = torch.nn.Transformer(width, 4, 2, 2, 64, dropout=0.0, batch_first=True)
    there.encoder.norm = there.decoder.norm = (
        None  # post-norm has none at the end, and the paper neither
    )

    def block(ours: Any, cross: bool) -> dict[str, Any]:
        names = (
            {"self_attn": "attention", "multihead_attn": "cross"}
            if cross
            else {"self_attn": "attention"}
        )
        norms = ["attention", "cross", "mlp"] if cross else ["attention", "mlp"]
        found = {
            f"{a}.{k}": v
            for a, b in names.items()
            for k, v in to_torch(torch, ours[b], width).items()
        }
        for number, name in enumerate(norms):
            norm = ours[f"{name}_norm"]
            found |= {
                f"norm{number + 1}.weight": norm["scale"],
                f"norm{number + 1}.bias": norm["bias"],
            }
        for a, b in (("linear1", "up"), ("linear2", "down")):
            found |= {f"{a}.weight": np.transpose(ours[b]["kernel"]), f"{a}.bias": ours[b]["bias"]}
        return {k: torch.tensor(np.array(v, np.float32)) for k, v in found.items()}

    def whole(p: Any) -> dict[str, Any]:
        return {
            f"{side}.layers.{layer}.{name}": value
            for side in ("encoder", "decoder")
            for layer in range(2)
            for name, value in block(p[side][f"block_{layer}"], side == "decoder").items()
        }

    there.load_state_dict(whole(p))
    table = torch.tensor(p["tokens"]["embedding"], requires_grad=True)

    def embed(t: Array) -> Any:
        places = torch.tensor(np.array(sinusoidal(jnp.arange(t.shape[1]), width)))
        return table[torch.tensor(t).long()] * width**0.5 + places

    padding = torch.tensor(np.arange(6)[None] >= lengths[:, None])
    later = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    out = there(
        embed(x),
        embed(y),
        tgt_mask=later,
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    logits = out @ table.T
    ours, gradient = value_and_gradient(model, p, x, y, lengths)
    close(ours, logits.detach())
    (
        logits * torch.cos(torch.arange(logits.numel()).float()).reshape(logits.shape)
    ).sum().backward()
    close(gradient["tokens"]["embedding"], table.grad)
    found = whole(jax.tree.map(np.asarray, gradient))
    for name, each in there.named_parameters():
        close(found[name], each.grad, 1e-5 if "in_proj_bias" not in name else 3e-5)


def test_grouped_queries_are_heads_whose_keys_and_values_repeat() -> None:
    x = normal(2, 5, 12)
    grouped = Attention(heads=6, kv_heads=2, causal=True)
    full = Attention(heads=6, causal=True)
    p = weights(grouped, x)
    repeated = {**p, "key_value": {"kernel": np.repeat(p["key_value"]["kernel"], 3, axis=2)}}
    close(run(grouped, p, x), run(full, repeated, x))


def test_attention_is_softmax_attention_within_its_window() -> None:
    q, k, v = (normal(1, 6, 1, 4, seed=seed) for seed in range(3))
    distance = np.arange(6)[:, None] - np.arange(6)
    for causal, window in ((True, 2), (False, 3)):
        seen = (abs(distance) < window) & ((distance >= 0) | (not causal))
        scores = np.where(seen, q[0, :, 0] @ k[0, :, 0].T / 2, -np.inf)
        expected = softmax(scores, axis=-1) @ v[0, :, 0]
        close(attend(q, k, v, causal=causal, window=window)[0, :, 0], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("causal", "window", "packed", "capped", "fused"),
    [
        (True, 32, True, False, False),
        (False, 16, False, True, False),
        (True, 32, True, False, True),
    ],
)
def test_the_splash_kernel_is_the_plain_one(
    causal: bool, window: int | None, packed: bool, capped: bool, fused: bool
) -> None:
    q = normal(8, 256, 4, 16)
    k = normal(8, 256, 2, 16, seed=1)
    v = normal(8, 256, 2, 16, seed=2)
    pair = (jnp.repeat(jnp.array([[1, 2]]), 128, axis=1).repeat(8, 0),) * 2 if packed else None
    options: dict[str, Any] = {"causal": causal, "window": window, "segments": pair}
    if capped:
        options |= {"scale": 0.4, "cap": 2.0}
    if fused:
        options |= {"splash_fused": True, "splash_block": 128}

    def by(kernel: str) -> Any:
        def total(q: Any, k: Any, v: Any) -> Any:
            return jnp.sum(jnp.sin(attend(q, k, v, **options, kernel=kernel)))

        return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)

    plain = by("plain")
    close(by("splash"), plain)
    for mesh in (Mesh(data=2, fsdp=2, tensor=2), Mesh(data=2, tensor=2, sequence=2)):
        with activate(mesh.build()):
            close(by("splash"), plain)


def test_heads_of_keys_that_do_not_divide_over_tensor_are_refused_by_the_splash_kernel() -> None:
    q = normal(8, 128, 8, 16)
    k = normal(8, 128, 2, 16)
    with (
        activate(Mesh(data=1, tensor=8).build()),
        pytest.raises(Refused, match="split 2 heads of keys over 8 devices"),
    ):
        jax.eval_shape(lambda: attend(q, k, k, causal=True, kernel="splash"))


# -- what is published


def count(model: nn.Module, *inputs: Any) -> int:
    shapes = jax.eval_shape(lambda: model.init(KEY, *inputs))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.meta.unbox(shapes)["params"]))


TOKENS = jnp.zeros((1, 8), jnp.int32)
IMAGE = jnp.zeros((1, 224, 224, 3))
PUBLISHED = {
    "GPT-2 124M": (
        Decoder(vocab=50_257, depth=12, width=768, heads=12, **GPT2),
        (TOKENS,),
        124_439_808,
    ),
    "Llama 2 7B": (
        Decoder(vocab=32_000, depth=32, width=4096, heads=32, mlp_width=11_008, scan=True, **LLAMA),
        (TOKENS,),
        6_738_415_616,
    ),
    "Llama 2 70B": (
        Decoder(
            vocab=32_000,
            depth=80,
            width=8192,
            heads=64,
            kv_heads=8,
            mlp_width=28_672,
            scan=True,
            **LLAMA,
        ),
        (TOKENS,),
        68_976_648_192,
    ),
    "Llama 3 8B": (
        Decoder(
            vocab=128_256,
            depth=32,
            width=4096,
            heads=32,
            kv_heads=8,
            mlp_width=14_336,
            scan=True,
            **LLAMA,
        ),
        (TOKENS,),
        8_030_261_248,
    ),
    "Mixtral 8x7B": (
        Decoder(
            vocab=32_000,
            depth=32,
            width=4096,
            heads=32,
            kv_heads=8,
            mlp_width=14_336,
            experts=8,
            scan=True,
            **LLAMA,
        ),
        (TOKENS,),
        46_702_792_704,
    ),
    "TinyLlama": (
        Decoder(vocab=32_000, depth=22, width=2048, heads=32, kv_heads=4, mlp_width=5632, **LLAMA),
        (TOKENS,),
        1_100_048_384,
    ),
    "BERT-base, masked tokens": (
        Encoder(vocab=30_522, depth=12, width=768, heads=12, types=2),
        (TOKENS,),
        109_514_298,
    ),
    # the published 109,482,240 of BERT-base with its pooler, and 2 x 768 + 2 of the head
    "BERT-base, two classes": (
        Encoder(vocab=30_522, depth=12, width=768, heads=12, types=2, classes=2),
        (TOKENS,),
        109_482_240 + 1538,
    ),
    # the paper rounds to 65 million; torch.nn.Transformer() has 44,140,544, two last norms of 1,024
    # among them
    "Transformer-base": (
        EncoderDecoder(vocab=37_000, depth=6, width=512, heads=8),
        (TOKENS, TOKENS),
        37_000 * 512 + 44_140_544 - 2 * 1024,
    ),
    "ViT-S/16": (ViT(classes=1000), (IMAGE,), 22_050_664),
    "ViT-B/16": (ViT(classes=1000, width=768, heads=12), (IMAGE,), 86_567_656),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    model, inputs, published = PUBLISHED[name]
    assert count(model, *inputs) == published


# -- the same in another way


def scanned(p: Any, depth: int) -> Any:
    """Parameters of unrolled blocks as those of scanned ones, in every stack."""
    if not isinstance(p, dict):
        return p
    blocks = [p[f"block_{layer}"] for layer in range(depth) if f"block_{layer}" in p]
    rest = {name: scanned(each, depth) for name, each in p.items() if not name.startswith("block_")}
    return rest | (
        {"block": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)} if blocks else {}
    )


SHAPES = {
    "length": st.integers(1, 9),
    "batch": st.integers(1, 3),
    "heads": st.sampled_from([1, 2, 4]),
}
PROPERTY = settings(max_examples=3, deadline=None)


@given(**SHAPES, depth=st.integers(1, 3), relative=st.booleans())
@PROPERTY
def test_scanned_blocks_are_the_unrolled_ones(
    length: int, batch: int, heads: int, depth: int, relative: bool
) -> None:
    kind = {"positions": "relative" if relative else "rotary"}
    model = Decoder(vocab=11, depth=depth, width=16, heads=heads, **kind)
    x = tokens(batch, length)
    p = weights(model, x)
    y, gradient = value_and_gradient(model, p, x)
    other, stacked = value_and_gradient(model.clone(scan=True), scanned(p, depth), x)
    close(other, y)
    close(stacked, scanned(gradient, depth))


@SLOW
@given(**SHAPES, remat=st.sampled_from(get_args(Remat)[1:]), scan=st.booleans())
@PROPERTY
def test_remat_changes_no_value_and_no_gradient(
    length: int, batch: int, heads: int, remat: str, scan: bool
) -> None:
    model = Decoder(**(SMALL | {"heads": heads}), scan=scan, dropout=0.3)
    x = tokens(batch, length)
    p = weights(model, x)
    named = {"train": True, "rngs": {"dropout": KEY}}
    close(
        value_and_gradient(model.clone(remat=remat), p, x, **named),
        value_and_gradient(model, p, x, **named),
    )


@pytest.mark.parametrize(
    ("group", "more"),
    [
        (2, {}),
        pytest.param(2, {"remat": "full", "dtype": "bfloat16"}, marks=SLOW),
        pytest.param(3, {"experts": 3}, marks=SLOW),
    ],
    ids=str,
)
def test_groups_of_blocks_change_no_gradient_and_no_parameter(
    group: int, more: dict[str, Any]
) -> None:
    model = Decoder(**(SMALL | {"depth": 6}), scan=True, **more)
    x = tokens(2, 8)
    p = weights(model, x)
    named = {"train": True, "mutable": ["losses"]} if "experts" in more else {"train": True}

    def gradient(model: Decoder) -> Any:
        def total(p: Any) -> Any:
            y = model.apply({"params": p}, x, **named)
            return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(y))

        return jax.jit(jax.value_and_grad(total))(p)

    grouped = model.clone(remat_group=group)
    assert jax.tree.structure(weights(grouped, x)) == jax.tree.structure(p)
    close(gradient(grouped), gradient(model))


@SLOW
def test_groups_of_blocks_keep_less() -> None:
    x = tokens(64, 16)
    kept = []
    with fully():
        for group in (1, 8):
            model = Decoder(**(SMALL | {"depth": 64}), scan=True, remat="full", remat_group=group)
            p = jax.eval_shape(lambda model=model: nn.meta.unbox(model.init(KEY, x)))
            gradient = jax.jit(
                jax.grad(lambda p, model=model: jnp.sum(jnp.sin(model.apply(p, x, train=True))))
            )
            kept.append(gradient.lower(p).compile().memory_analysis().temp_size_in_bytes)
    assert kept[1] < 0.7 * kept[0], kept


@pytest.mark.parametrize("fields", [{"remat_group": 2}, {"remat_group": 3, "scan": True}], ids=str)
def test_groups_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=f"remat_group {fields['remat_group']}.*depth, which is 4"):
        weights(Decoder(**(SMALL | {"depth": 4}), **fields), tokens(1, 4))


@SLOW
def test_each_policy_keeps_less_than_the_one_before_it_and_computes_more() -> None:
    kept = []
    work = []
    x = tokens(2, 512)
    with fully():  # what is in memory is the full compiler's choice
        for remat in get_args(Remat):
            model = Decoder(
                **(SMALL | {"width": 64, "depth": 4}), activation="swiglu", scan=True, remat=remat
            )
            p = jax.eval_shape(lambda model=model: nn.meta.unbox(model.init(KEY, x)))
            gradient = jax.jit(jax.grad(lambda p, model=model: jnp.sum(jnp.sin(model.apply(p, x)))))
            kept.append(gradient.lower(p).compile().memory_analysis().temp_size_in_bytes)
            work.append(count_flops(gradient.trace(p).jaxpr))
    assert all(less < 0.97 * more for more, less in itertools.pairwise(kept)), kept
    assert all(more > 1.01 * less for less, more in itertools.pairwise(work)), work


CHUNKED = {
    "gated": {"activation": "swiglu"},
    "scanned": {"activation": "gelu", "bias": True, "scan": True, "remat": "full"},
    "experts": {"activation": "geglu", "experts": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("gated", Mesh(data=1)),
        *((name, Mesh(data=1, fsdp=2, tensor=2, expert=2)) for name in ("scanned", "experts")),
    ],
    ids=str,
)
def test_chunked_mlp_is_the_whole_mlp(name: str, mesh: Mesh) -> None:
    model = Decoder(**(SMALL | CHUNKED[name]), mlp_width=48)
    pieces = model.clone(mlp_chunks=3)
    x = tokens(8, 6)
    p = weights(model, x)
    drawn = [nn.meta.unbox(jax.jit(each.init)(KEY, x)) for each in (model, pieces)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *drawn))  # the initial values are the same
    whole = value_and_gradient(model, p, x)
    built = mesh.build(jax.devices()[:1] if mesh.fsdp == 1 else None)
    with activate(built):
        close(value_and_gradient(pieces, p, x), whole)


def test_mlp_width_that_chunks_do_not_divide_is_refused() -> None:
    model = Decoder(**SMALL, mlp_width=48, mlp_chunks=5)
    with pytest.raises(Refused, match="5 chunks do not divide mlp 48: choose a divisor, or 0"):
        jax.eval_shape(lambda: model.init(KEY, tokens(1, 4)))
    with (
        activate(Mesh(data=1, tensor=8).build()),
        pytest.raises(Refused, match="mlp 48 on each of 8 devices"),
    ):
        jax.eval_shape(lambda: model.clone(mlp_chunks=4).init(KEY, tokens(1, 4)))


def chunk_by_chunk(apply: Callable[[Any, Array], Any], x: Array, chunks: list[int]) -> Array:
    """The logits of `apply(cache, tokens) -> (logits, cache)`, given chunks of these lengths."""
    cache = {}
    found = []
    at = 0
    for length in chunks:
        logits, cache = apply(cache, x[:, at : at + length])
        found.append(logits)
        at += length
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(
    "name",
    [
        "gpt-2",
        "llama, grouped",
        "sinusoidal, windowed",
        "gemma 2",
        *(pytest.param(name, marks=SLOW) for name in ("as it stands", "relative", "no positions")),
    ],
)
def test_token_by_token_is_all_at_once(name: str) -> None:
    model = DECODERS[name]
    x = tokens(2, 9)
    model = model.clone(scan=model.positions in ("learned", "relative") or name == "gemma 2")
    p = weights(model, x)

    @jax.jit
    def apply(cache: Any, x: Array) -> Any:
        return model.apply({"params": p, **cache}, x, cache=12, mutable=["cache"])

    close(chunk_by_chunk(apply, x, [1] * 9), run(model, p, x))
    close(chunk_by_chunk(apply, x, [4, 1, 4]), run(model, p, x))


@pytest.mark.parametrize("model", [TRANSLATOR, T5], ids=["sinusoidal", "t5"])
def test_a_translation_token_by_token_is_all_at_once(model: EncoderDecoder) -> None:
    x = tokens(2, 6)
    y = tokens(2, 5, seed=1)
    lengths = jnp.array([6, 3])
    p = weights(model, x, y)
    memory = run(model, p, x, lengths, method="encode")

    @jax.jit
    def apply(cache: Any, y: Array) -> Any:
        return model.apply(
            {"params": p, **cache}, y, memory, cache=5, method="decode", mutable=["cache"]
        )

    close(chunk_by_chunk(apply, y, [1] * 5), run(model, p, x, y, lengths))


@SLOW
@given(length=st.integers(1, 7), more=st.integers(1, 5), pooling=st.sampled_from(["first", "mean"]))
@PROPERTY
def test_padding_changes_nothing_for_an_encoder(length: int, more: int, pooling: str) -> None:
    for model in (BERT.clone(depth=1), BERT.clone(depth=1, classes=3, pooling=pooling)):
        x = tokens(2, length)
        padded = np.concatenate([x, tokens(2, more, seed=5)], axis=1)
        p = weights(model, x)
        lengths = jnp.full(2, length)
        mask = (
            np.ones((2, 1)) if model.classes else (np.arange(length + more) < length)[None, :, None]
        )
        y, gradient = value_and_gradient(model, p, x, lengths)
        other, padded_gradient = value_and_gradient(
            model, p, padded, lengths, mask=np.float32(mask)
        )
        close(other[:, : y.shape[1]], y)
        if model.classes:  # the sums of the others weigh outputs by their place
            close(padded_gradient, gradient)


def test_padding_of_the_source_changes_nothing_for_a_translation() -> None:
    x = tokens(2, 6)
    y = tokens(2, 5, seed=1)
    lengths = jnp.array([4, 4])
    for model in (TRANSLATOR.clone(depth=1), T5.clone(depth=1)):
        p = weights(model, x, y)
        close(
            value_and_gradient(model, p, x, y, lengths),
            value_and_gradient(model, p, x[:, :4], y, lengths),
        )


@EACH
def test_packed_documents_are_what_each_is_alone(model: Decoder) -> None:
    first = tokens(1, 4)
    second = tokens(1, 3, seed=1)
    p = weights(model, first)
    packed = np.concatenate([first, second, [[0]]], axis=1).astype(np.int32)
    segments = jnp.array([[1] * 4 + [2] * 3 + [0]])
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0]])
    together = run(model, p, packed, segments, positions)
    close(together[:, :4], run(model, p, first))
    close(together[:, 4:7], run(model, p, second))


# -- exact zeros


def sees(model: nn.Module, p: Any, x: Array, **named: Any) -> Array:
    """[L, L]: whether position i's outputs move at all with the vector that token j is looked up
    as."""
    table = "tokens"

    def outputs(
        vectors: Any,
    ) -> Any:  # a token of its own at each place, so that its row of the table is its vector
        q = {**p, table: {"embedding": vectors}}
        return model.apply({"params": q}, x, **named)[0]

    jacobian = jax.jit(jax.jacrev(outputs))(p[table]["embedding"])  # [L, V, vocab, D]
    return np.abs(np.asarray(jacobian)[:, :, x[0]]).max(axis=(1, 3)) > 0


@EACH
def test_no_position_sees_the_future(model: Decoder) -> None:
    x = np.arange(1, 9)[None].astype(np.int32)
    model = model.clone(tie_embeddings=False, depth=1 if model.window else 2)
    seen = sees(model, weights(model, x), x)
    expected = np.tri(8, dtype=bool)
    if model.window:
        expected &= ~np.tri(8, k=-model.window, dtype=bool)
    np.testing.assert_array_equal(seen, expected)


def test_no_document_sees_another_and_nothing_sees_padding() -> None:
    x = np.arange(1, 9)[None].astype(np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 0, 0]])
    same = segments[0][:, None] == segments[0]
    for model, expected in (
        (DECODERS["llama, grouped"], same & np.tri(8, dtype=bool)),
        (BERT.clone(tie_embeddings=False), same),
    ):
        p = weights(model, x)
        np.testing.assert_array_equal(sees(model, p, x, segments=jnp.array(segments)), expected)


# -- images


def test_patches_are_a_convolution_with_their_stride() -> None:
    x = normal(2, 8, 12, 3)
    model = ViT(classes=5, patch=4, depth=1, width=8, heads=2, pooling="average")
    p = weights(model, x)
    kernel = p["patches"]["kernel"]
    conv = jax.lax.conv_general_dilated(
        x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    _, kept = model.apply(
        {"params": p},
        x,
        capture_intermediates=lambda module, _: module.name == "patches",
        mutable=["intermediates"],
    )
    found = kept["intermediates"]["patches"]["__call__"][0]
    close(found, np.asarray(conv).reshape(2, 6, 8) + p["patches"]["bias"])


@pytest.mark.parametrize("pooling", ["token", "average", "attention"])
def test_without_positions_the_order_of_patches_does_not_matter(pooling: str) -> None:
    x = normal(1, 4, 4, 1)
    model = ViT(classes=3, patch=2, depth=2, width=16, heads=2, pooling=pooling)
    p = weights(model, x)
    swapped = np.concatenate([x[:, :, 2:], x[:, :, :2]], axis=2)
    assert np.abs(run(model, p, x) - run(model, p, swapped)).max() > 1e-3
    flat = {**p, "positions": {"embedding": np.zeros_like(p["positions"]["embedding"])}}
    close(run(model, flat, x), run(model, flat, swapped))


def test_sines_and_cosines_tell_row_and_column_apart() -> None:
    model = ViT(
        classes=3, patch=2, depth=1, width=16, heads=2, positions="sincos", pooling="average"
    )
    grid = np.asarray(model.grid(2, 3))[0].reshape(2, 3, 16)
    assert (grid[0, :, :8] == grid[0, :1, :8]).all() and (grid[:, 0, 8:] == grid[:1, 0, 8:]).all()
    assert len(np.unique(grid.reshape(6, 16), axis=0)) == 6


# -- dropout, dtype, beginnings


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_leaves_out_whole_examples_and_more_of_them_in_later_blocks(scan: bool) -> None:
    x = np.tile(tokens(1, 3), (400, 1))
    model = Decoder(**(SMALL | {"depth": 2}), drop_path=0.5, scan=scan)
    p = weights(model, x)
    still = run(model, p, x[:1])
    alone = run(model, p, x, train=True, rngs={"dropout": KEY})
    outcomes, counts = np.unique(np.round(np.asarray(alone)[:, 0, 0], 3), return_counts=True)
    assert (
        len(outcomes) == 4 and (abs(counts / 400 - 0.25) < 0.1).all()
    )  # two branches, of the last block alone
    assert abs(outcomes - float(still[0, 0, 0])).min() > 1e-3  # kept ones count double


@functools.cache
def initialized(model: nn.Module) -> dict[str, Array]:
    x = tokens(1, 4)
    more = (x,) if isinstance(model, EncoderDecoder) else ()
    return flatten_with_paths(jax.jit(lambda: nn.meta.unbox(model.init(KEY, x, *more)["params"]))())


@pytest.mark.parametrize(
    "model", [DECODERS["gpt-2"], DECODERS["llama, grouped"], BERT, T5], ids=str
)
def test_parameters_begin_by_path_whatever_stands_beside_them(model: Any) -> None:
    deeper = initialized(model.clone(depth=3))
    for path, leaf in initialized(model).items():
        if not path.endswith(("out/kernel", "down/kernel")):  # these are scaled by the depth
            np.testing.assert_array_equal(leaf, deeper[path], err_msg=path)
    kernels = [
        leaf.tobytes() for path, leaf in deeper.items() if path.endswith(("kernel", "embedding"))
    ]
    assert len(set(kernels)) == len(kernels)


@pytest.mark.parametrize(
    "model", [DECODERS["gpt-2"], DECODERS["llama, grouped"], BERT, TRANSLATOR], ids=str
)
def test_bfloat16_computes_in_it_from_float32_parameters(model: Any) -> None:
    x = tokens(2, 5)
    more = (x,) if isinstance(model, EncoderDecoder) else ()
    half = model.clone(dtype="bfloat16")
    p = weights(half, x, *more)
    assert {leaf.dtype for leaf in jax.tree.leaves(p)} == {np.dtype("float32")}
    y = run(half, p, x, *more)
    expected = run(model, p, x, *more)
    assert y.dtype == jnp.float32 and 0 < np.abs(y - expected).max() < 0.05 * np.abs(expected).max()
    products = str(jax.make_jaxpr(lambda p: half.apply({"params": p}, x, *more))(p))
    assert "dot_general" in products and "bf16" in products


def image_model(**fields: Any) -> Any:
    return ViT(classes=3, **fields), np.zeros((1, 28, 28, 1), np.float32)


def text_model(kind: Any = Decoder, **fields: Any) -> Any:
    return kind(**(SMALL | fields)), tokens(1, 40)


BAD = {
    "width 16 heads 3": text_model(heads=3),
    "width 12 heads 4 even": text_model(width=12),
    "kv_heads 3 heads 4": text_model(kv_heads=3),
    "40 max_length 16": text_model(**GPT2, max_length=16),
    "40 max_length 32": text_model(Encoder, max_length=32),
    "depth -1": text_model(depth=-1),
    "depth 0": text_model(Encoder, depth=0, max_length=64),
    "dtype 'float8' float32": text_model(dtype="float8"),
    "window 0": text_model(window=0),
    "activation 'sigmoid' swiglu": text_model(activation="sigmoid"),
    "norm 'batch' layer, rms": text_model(norm="batch"),
    "positions 'alibi' rotary": text_model(positions="alibi"),
    "remat 'half' dots": text_model(remat="half"),
    "kernel 'flash' splash": text_model(attention_kernel="flash"),
    "kernel 'splash' 128 40": text_model(attention_kernel="splash"),
    "patch 16 28x28": image_model(),
    "width 18 sincos": image_model(patch=14, width=18, heads=3, positions="sincos"),
    "pooling 'max' token": image_model(patch=14, pooling="max"),
}


@pytest.mark.parametrize("words", BAD)
def test_fields_that_do_not_fit_are_refused_with_their_names_and_numbers(words: str) -> None:
    model, x = BAD[words]
    with pytest.raises(Refused) as refused:
        jax.eval_shape(lambda: model.init(KEY, x))
    assert all(word in str(refused.value) for word in words.split()), refused.value


def test_every_field_has_one_meaning_in_all_transformers() -> None:
    shared = {field.name for field in dataclasses.fields(Decoder(**SMALL))} & {
        f.name for f in dataclasses.fields(BERT)
    }
    assert {
        "heads",
        "norm",
        "dropout",
        "scan",
        "remat",
        "dtype",
        "tie_embeddings",
        "attention_kernel",
    } <= shared
