"""The attention layer: projections, positions, plain attention, and which kernel takes its place.

Letters in shape comments: B batch, T queries, S keys, D width, H heads, G heads of keys and values,
K width of a head.
"""

import functools
import math
import re
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxbig.arrays.dtypes import accumulation_dtype, upcast
from jaxbig.constraints import (
    AtLeastOne,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    choose,
    validate,
)
from jaxbig.distributed.logical_axes import active_axes, platform
from jaxbig.errors import Refused
from jaxbig.models.layers.attention_mask import Segments, places, visible, without_padding
from jaxbig.models.layers.basic import Embedding, Linear, Norm, normalization, soft_cap
from jaxbig.models.layers.parameters import ShardedParameters, all_gather_parameter, constrain
from jaxbig.models.layers.quantized import dense_product
from jaxbig.models.layers.ring_attention import pieces, ring
from jaxbig.models.layers.rotary_scaling import RotaryScaling
from jaxbig.models.layers.ulysses import by_heads
from jaxbig.system.determinism import is_deterministic

Kernel = Literal["auto", "plain", "fused", "splash", "ring", "zigzag", "ulysses"]
OVER_LENGTH = ("ring", "zigzag", "ulysses")
"""Kernels that take keys and values split by length, as queries are."""
PROJECTION = "projection"
"""The name of attention's products with its parameters, for a policy that keeps them alone."""


def sinusoidal(positions: jax.Array, width: int) -> jax.Array:
    """Vaswani et al. (2017), section 3.5: positions [...] -> [..., width], sines then cosines,
    float32."""
    if width % 2:
        raise Refused(
            f"width {width} is odd, and sinusoidal positions are pairs of a sine and a cosine."
        )
    frequency = 10_000.0 ** (-jnp.arange(0, width, 2) / width)  # [D/2]
    angle = positions[..., None].astype(jnp.float32) * jnp.broadcast_to(
        frequency, (*positions.shape, width // 2)
    )
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def rotary(
    x: jax.Array,
    positions: jax.Array | None = None,
    base: float = 10_000.0,
    *,
    scaling: RotaryScaling | None = None,
) -> jax.Array:
    """Rotary positions (Su et al., 2021, eq. 34): turns pairs of [B, T, H, K] by angles that grow
    with positions [B, T] (0, 1, ... if not given). Angles are float32: bf16 cannot count beyond
    256."""
    width = x.shape[3]
    positions = jnp.arange(x.shape[1])[None] if positions is None else positions  # [1 or B, T]
    frequency = base ** (-jnp.arange(0, width, 2) / width)  # [K/2]
    if scaling is not None:
        frequency = scaling.scale(frequency)
    angle = (
        positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    )  # [B, T, 1, K/2]
    sin = jnp.sin(angle)
    cos = jnp.cos(angle)
    first, second = jnp.split(upcast(x), 2, axis=-1)  # [B, T, H, K/2] each
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x.dtype)


class RelativePositions(nn.Module):
    """Biases by distance, a number a head and bucket of distances (Raffel et al., 2020, section
    2.1; T5)."""

    heads: PositiveInt
    """Number of attention heads."""
    causal: bool
    """Count distances backward only."""
    buckets: PositiveInt = 32
    """Number of buckets; near distances have one each."""
    farthest: PositiveInt = 128
    """Distances from here on share the last bucket."""

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Positions [T] and [S] -> biases [1, H, T, S]."""
        distance = queries[:, None] - keys[None]  # [T, S]
        buckets = self.buckets
        shift = jnp.zeros_like(distance)
        if not self.causal:  # half of the buckets for what comes later
            buckets //= 2
            shift = jnp.where(distance < 0, buckets, 0)
            distance = jnp.abs(distance)
        distance = jnp.maximum(distance, 0)
        exact = (
            buckets // 2
        )  # the near ones have a bucket each, the others one a range that grows as a power
        grown = (
            jnp.log(jnp.maximum(distance, 1) / exact)
            / math.log(self.farthest / exact)
            * (buckets - exact)
        )
        far = jnp.minimum(exact + grown.astype(jnp.int32), buckets - 1)
        bucket = shift + jnp.where(distance < exact, distance, far)
        table = Embedding(
            self.buckets, self.heads, std=0.02, axis=None, second="heads", name="table"
        )
        return jnp.moveaxis(table(bucket), -1, 0)[None]  # [1, H, T, S]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool,
    window: int | None = None,
    segments: Segments = None,
    bias: jax.Array | None = None,
    offset: jax.Array | None = None,
    padding: jax.Array | None = None,
    scale: float | None = None,
    cap: float | None = None,
    kernel: str = "auto",
    remat: bool = False,
    splash_block: int = 1024,
    splash_fused: bool = False,
) -> jax.Array:
    """softmax(query key^T / sqrt(K) + bias) value; [B, T, H, K] with keys and values [B, S, G, K]
    -> [B, T, H, K].

    The one place that chooses the kernel. "auto" takes cuDNN's fused one on a GPU (`fused`, half
    precision), the splash kernel on a TPU (`splash`, lengths in 128s, no bias), and the plain one
    elsewhere. "ring" is for a mesh that splits length; without one it is the plain kernel.
    "zigzag" is a ring with even work for all. "ulysses" splits heads where the mesh splits length,
    and is "auto" within. All compute scores and softmax in float32.

    offset: where the queries begin among the keys (a cache); padding: [B], how many keys at the
    beginning of each row of a cache are not seen; window: how near a key must be, itself counted;
    scale: in place of 1 / sqrt(K); cap: the scores' `soft_cap`; remat: the plain kernel's scores
    are computed again in the backward pass, as the other kernels do by themselves; splash_block:
    the most queries and keys in a step of the splash kernel; splash_fused: its gradients in one.
    """
    choose("kernel", kernel, Kernel)
    lengths = query.shape[1], key.shape[1]
    split = math.prod(pieces().values())
    shared: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "segments": segments,
        "scale": scale,
        "cap": cap,
    }
    if kernel == "ulysses" and split > 1:
        if offset is not None:
            raise Refused(
                "kernel 'ulysses' takes no cache: use --model.attention-kernel plain, or a mesh "
                "that does not split length."
            )
        within = functools.partial(
            attend,
            **shared,
            bias=bias,
            remat=remat,
            splash_block=splash_block,
            splash_fused=splash_fused,
        )
        return by_heads(within, query, key, value)
    if kernel == "ulysses":
        kernel = "auto"
    fusible = (
        offset is None
        and query.dtype == jnp.bfloat16
        and not query.shape[3] % 8
        and query.shape[3] <= 128
    )
    # cuDNN sees no window to both sides, and takes a mask or bias for even lengths alone
    fusible &= (window is None or causal) and (
        (bias is None and segments is None) or not any(n % 2 for n in lengths)
    )
    fusible &= split == 1 and has_cudnn()  # its partition rule takes no split length
    fusible &= cap is None
    if kernel == "auto":
        whole = (
            offset is None
            and bias is None
            and not any(n % 128 for n in (lengths[0] / split, lengths[1]))
        )
        on = {"tpu": "splash" if whole else "plain", "gpu": "fused" if fusible else "plain"}
        kernel = on.get(platform(), "plain")
    if kernel in ("ring", "zigzag") and split == 1:
        kernel = "plain"
    if kernel in ("splash", "ring", "zigzag") and (offset is not None or bias is not None):
        raise Refused(
            f"kernel {kernel!r} takes neither a cache nor relative positions: use "
            f"--model.attention-kernel plain."
        )
    if kernel in ("ring", "zigzag"):
        return ring(query, key, value, **shared, zigzag=kernel == "zigzag")
    if kernel == "splash":
        # here: Pallas takes a second to import
        from jaxbig.models.layers.splash_attention import splash

        return splash(query, key, value, **shared, block=splash_block, fused=splash_fused)
    if kernel == "fused" and (not fusible or platform() != "gpu"):
        raise Refused(
            f"attention kernel 'fused' needs an NVIDIA GPU of compute capability 8.0 or more, "
            f"bfloat16, a head width in 8s up to 128 (here {query.shape[3]}), no cache, no soft "
            f"cap, no mesh axis sequence, no --deterministic, and without causal no window: use "
            f"--model.attention-kernel plain."
        )
    if kernel == "fused":
        mask = (
            None if segments is None else visible(*places(query, key, None), False, None, segments)
        )
        reach = None if window is None else (window - 1, 0 if causal else window - 1)
        key, value = (one_for_each_device(each, query.shape[2]) for each in (key, value))
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias,
            mask,
            scale=scale,
            is_causal=causal,
            local_window_size=reach,
            implementation="cudnn",
        )
    mask = None
    if causal or window is not None or segments is not None:
        mask = visible(*places(query, key, offset), causal, window, segments)
    if mask is not None and padding is not None:
        mask = without_padding(mask, padding)
    scored = functools.partial(plain, scale=scale, cap=cap)
    return (jax.checkpoint(scored) if remat else scored)(query, key, value, bias, mask)


def has_cudnn() -> bool:
    """Whether the GPUs here run cuDNN's fused attention: NVIDIA's from Ampere on; True where none
    is here to ask.

    A deterministic run has none: with XLA's flag the compiled step fails when it is called
    ("raw_hash_map::at", jax 0.11.2 on an H200).
    """
    if jax.default_backend() != "gpu":
        return True
    if is_deterministic():
        return False
    capability = str(
        getattr(jax.devices()[0], "compute_capability", "")
    )  # "9.0"; of AMD's GPUs "gfx90a"
    found = re.fullmatch(r"(\d+)\.\d+", capability)
    return found is not None and int(found[1]) >= 8


def one_for_each_device(x: jax.Array, heads: int) -> jax.Array:
    """A single head of keys or values [B, S, 1, K] as one for each device that has some of the
    query's heads, since cuDNN's partition rule wants keys split as queries are: [B, S, N, K]. Other
    numbers of heads stay as they are."""
    [names] = nn.logical_to_mesh_axes(("heads",)) or (None,)
    devices = math.prod(active_axes(names).values())
    if x.shape[2] > 1 or heads == 1 or devices == 1:
        return x
    return constrain(jnp.repeat(x, devices, axis=2), "batch", None, "heads", None)


@jax.custom_vjp
def softmax(scores: jax.Array) -> jax.Array:
    """Over the last axis.

    Its derivative is written out, to keep one array of the scores' size, not two, and because XLA
    makes a quotient's in one way or another by what else is in the program, and the last bit with
    it (`Experiment.reproducible`).
    """
    return softmax_forward(scores)[0]


def softmax_forward(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    weights = powers / jnp.sum(powers, axis=-1, keepdims=True)
    return weights, weights


def softmax_backward(weights: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    mean = jnp.sum(gradient * weights, axis=-1, keepdims=True)
    return ((gradient - mean) * weights,)


softmax.defvjp(softmax_forward, softmax_backward)


def plain(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """As `attend`, with the scores of all pairs in memory; bias and mask are [1 or B, 1 or H, T,
    S]."""
    (batch, length, heads, width) = query.shape
    groups = key.shape[2]

    def grouped(x: jax.Array | None) -> jax.Array | None:
        """[1 or B, 1 or H, T, S] -> [1 or B, 1 or G, H / G, T, S]."""
        if x is None or x.shape[1] == 1:
            return (
                x
                if x is None
                else jnp.broadcast_to(x[:, :, None], (*x.shape[:2], heads // groups, *x.shape[2:]))
            )
        return x.reshape(x.shape[0], groups, heads // groups, *x.shape[2:])

    query = query.reshape(batch, length, groups, heads // groups, width)
    scored = functools.partial(of_heads, scale=scale, cap=cap)
    each = jax.vmap(scored, in_axes=(3, None, None, 2, 2), out_axes=3)
    return each(query, key, value, grouped(bias), grouped(mask)).reshape(
        batch, length, heads, value.shape[3]
    )


def of_heads(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: Any,
    mask: Any,
    *,
    scale: float | None,
    cap: float | None,
) -> jax.Array:
    """Queries [B, T, H, K], keys and values [B, S, H, K] -> [B, T, H, K]."""
    scores = jnp.einsum(
        "bthk,bshk->bhts", query, key, preferred_element_type=accumulation_dtype(query.dtype)
    )
    scores = soft_cap(scores * (query.shape[3] ** -0.5 if scale is None else scale), cap)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias, scores.shape).astype(scores.dtype)
    if mask is not None:
        scores = jnp.where(
            jnp.broadcast_to(mask, scores.shape), scores, -0.7 * jnp.finfo(scores.dtype).max
        )
    return jnp.einsum("bhts,bshk->bthk", softmax(scores).astype(value.dtype), value)


class Attention(nn.Module, kw_only=True):
    """Multi-head attention (Vaswani et al., 2017, section 3.2.2), with `kv_heads` grouped-query
    (Ainslie et al., 2023).

    To itself, or with `memory` to another sequence. With `cache` it takes the next tokens alone,
    and keeps the keys and values of those before in the collection "cache". Where "intermediates"
    are kept, it adds its `weights` [B, T, H, S].
    """

    heads: PositiveInt
    """Number of heads, a divisor of the width."""
    kv_heads: PositiveInt | None = None
    """Heads of keys and values; None: as many as heads."""
    head_width: PositiveInt | None = None
    """Width of a head; None: the width divided by heads."""
    causal: bool = False
    """Mask later positions."""
    window: PositiveInt | None = None
    """Positions seen to one side, itself included; None: all."""
    rotary: bool = False
    """Rotary positions on queries and keys."""
    rotary_base: AtLeastOne = 10_000.0
    """Base of the rotary positions' wavelengths."""
    rotary_scaling: RotaryScaling | None = None
    """How the rotary positions' frequencies are changed; None: not."""
    bias: bool = False
    """On all four projections."""
    qkv_bias: bool | None = None
    """On the projections of queries, keys and values; None: as bias."""
    qk_norm: Norm | None = None
    """Normalization of each head's queries and keys."""
    epsilon: NonNegativeFloat = 1e-6
    """Of that normalization."""
    attention_scale: PositiveFloat | None = None
    """Factor of the scores; None: 1 / sqrt(width of a head)."""
    attention_soft_cap: PositiveFloat | None = None
    """Bound of the scores, which they approach smoothly; None: no bound."""
    scale: float = 1.0
    """Of the output projection's initial values."""
    kernel: Kernel = "auto"
    """Implementation: plain, fused (cuDNN), splash (TPU), ring, zigzag, ulysses, or auto."""
    remat: bool = False
    """Recompute the scores in the backward pass."""
    splash_block: PositiveInt = 1024
    """The most queries and keys in a step of the splash kernel."""
    splash_fused: bool = False
    """Compute the splash kernel's gradients in one kernel."""
    joint_key_value: bool = True
    """Make keys and values in one product."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        segments: jax.Array | None = None,
        memory_segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        scores: jax.Array | None = None,
        offset: jax.Array | None = None,
        cache: int = 0,
        padding: jax.Array | None = None,
        windowed: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, T, D], memory [B, S, D], segments [B, T] and [B, S], positions [B, T], scores [1,
        H, T, S] (added before the softmax), offset [] (tokens in the cache), padding [B] (how many
        of a row's first ones in the cache are not seen), windowed [] (whether the window counts;
        None: it does) -> [B, T, D]."""
        validate(self)
        width = x.shape[-1]
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        head = self.head_width or width // self.heads
        if self.head_width and self.rotary and head % 2:
            raise Refused(f"head_width {head}: rotary positions need an even one.")
        if not self.head_width and (width % self.heads or (self.rotary and head % 2)):
            raise Refused(
                f"width {width} does not divide into heads {self.heads} of "
                f"{'an even' if self.rotary else 'one'} width."
            )
        if self.heads % kv_heads:
            raise Refused(
                f"kv_heads {kv_heads} does not divide heads {self.heads}: make it a divisor."
            )
        axes = ("embed", "heads", None)
        source = x if memory is None else memory
        bias = self.bias if self.qkv_bias is None else self.qkv_bias
        query = Linear((self.heads, head), axes, bias=bias, name="query")(x)  # [B, T, H, K]
        shared = None if kv_heads == 1 else "heads"  # a single head cannot be split over the mesh
        joint = ("embed", None, shared, None)
        if cache and (segments is not None or x.shape[1] > cache):
            raise Refused(
                f"a cache of {cache} takes at most {cache} tokens (here {x.shape[1]}), and no "
                f"segments."
            )
        query = checkpoint_name(query, PROJECTION)
        query = constrain(query, "batch", "length", "heads", None)
        split = "length" if self.kernel in OVER_LENGTH else None  # else each place has all keys
        # [B, S, G, K] each
        if self.joint_key_value:
            both = Linear((2, kv_heads, head), joint, bias=bias, name="key_value")(source)
            both = checkpoint_name(both, PROJECTION)  # [B, S, 2, G, K]
            both = constrain(both, "batch", split, None, shared, None)
            key = both[:, :, 0]
            value = both[:, :, 1]
        else:
            stored = ShardedParameters(
                (source.shape[-1], 2, kv_heads, head), joint, bias, name="key_value"
            )()
            key, value = (
                constrain(checkpoint_name(each, PROJECTION), "batch", split, shared, None)
                for each in _apart(source, *stored, shared)
            )
        if self.qk_norm is not None:
            normalize = functools.partial(normalization, self.qk_norm, self.epsilon, self.bias)
            query = normalize(name="query_norm")(query)  # type: ignore[operator]
            key = normalize(name="key_norm")(key)  # type: ignore[operator]
        if self.rotary:
            if positions is None and offset is not None:
                positions = jnp.arange(x.shape[1])[None] + offset
            turned = functools.partial(
                rotary, positions=positions, base=self.rotary_base, scaling=self.rotary_scaling
            )
            query, key = (turned(each) for each in (query, key))
        if cache and memory is None:
            key = self._remember("key", key, cache, offset)
            value = self._remember("value", value, cache, offset)
        pair = None
        if segments is not None and not cache:
            pair = segments, segments if memory is None else memory_segments
        elif memory_segments is not None and memory is not None:
            pair = jnp.ones(x.shape[:2], jnp.int32), memory_segments

        def attend_within(window: int | None, kernel: str = self.kernel) -> Any:
            return functools.partial(
                attend,
                causal=self.causal and memory is None,
                window=window,
                segments=pair,  # type: ignore[arg-type]
                bias=scores,
                offset=offset if cache and memory is None else None,
                padding=padding if cache and memory is None else None,
                scale=self.attention_scale,
                cap=self.attention_soft_cap,
                kernel=kernel,
                remat=self.remat,
                splash_block=self.splash_block,
                splash_fused=self.splash_fused,
            )

        def attended(value: jax.Array, kernel: str = self.kernel) -> jax.Array:
            here = attend_within(self.window if memory is None else None, kernel)
            if windowed is None:
                return here(query, key, value)
            return jax.lax.cond(windowed, here, attend_within(None, kernel), query, key, value)

        y = attended(value)
        if self.is_mutable_collection("intermediates") and not cache:
            each = jnp.eye(key.shape[1], dtype=value.dtype)[None, :, None]  # [1, S, 1, S]
            each = jnp.broadcast_to(each, (*key.shape[:3], key.shape[1]))
            self.sow("intermediates", "weights", attended(each, "plain"))  # [B, T, H, S]
        y = constrain(y, "batch", "length", "heads", None)
        out = Linear(
            (width,),
            ("heads", None, "embed"),
            inputs=2,
            bias=self.bias,
            scale=self.scale,
            name="out",
        )
        return constrain(checkpoint_name(out(y), PROJECTION), "batch", "length", None)

    def _remember(
        self, name: str, new: jax.Array, cache: int, offset: jax.Array | None
    ) -> jax.Array:
        """All keys or values up to now, [B, cache, G, K]; those beyond are zero and not seen."""
        shape = (new.shape[0], cache, *new.shape[2:])
        kept = self.variable("cache", name, jnp.zeros, shape, new.dtype)
        at = (0, jnp.int32(0) if offset is None else offset, 0, 0)
        kept.value = jax.lax.dynamic_update_slice(kept.value, new, at)
        return kept.value


def _apart(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, heads: str | None
) -> list[jax.Array]:
    """[B, S, D], a kernel [D, 2, G, K] and a bias [2, G, K] as stored -> two products [B, S, G,
    K]."""
    products = []
    for which in range(2):
        whole = all_gather_parameter(kernel[:, which], ("embed", heads, None), x.dtype)
        y = dense_product(x, whole)
        if bias is not None:
            whole = all_gather_parameter(bias[which], (heads, None), x.dtype)
            y = y + jnp.broadcast_to(whole, y.shape)
        products.append(y)
    return products
