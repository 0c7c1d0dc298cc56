"""Each model against the same equations written out in NumPy or SciPy, and what must hold to the bit."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax.test_util import check_grads
from scipy.special import expit, softmax

from jaxbig.errors import Refused
from jaxbig.models.convolutional import Conv, ConvNet, Dense, Dropout, Pool
from jaxbig.models.layers import Attention, Linear, RMSNorm, rotary
from jaxbig.models.recurrent import LSTM, RNN
from jaxbig.models.transformers import Block, Decoder
from jaxbig.state import leaves

Array = np.ndarray
KEY = jax.random.key(0)
CONVNET = ConvNet(layers=(Conv(4), Pool(), Conv(6, stride=2), Dense(5)), classes=3)
TWO_LSTMS = RNN(width=6, classes=3, layers=2)
DECODER = Decoder(vocab=11, depth=3, width=16, heads=2)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 11, shape, dtype=np.int32)


def weights(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    """Numbers in the shapes of the module's parameters, so that no bias is 0 and no scale 1."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(KEY, *inputs, **named)))["params"]
    seeds = itertools.count(100)
    return jax.tree.map(lambda leaf: np.float32(0.4) * normal(*leaf.shape, seed=next(seeds)), shapes)


def forward(module: nn.Module, p: Any, *inputs: Any, **named: Any) -> Any:
    return module.apply({"params": p}, *inputs, **named)


def applied(module: nn.Module, p: Any, *inputs: Any, **named: Any) -> Any:
    return jax.jit(lambda p, inputs: forward(module, p, *inputs, **named))(p, inputs)


@functools.cache
def starter(module: Any) -> Callable[[int], Any]:
    """From a seed to the initial parameters."""
    x = tokens(1, 2) if isinstance(module, Decoder) else normal(1, 8, 8, 1)
    init = jax.jit(lambda key: nn.meta.unbox(module.init(key, x)))
    return lambda seed: init(jax.random.key(seed))["params"]


def close(ours: Any, expected: Any, tolerance: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, expected)


def same_bits(ours: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, expected)


def check_gradient(module: nn.Module, p: Any, *inputs: Any, **how: float) -> None:
    """That by every parameter and by the first input against finite differences, in float64."""
    x, *rest = inputs
    with jax.enable_x64(True):
        p, x = jax.tree.map(np.float64, (p, x))
        check_grads(jax.jit(lambda p, x: forward(module, p, x, *rest)), (p, x), 1, ["rev"], **how)


# -- conv nets


def convolved(x: Array, p: Any, centers: slice = slice(None)) -> Array:
    """Cross-correlation by SciPy at every pixel, zeros outside, of which a stride leaves some; bias; ReLU."""

    def one(image: Array, out: int) -> Array:
        pairs = zip(np.moveaxis(image, 2, 0), np.moveaxis(p["kernel"][..., out], 2, 0), strict=True)
        y = np.sum([scipy.signal.correlate2d(channel, kernel, "same") for channel, kernel in pairs], axis=0)
        return y[centers, centers]

    y = np.stack([np.stack([one(image, out) for out in range(p["kernel"].shape[-1])], -1) for image in x])
    return np.maximum(y + p["bias"], 0)


def pooled(x: Array, window: int, reduce: Callable[..., Array]) -> Array:
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x[:, : rows * window, : columns * window]
    return reduce(x.reshape(len(x), rows, window, columns, window, x.shape[-1]), axis=(2, 4))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "centers"),
    [
        (8, 3, 1, slice(None)),
        (7, 5, 1, slice(None)),
        (6, 1, 1, slice(None)),
        (8, 3, 2, slice(1, None, 2)),  # an even image is padded on the far side alone
        (7, 3, 2, slice(0, None, 2)),
    ],
)
def test_conv_is_scipys_correlation_and_relu(size: int, kernel: int, stride: int, centers: slice) -> None:
    x, conv = normal(2, size, size, 3), Conv(4, kernel, stride)
    p = weights(conv, x, train=False)
    close(applied(conv, p, x, train=False), convolved(x, p, centers))


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize(("kind", "reduce"), [("max", np.max), ("mean", np.mean)])
@pytest.mark.parametrize("window", [2, 3])
def test_pool_takes_the_largest_or_mean_of_each_window(size: int, kind: Any, reduce: Any, window: int) -> None:
    x = normal(2, size, size, 3)
    close(applied(Pool(window, kind), {}, x, train=False), pooled(x, window, reduce), 1e-6)


def test_a_conv_net_is_its_layers_one_after_another() -> None:
    x = normal(2, 8, 8, 1)
    p = weights(CONVNET, x)
    y = pooled(convolved(x, p["layers_0"]), 2, np.max)
    y = convolved(y, p["layers_2"], slice(1, None, 2)).reshape(2, -1)
    y = np.maximum(y @ p["layers_3"]["linear"]["kernel"] + p["layers_3"]["linear"]["bias"], 0)
    close(applied(CONVNET, p, x), y @ p["head"]["kernel"] + p["head"]["bias"])


def test_dropout_drops_its_share_in_training_and_nothing_in_evaluation() -> None:
    x, drop = np.ones((100, 100), np.float32), Dropout(0.25)
    dropped = np.asarray(applied(drop, {}, x, train=True, rngs={"dropout": KEY}))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(np.mean(dropped == 0) - 0.25) < 0.02  # 4.6 standard deviations
    same_bits(applied(drop, {}, x, train=False), x)


# -- recurrent nets

LENGTHS = np.array([5, 1, 3], np.int32)
BEYOND = np.arange(5) >= LENGTHS[:, None]  # [B, L]


def lstm(p: Any, x: Array, lengths: Any) -> tuple[Array, Array]:
    """The equations of the docstring, a row and a step at a time: each h_t [B, L, W] and each row's last [B, W]."""
    kernel, recurrent, bias = p["input"]["kernel"], p["recurrent"], p["bias"]
    states = np.zeros((*x.shape[:2], len(recurrent)))
    for row, length in enumerate(lengths):
        hidden, cell = np.zeros((2, len(recurrent)))
        for t in range(length):
            i, f, g, o = (x[row, t] @ kernel[:, n] + hidden @ recurrent[:, n] + bias[n] for n in range(4))
            cell = expit(f) * cell + expit(i) * np.tanh(g)
            hidden = expit(o) * np.tanh(cell)
            states[row, t] = hidden
        states[row, length:] = hidden
    return states, states[:, -1]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_lstm_is_the_loop_over_its_equations(lengths: Array | None) -> None:
    x, module = normal(3, 5, 4), LSTM(6)
    p = weights(module, x)
    close(applied(module, p, x, lengths), lstm(p, x, [5, 5, 5] if lengths is None else lengths))


def test_the_gradient_of_an_lstm_is_that_of_finite_differences() -> None:
    x, module = normal(3, 5, 2), LSTM(3)
    check_gradient(module, weights(module, x), x, LENGTHS, rtol=1e-6)


def test_an_rnn_is_its_layers_and_a_head_on_the_last_state() -> None:
    x = normal(3, 5, 2, 2)  # images are sequences of rows
    p = weights(TWO_LSTMS, x)
    states, _ = lstm(p["lstm_0"], x.reshape(3, 5, 4), LENGTHS)
    _, last = lstm(p["lstm_1"], states, LENGTHS)
    close(applied(TWO_LSTMS, p, x, LENGTHS), last @ p["head"]["kernel"] + p["head"]["bias"])


def test_padding_changes_no_bit_of_values_and_gradients() -> None:
    x = normal(3, 5, 4)
    other = np.where(BEYOND[..., None], 100 * normal(3, 5, 4, seed=1), x).astype(np.float32)

    @jax.jit
    def outcome(p: Any, x: Any) -> Any:
        logits, back = jax.vjp(lambda p, x: forward(TWO_LSTMS, p, x, LENGTHS), p, x)
        return logits, *back(jnp.cos(logits))

    p = weights(TWO_LSTMS, x)
    ours = outcome(p, x)
    same_bits(ours, outcome(p, other))
    assert np.array_equal(np.any(ours[2], axis=-1), ~BEYOND)  # the input's gradient


def test_more_padding_changes_nothing() -> None:
    x = normal(3, 5, 4)
    p, longer = weights(TWO_LSTMS, x), np.concatenate([x, normal(3, 3, 4, seed=1)], axis=1)
    close(applied(TWO_LSTMS, p, longer, LENGTHS), applied(TWO_LSTMS, p, x, LENGTHS), 1e-6)


def test_the_forget_gate_alone_begins_open() -> None:
    bias = starter(TWO_LSTMS)(0)["lstm_1"]["bias"]
    same_bits(bias, np.array([[0] * 6, [1] * 6, [0] * 6, [0] * 6], np.float32))


# -- Transformers


def turned(x: Array, base: float = 10_000.0) -> Array:
    """Rotary positions as complex numbers: the pair (k, k + K/2) is one number, turned by t * base^(-2k/K)."""
    length, half = x.shape[1], x.shape[3] // 2
    angle = np.outer(np.arange(length), base ** (-2 * np.arange(half) / x.shape[3]))[:, None]  # [L, 1, K/2]
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def attended(p: Any, x: Array) -> Array:
    """Causal softmax attention, one query at a time."""
    query, key, value = np.moveaxis(np.einsum("bld,dchk->blchk", x, p["qkv"]["kernel"]), 2, 0)
    query, key, y = turned(query), turned(key), np.zeros(query.shape)
    for b, t, h in np.ndindex(*query.shape[:3]):
        share = softmax(key[b, : t + 1, h] @ query[b, t, h] / np.sqrt(query.shape[3]))
        y[b, t, h] = share @ value[b, : t + 1, h]
    return np.einsum("blhk,hkd->bld", y, p["out"]["kernel"])


def normed(p: Any, x: Array) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * p["scale"]


def gelu(x: Array) -> Array:
    """Hendrycks and Gimpel (2016), section 2, by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def decoded(p: Any, numbers: Array) -> Array:
    x = p["embedding"][numbers]
    for block in (p["block_0"], p["block_1"], p["block_2"]):
        x = x + attended(block["attention"], normed(block["norm_1"], x))
        x = x + gelu(normed(block["norm_2"], x) @ block["up"]["kernel"]) @ block["down"]["kernel"]
    return normed(p["norm"], x) @ p["head"]["kernel"]


def stacked(p: Any) -> Any:
    """The parameters of three unrolled blocks as those of one scanned stack."""
    rest = {name: value for name, value in p.items() if not name.startswith("block_")}
    return {**rest, "blocks": jax.tree.map(lambda *each: np.stack(each), p["block_0"], p["block_1"], p["block_2"])}


def test_rms_norm_is_its_equation() -> None:
    x, module = normal(3, 4, 5), RMSNorm()
    p = weights(module, x)
    close(applied(module, p, x), normed(p, x), 1e-6)
    check_gradient(module, p, x, rtol=1e-6)


def test_attention_is_softmax_attention_with_rotary_positions() -> None:
    x, module = normal(2, 6, 8), Attention(heads=2)
    p = weights(module, x)
    close(applied(module, p, x), attended(p, x))
    check_gradient(module, p, x, rtol=1e-4, eps=1e-3)  # the softmax is float32


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = (jnp.broadcast_to(normal(1, 1, 1, 8, seed=seed), (1, 9, 1, 8)) for seed in (1, 2))
    scores = np.einsum("blhk,bmhk->lm", rotary(query), rotary(key))
    for distance in range(-8, 9):
        diagonal = np.diag(scores, distance)
        close(diagonal, np.full_like(diagonal, diagonal[0]))
    assert np.ptp(scores) > 0.1


def test_attention_sees_no_later_position() -> None:
    x, module = normal(1, 5, 8), Attention(heads=2)
    p = weights(module, x)
    jacobian = jax.jit(jax.jacobian(lambda x: forward(module, p, x)))(x)  # [1, L, D, 1, L, D]
    assert np.array_equal(np.any(jacobian, axis=(0, 2, 3, 5)), np.tri(5))


def test_a_decoder_is_its_blocks_one_after_another() -> None:
    p = weights(DECODER, tokens(2, 7))
    close(applied(DECODER, p, tokens(2, 7)), decoded(p, tokens(2, 7)), 1e-4)


def test_scanned_blocks_are_the_unrolled_ones() -> None:
    @jax.jit
    def outcome(unrolled: Any, stack: Any) -> Any:
        models = (DECODER, unrolled), (dataclasses.replace(DECODER, scan=True), stack)
        both = [jax.vjp(lambda p, model=model: forward(model, p, tokens(2, 7)), p) for model, p in models]
        return [(logits, back(jnp.cos(logits))[0]) for logits, back in both]

    p = weights(DECODER, tokens(2, 7))
    (logits, gradient), (scanned_logits, scanned_gradient) = outcome(p, stacked(p))
    close(scanned_logits, logits)
    close(scanned_gradient, stacked(gradient))


@pytest.mark.parametrize("scan", [False, True])
def test_a_later_token_changes_no_bit_of_earlier_logits(scan: bool) -> None:
    module, numbers = dataclasses.replace(DECODER, scan=scan), tokens(2, 7)
    logits = jax.jit(lambda p, numbers: forward(module, p, numbers))
    p, other = weights(module, numbers), np.where(np.arange(7) < 4, numbers, (numbers + 1) % 11)
    ours, changed = np.asarray(logits(p, numbers)), np.asarray(logits(p, other))
    assert np.array_equal(np.any(ours != changed, axis=-1), np.broadcast_to(np.arange(7) >= 4, (2, 7)))


@pytest.mark.parametrize("scan", [False, True])
def test_blocks_begin_as_wide_as_they_should_and_each_differently(scan: bool) -> None:
    p = starter(dataclasses.replace(DECODER, scan=scan))(0)
    blocks = leaves((p if scan else stacked(p))["blocks"])
    variance = {"attention/qkv": 1 / 16, "attention/out": 1 / 16 / 6, "up": 1 / 16, "down": 1 / 64 / 6}  # 6: 2 x depth
    for path, expected in variance.items():
        kernels = np.asarray(blocks[f"{path}/kernel"])
        assert np.var(kernels) == pytest.approx(expected, rel=0.15)
        assert not np.any(kernels[0] == kernels[1])


def test_dropout_of_a_block_acts_in_training_alone() -> None:
    x, block = normal(2, 5, 8), Block(heads=2, dropout=0.5)
    p = weights(block, x, train=False)
    plain = applied(block, p, x, train=False)
    same_bits(plain, applied(Block(heads=2), p, x, train=True))
    assert not np.allclose(plain, applied(block, p, x, train=True, rngs={"dropout": KEY}))


# -- parameters


def test_linear_contracts_its_last_axes() -> None:
    x, module = normal(2, 3, 4, 5), Linear((6, 7), ("heads", None, None, "mlp"), inputs=2)
    p = weights(module, x)
    close(applied(module, p, x), np.einsum("blij,ijmn->blmn", x, p["kernel"]) + p["bias"])


BEGIN = {"conv net": CONVNET, "rnn": TWO_LSTMS, "decoder": DECODER, "scanned": dataclasses.replace(DECODER, scan=True)}


@pytest.mark.parametrize("module", BEGIN.values(), ids=BEGIN)
def test_a_seed_gives_the_same_parameters_and_each_path_its_own(module: nn.Module) -> None:
    first, again, other = (leaves(starter(module)(seed)) for seed in (0, 0, 1))
    same_bits(first, again)
    constant = {path for path in first if path.endswith(("bias", "scale"))}
    assert {path for path, value in first.items() if np.array_equal(value, other[path])} == constant
    drawn = [np.ravel(value)[:3] / np.std(value) for path, value in first.items() if path not in constant]
    assert all(not np.allclose(a, b, rtol=0.01) for a, b in itertools.combinations(drawn, 2))


def test_what_is_stacked_on_top_changes_no_parameter_below() -> None:
    short, tall = (starter(ConvNet(layers, 3))(0) for layers in ((Conv(4),), (Conv(4), Dropout(0.5), Dense(7))))
    same_bits(short["layers_0"], tall["layers_0"])


def test_seed_0_begins_where_it_always_began() -> None:
    p = starter(DECODER)(0)
    close(p["embedding"][0, :3], np.array([0.0761425, -1.6157459, -1.6857724], np.float32))
    close(p["block_1"]["up"]["kernel"][0, :3], np.array([-0.49822074, 0.36698788, -0.22375637], np.float32))


class Valid(nn.Module):
    """A 5x5 convolution without padding, as LeNet-5 has it: two pixels less on each side."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return Conv(self.channels, kernel=5, name="conv")(x, train)[:, 2:-2, 2:-2]


LENET_5 = ConvNet((Conv(6, kernel=5), Pool(), Valid(16), Pool(), Dense(120), Dense(84)), classes=10)
WIDE = (Conv(32), Conv(64), Pool(), Conv(128), Pool(), Dropout(0.25), Dense(128))


@pytest.mark.parametrize(
    ("module", "x", "count"),
    [
        pytest.param(LENET_5, normal(1, 28, 28, 1), 61_706, id="LeNet-5 as often counted"),
        pytest.param(ConvNet(WIDE, 10), normal(1, 8, 8, 1), 320 + 18_496 + 73_856 + 65_664 + 1_290, id="conv net"),
        pytest.param(RNN(128, 10, 2), normal(1, 8, 8), 70_144 + 131_584 + 1_290, id="rnn"),
    ],
)
def test_parameters_are_as_many_as_by_hand(module: nn.Module, x: Array, count: int) -> None:
    assert counted(module, x) == count


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("vocab", "depth", "width"), [(256, 4, 128), (50_257, 12, 768)])
def test_a_decoder_has_12_width_squared_a_block(vocab: int, depth: int, width: int, scan: bool) -> None:
    blocks = 12 * depth * width**2  # Kaplan et al. (2020), table 1
    norms = (2 * depth + 1) * width
    module = Decoder(vocab=vocab, depth=depth, width=width, heads=4, scan=scan)
    assert counted(module, tokens(1, 2)) == blocks + norms + 2 * vocab * width


def counted(module: nn.Module, x: Array) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: module.init(KEY, x))))


BAD: dict[str, tuple[nn.Module, Array]] = {
    "width 30 4 heads": (Decoder(vocab=5, width=30, heads=4), tokens(1, 2)),
    "width 12 4 heads": (Decoder(vocab=5, width=12, heads=4), tokens(1, 2)),  # rotary cannot pair heads of 3
    "9 8x8": (ConvNet((Pool(9),), 3), normal(1, 8, 8, 1)),
    "Pool window=0": (ConvNet((Pool(0),), 3), normal(1, 8, 8, 1)),
    "Dropout rate=1.5": (ConvNet((Dropout(1.5),), 3), normal(1, 8, 8, 1)),
    "4 2x2": (ConvNet((Pool(), Pool(), Pool(4)), 3), normal(1, 8, 8, 1)),
}


@pytest.mark.parametrize("words", BAD)
def test_fields_that_do_not_fit_each_other_are_refused_with_their_numbers(words: str) -> None:
    module, x = BAD[words]
    with pytest.raises(Refused) as refused:
        jax.eval_shape(lambda: module.init(KEY, x))
    assert all(word in str(refused.value) for word in words.split())
