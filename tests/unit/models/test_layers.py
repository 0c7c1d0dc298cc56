"""The layers that every family uses, against NumPy, and where parameters begin."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.constraints import choose
from jaxbig.errors import Refused
from jaxbig.models.convnet import Conv, ConvNet, Dense, Dropout, Pool
from jaxbig.models.deltanet import DeltaNet
from jaxbig.models.griffin import Griffin
from jaxbig.models.language_model import Decoder, Encoder, EncoderDecoder
from jaxbig.models.layers.attention import Attention
from jaxbig.models.layers.basic import Embedding, LayerNorm, Linear, RMSNorm, cast, drop_path
from jaxbig.models.layers.splash_attention import block_sizes
from jaxbig.models.mlp import MLP
from jaxbig.models.rnn import RNN
from jaxbig.models.rnn_seq2seq import RNNEncoderDecoder
from jaxbig.models.vit import ViT

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_linear_contracts_its_last_axes() -> None:
    x = normal(2, 3, 4, 5)
    module = Linear((6, 7), ("heads", None, None, "mlp"), inputs=2)
    p = {"kernel": normal(4, 5, 6, 7, seed=1), "bias": normal(6, 7, seed=2)}
    expected = np.einsum("blij,ijmn->blmn", x, p["kernel"]) + p["bias"]
    np.testing.assert_allclose(module.apply({"params": p}, x), expected, rtol=1e-4, atol=1e-5)


def test_linear_begins_with_the_variance_of_its_fan_in() -> None:
    module = Linear((64, 4), ("heads", None, None, "mlp"), inputs=2, scale=0.5)
    kernel = nn.meta.unbox(module.init(KEY, normal(1, 16, 8)))["params"]["kernel"]
    assert np.std(kernel) == pytest.approx(0.5 * (16 * 8) ** -0.5, rel=0.03)


def test_rms_norm_is_its_equation() -> None:
    x = 10 * normal(2, 3, 8)
    scale = normal(8, seed=1)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(
        RMSNorm().apply({"params": {"scale": scale}}, x), expected, rtol=1e-5
    )


def test_rms_norm_scales_in_the_dtype_of_its_input_but_gemmas_in_float32() -> None:
    x = jnp.asarray(normal(4, 256), jnp.bfloat16)
    p = {"params": {"scale": normal(256, seed=1)}}
    for module, wide in ((RMSNorm(), jnp.bfloat16), (RMSNorm(plus_one=True), jnp.float32)):
        wanted = jnp.float32(x) / jnp.sqrt((jnp.float32(x) ** 2).mean(-1, keepdims=True) + 1e-6)
        scale = jnp.asarray(p["params"]["scale"] + (1 if module.plus_one else 0), wide)
        wanted = (wanted.astype(wide) * scale[None]).astype(jnp.bfloat16)
        np.testing.assert_array_equal(module.apply(p, x), wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_keys_and_values_in_one_product_or_two_are_the_same(kv_heads: int, bias: bool) -> None:
    x = normal(2, 5, 12)
    joint = Attention(heads=4, kv_heads=kv_heads, bias=bias, causal=True)
    apart = joint.clone(joint_key_value=False)
    p = nn.meta.unbox(joint.init(KEY, x))
    drawn = flatten_with_paths(nn.meta.unbox(apart.init(KEY, x)))
    for path, leaf in flatten_with_paths(p).items():
        np.testing.assert_array_equal(leaf, drawn[path])
    p = jax.tree.map(lambda leaf: leaf + 0.1, p)  # a bias begins at 0

    def total(module: nn.Module, p: Any) -> Any:
        return jnp.sum(jnp.sin(module.apply(p, x)))  # type: ignore[arg-type]

    found = [jax.value_and_grad(lambda p, m=m: total(m, p))(p) for m in (joint, apart)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *found)


@pytest.mark.parametrize(
    ("queries", "keys", "most", "sizes"),
    [
        (2048, 2048, 1024, (1024, 1024)),
        (256, 384, 1024, (256, 384)),
        (1280, 640, 1024, (640, 640)),
        (1408, 256, 1024, (128, 256)),
        (2048, 2048, 128, (128, 128)),
        (2048, 2048, 200, (128, 128)),
    ],
)
def test_the_blocks_of_the_splash_kernel_divide_the_lengths(
    queries: int, keys: int, most: int, sizes: tuple[int, int]
) -> None:
    found = block_sizes(queries, keys, most)
    assert (found.block_q, found.block_kv) == sizes
    assert (found.block_q_dq, found.block_kv_dq, found.block_kv_dkv) == (*sizes, sizes[1])


def test_a_block_of_less_than_a_tile_is_refused() -> None:
    with pytest.raises(Refused, match="splash_block 64"):
        block_sizes(256, 256, 64)


@pytest.mark.parametrize("module", [RMSNorm(), LayerNorm()], ids=["rms", "layer"])
def test_norms_of_bfloat16_are_made_in_float32(module: nn.Module) -> None:
    x = jnp.asarray(300 + normal(1, 256), jnp.bfloat16)  # its squares would round to one number
    p = nn.meta.unbox(module.init(KEY, x))
    found = module.apply(p, x)
    expected = module.apply(p, x.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16  # type: ignore[union-attr]
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=0.02)


def test_an_embedding_looks_up_and_gives_its_whole_table() -> None:
    table = normal(5, 3)
    module = Embedding(5, 3)
    p = {"params": {"embedding": table}}
    np.testing.assert_array_equal(module.apply(p, np.array([[4, 0]])), table[[[4, 0]]])
    np.testing.assert_array_equal(module.apply(p, method="whole"), table)


def test_a_choice_or_dtype_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(Refused, match="size 'xl': it must be one of s, m"):
        choose("size", "xl", ("s", "m"))
    with pytest.raises(Refused, match=r"dtype 'float8'.*float32, bfloat16"):
        cast(jnp.zeros(1), "float8")


def test_drop_path_keeps_or_leaves_out_whole_examples_and_their_mean() -> None:
    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            return drop_path(x, 0.25, train)

    x = np.ones((2000, 2, 3), np.float32)
    y = np.asarray(Branch().apply({}, x, True, rngs={"dropout": KEY}))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all() and abs(y.mean() - 1) < 0.05
    np.testing.assert_array_equal(Branch().apply({}, x, False), x)


# -- where parameters begin

IMAGE = normal(1, 8, 8, 1)
ROWS = normal(1, 4, 3)
TOKENS = np.ones((1, 4), np.int32)
BEGIN: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "conv net": (
        ConvNet(layers=(Conv(4), Pool(), Conv(6, stride=2), Dense(5)), classes=3),
        (IMAGE,),
    ),
    "rnn": (RNN(width=6, classes=3, layers=2, bidirectional=True, pooling="attention"), (ROWS,)),
    "decoder": (Decoder(vocab=11, depth=2, width=16, heads=2), (TOKENS,)),
    "scanned": (Decoder(vocab=11, depth=2, width=16, heads=2, scan=True), (TOKENS,)),
    "encoder": (Encoder(vocab=11, depth=2, width=16, heads=2), (TOKENS,)),
    "translation": (EncoderDecoder(vocab=11, depth=1, width=16, heads=2), (TOKENS, TOKENS)),
    "recurrent translation": (
        RNNEncoderDecoder(vocab=11, target_vocab=7, width=8),
        (TOKENS, TOKENS),
    ),
    "griffin": (Griffin(vocab=11, depth=3, width=16, heads=2), (TOKENS,)),
    "delta": (
        DeltaNet(vocab=11, depth=2, width=16, heads=2, key_width=4, value_width=8),
        (TOKENS,),
    ),
    "vit": (ViT(classes=3, patch=4, depth=1, width=16, heads=2), (IMAGE,)),
    "mlp": (MLP(widths=(5, 4)), (normal(1, 6),)),
}


def starter(module: Any, inputs: Any) -> Callable[[int], dict[str, np.ndarray]]:
    """From a seed to the initial parameters by path."""
    init = jax.jit(lambda key: nn.meta.unbox(module.init(key, *inputs))["params"])
    return lambda seed: flatten_with_paths(init(jax.random.key(seed)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BEGIN)
def test_a_seed_gives_the_same_parameters_and_each_path_its_own(name: str) -> None:
    start = starter(*BEGIN[name])
    first = start(0)
    again = start(0)
    other = start(1)
    constant = {path for path in first if path.split("/")[-1] in ("bias", "scale", "token")}
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])
        same = np.array_equal(value, other[path])
        assert same == (path in constant) or value.size < 3 or path.endswith("gates/bias"), path
    drawn = {
        path: np.ravel(value)[:3] / np.std(value)
        for path, value in first.items()
        if path not in constant
    }
    for (a, one), (b, two) in itertools.combinations(drawn.items(), 2):
        assert one.shape != two.shape or not np.allclose(one, two, rtol=0.01), f"{a} begins as {b}"


def test_what_is_stacked_on_top_changes_no_parameter_below() -> None:
    short, tall = (
        starter(ConvNet(layers, 3), (IMAGE,))(0)
        for layers in ((Conv(4),), (Conv(4), Dropout(0.5), Dense(7)))
    )
    for path in ("layers_0/kernel", "layers_0/bias"):
        np.testing.assert_array_equal(short[path], tall[path])


def test_seed_0_begins_where_it_always_began() -> None:
    first = starter(*BEGIN["conv net"])(0)["layers_0/kernel"].ravel()[:3]
    np.testing.assert_allclose(first, FIRST, rtol=1e-5)


FIRST = [0.8951075673103333, 0.7960398197174072, -0.21050980687141418]
