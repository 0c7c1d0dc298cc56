"""Parts of Transformer models (Vaswani et al., 2017): a block, a stack of blocks, their fields.

Letters in shape comments: B batch, L length, S length of the memory, D width, F hidden width.
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxbig.arrays.batch_mask import batch_mask, real_positions
from jaxbig.arrays.dtypes import Dtype, accumulation_dtype
from jaxbig.constraints import (
    AtLeastOne,
    DropRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    choose,
    validate,
)
from jaxbig.errors import Refused
from jaxbig.models.base import Model, Remat
from jaxbig.models.layers.attention import PROJECTION, Attention, Kernel, RelativePositions
from jaxbig.models.layers.basic import ACTIVATIONS, Linear, Norm, drop, drop_path, normalization
from jaxbig.models.layers.mixture_of_experts import LOSSES, Dispatch, Experts
from jaxbig.models.layers.parameters import (
    ShardedParameters,
    all_gather_parameter,
    chunked_sum,
    constrain,
    parameter,
)
from jaxbig.models.layers.pipeline import stages, through_stages
from jaxbig.models.layers.quantized import dense_product
from jaxbig.models.layers.rotary_scaling import RotaryScaling

Positions = Literal["rotary", "learned", "sinusoidal", "relative", "none"]
Gate = Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu"]
GATED = {"swiglu": "silu", "geglu": "gelu_tanh"}
POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names(PROJECTION),
    "full": None,
}


class TransformerFields(Model, kw_only=True):
    """The fields that every Transformer and its blocks share."""

    heads: PositiveInt = 8
    """Number of attention heads, a divisor of the width unless head_width is given."""
    head_width: PositiveInt | None = None
    """Width of an attention head; None: the width divided by heads."""
    kv_heads: PositiveInt | None = None
    """Heads of keys and values, a divisor of heads (grouped-query attention); None: as heads."""
    mlp_width: PositiveInt | None = None
    """Hidden width of the MLP; None: 4 times the width, or 8/3 times in 64s with a gate."""
    activation: Gate = "gelu_tanh"
    """Of the MLP; swiglu and geglu are gated (Shazeer, 2020)."""
    mlp_chunks: NonNegativeInt = 0
    """Chunks of the hidden width that the MLP computes one at a time; less memory for big models,
    whose sharded kernels are then all-gathered a chunk at a time. 0: all at once."""
    experts: NonNegativeInt = 0
    """Number of experts in each block (a mixture of experts); 0: one MLP for all tokens."""
    experts_per_token: PositiveInt = 2
    """Number of experts that each token is routed to."""
    load_balance_loss: NonNegativeFloat = 0.01
    """Weight of the experts' load-balancing loss, which is 1 if they are used evenly."""
    router_z_loss: NonNegativeFloat = 0.0
    """Weight of the router's z-loss, logsumexp(scores)^2, which keeps scores small (ST-MoE: 1e-3).
    """
    expert_dispatch: Dispatch = "gather"
    """How tokens reach experts over the mesh's `expert`: all are gathered, or all_to_all, each goes
    to its own; that sends less where experts_per_token is below the axis."""
    norm: Norm = "rms"
    """Layer normalization, or RMS normalization, which does not center; rms_plus_one multiplies by
    1 + its scale (Gemma)."""
    pre_norm: bool = True
    """Normalize the input of each branch (pre-norm) or the sum after it (post-norm)."""
    sandwich_norm: bool = False
    """With pre_norm, normalize the output of each branch too, before it is added (Gemma 2)."""
    qk_norm: bool = False
    """Normalize each head's queries and keys (Qwen 3)."""
    epsilon: NonNegativeFloat = 1e-6
    """Of the normalization."""
    bias: bool = False
    """On every linear layer and LayerNorm."""
    qkv_bias: bool | None = None
    """On the projections of queries, keys and values (Qwen 2); None: as bias."""
    mlp_bias: bool | None = None
    """On the linear layers of the MLP; None: as bias."""
    positions: Positions = "rotary"
    """rotary (Su et al., 2021), learned, sinusoidal (Vaswani et al., 2017), relative (T5), or
    none."""
    rotary_base: AtLeastOne = 10_000.0
    """Base of the rotary positions' wavelengths; larger for longer texts."""
    rotary_scaling: RotaryScaling = RotaryScaling()
    """How rotary positions are stretched to longer texts: RotaryScaling (not), LinearScaling or
    Llama3Scaling."""
    window: PositiveInt | None = None
    """Positions that attention sees to one side, itself included; None: all."""
    window_pattern: tuple[bool, ...] = (True,)
    """Which blocks have the window, repeated over the depth; True False is every other block, from
    the first on (Gemma 2)."""
    attention_scale: PositiveFloat | None = None
    """Factor of the attention scores; None: 1 / sqrt(width of a head). T5 has 1."""
    attention_soft_cap: PositiveFloat | None = None
    """Bounds attention scores smoothly, as cap * tanh(score / cap) (Gemma 2: 50); None: no bound.
    """
    dropout: DropRate = 0.0
    """Dropout rate after the embedding and at the end of each branch."""
    drop_path: DropRate = 0.0
    """Stochastic depth: drop rate of the last block's branches; linear from 0 at the first."""
    layer_scale: float | None = None
    """What the factors of each branch's output start with, one for each channel (Touvron et al.,
    2021); None: there are none."""
    scan: bool = False
    """Compile one block and scan it over the depth, with stacked parameters: compile time does not
    grow with the depth. Small models run faster unrolled."""
    remat: Remat = "none"
    """What the backward pass recomputes. attention: scores and softmax (plain kernel); dots: all
    but products with parameters; projections: all but those of attention."""
    remat_group: PositiveInt = 1
    """With scan, in training: checkpoints every k-th block only (Chen et al., 2016, section 4.3). A
    divisor of the depth; its square root saves most memory, for one more forward pass."""
    microbatches: NonNegativeInt = 0
    """With scan: parts of the batch that pass the blocks one after another, over the mesh's `stage`
    several at a time (a pipeline). Each draws its own dropout. 0: the whole batch at once."""
    attention_kernel: Kernel = "auto"
    """Attention implementation: plain, fused (cuDNN), splash (TPU), or auto, the best for the
    device; over the mesh's `sequence`: ring, zigzag (a balanced ring) or ulysses (all-to-all)."""
    splash_block: PositiveInt = 1024
    """The most queries and keys in a step of the splash kernel, in 128s; less takes less of a TPU's
    memory on the chip."""
    splash_fused: bool = False
    """Compute the gradients of the splash kernel in one kernel, not two: faster for long rows, for
    a gradient of the queries in memory for each block of keys."""
    joint_key_value: bool = True
    """Make keys and values in one product. Two are faster on a TPU; the parameters are the same."""
    weigh_hidden: bool = False
    """With experts, multiply hidden activations by the router's weight, not the output: less to
    recompute in the backward pass."""
    dtype: Dtype = "float32"
    """Of the computation; parameters, norms, softmax and logits are float32."""

    def common_fields(self) -> dict[str, Any]:
        """The values of these fields by name, to pass to a part that has them too."""
        names = [
            field.name
            for field in dataclasses.fields(TransformerFields)
            if field.name not in ("parent", "name")
        ]
        return {name: getattr(self, name) for name in names}

    def check_fields(self) -> None:
        if self.sandwich_norm and not self.pre_norm:
            raise Refused("sandwich_norm needs pre_norm, which is off: turn on both or neither.")
        if not self.window_pattern:
            raise Refused("window_pattern is empty: give it True or False for at least one block.")
        if False in self.window_pattern and self.window is None:
            raise Refused("window_pattern says which blocks have the window: give a window too.")
        if self.rotary_scaling != RotaryScaling() and self.positions != "rotary":
            raise Refused(
                f"rotary_scaling {type(self.rotary_scaling).__name__}: it is for positions rotary, "
                f"not {self.positions}."
            )

    def normalize(self, name: str, *, learned: bool = True) -> nn.Module:
        return normalization(self.norm, self.epsilon, self.bias, name, learned=learned)


@struct.dataclass
class Context:
    """Inputs of every block of a stack besides x; None where not needed.

    memory: [B, S, D] to attend to; segments: [B, L] and memory_segments: [B, S], who sees whom;
    positions: [B, L]; offset: [], how many tokens are in the cache; padding: [B], how many of a
    row's first tokens in the cache are padding; condition: [B, D], by which each branch of a block
    is scaled, shifted and gated; memory_scores: [1, H, L, S], added to the scores of the memory.
    """

    memory: Any = None
    segments: Any = None
    memory_segments: Any = None
    positions: Any = None
    offset: Any = None
    padding: Any = None
    condition: Any = None
    memory_scores: Any = None


def modulation(condition: jax.Array, count: int, width: int, name: str) -> list[jax.Array]:
    """A condition [B, D] -> `count` arrays [B, 1, width], 0 at first, to shift, scale or gate with
    (adaLN-zero; Peebles and Xie, 2023, section 3.2)."""
    y = Linear((count, width), ("embed", None, None), scale=0.0, name=name)(condition)
    y = constrain(y, "batch", None, None)
    return [y[:, i : i + 1] for i in range(count)]


def default_mlp_width(width: int, gated: bool) -> int:
    """The hidden width of an MLP where `mlp_width` is None."""
    return (-(-width * 8 // 3) + 63) // 64 * 64 if gated else 4 * width


class Block(TransformerFields, kw_only=True):
    """Attention, cross-attention to a memory with `cross`, then an MLP; each is added to
    what it was given.

    With a condition each branch is shifted, scaled and gated by it, and norms learn nothing.
    `out_scale` shrinks the initial values of what is added, so that the sum over all blocks keeps
    its size (Radford et al., 2019).
    """

    causal: bool = False
    """Mask later positions."""
    cross: bool = False
    """Attend to a memory too."""
    out_scale: float = 1.0
    """Scale of the initial values of what the block adds."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: Context,
        scores: Any,
        rate: float | jax.Array,
        train: bool,
        cache: int = 0,
        windowed: jax.Array | None = None,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D]; scores: biases of attention [1, H, L, S]; rate: of drop path, in
        this block; windowed: [], whether the window counts here (None: it does)."""
        width = x.shape[-1]
        c = context
        same = {
            "bias": self.bias,
            "qkv_bias": self.qkv_bias,
            "qk_norm": self.norm if self.qk_norm else None,
            "epsilon": self.epsilon,
            "attention_scale": self.attention_scale,
            "attention_soft_cap": self.attention_soft_cap,
            "scale": self.out_scale,
            "kernel": self.attention_kernel,
            "splash_block": self.splash_block,
            "splash_fused": self.splash_fused,
            "joint_key_value": self.joint_key_value,
            "kv_heads": self.kv_heads,
            "head_width": self.head_width,
        }
        same["remat"] = self.remat == "attention"

        def add(x: jax.Array, name: str, branch: Any) -> jax.Array:
            conditioned = c.condition is not None
            norm = self.normalize(f"{name}_norm", learned=not conditioned)
            y = norm(x) if self.pre_norm else x  # type: ignore[operator]
            if conditioned:
                shift, factor, gate = modulation(c.condition, 3, width, f"{name}_modulation")
                y = branch(y * (1 + factor) + shift) * gate
            else:
                y = branch(y)
            if self.sandwich_norm:
                y = self.normalize(f"{name}_out_norm")(y)  # type: ignore[operator]
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                scale = parameter(self, f"{name}_scale", init, (width,), (None,), y.dtype)
                y = y * jnp.broadcast_to(scale, y.shape)
            x = x + drop_path(drop(y, self.dropout, train), rate, train)
            return x if self.pre_norm else norm(x)  # type: ignore[operator]

        turned = {
            "rotary": self.positions == "rotary",
            "rotary_base": self.rotary_base,
            "rotary_scaling": self.rotary_scaling,
            "window": self.window,
        }
        attention = Attention(
            heads=self.heads, causal=self.causal, **same, **turned, name="attention"
        )
        x = add(
            x,
            "attention",
            lambda y: attention(
                y,
                segments=c.segments,
                positions=c.positions,
                scores=scores,
                offset=c.offset,
                cache=cache,
                padding=c.padding,
                windowed=windowed,
            ),
        )
        if self.cross:
            cross = Attention(heads=self.heads, **same, name="cross")
            pair = (c.segments, c.memory_segments)
            x = add(
                x, "cross", lambda y: cross(y, c.memory, *pair, scores=c.memory_scores, cache=cache)
            )
        return add(x, "mlp", lambda y: self.mlp(y, width, c.segments))

    def mlp(self, x: jax.Array, width: int, segments: jax.Array | None) -> jax.Array:
        """[B, L, D], of segments [B, L] -> [B, L, D]."""
        choose("activation", self.activation, Gate)
        gated = self.activation in GATED
        hidden = self.mlp_width or default_mlp_width(width, gated)
        name = GATED.get(self.activation, self.activation)
        if self.experts:
            mixed = Experts(
                experts=self.experts,
                chosen=self.experts_per_token,
                hidden=hidden,
                activation=name,
                gated=gated,
                chunks=self.mlp_chunks,
                load_balance_loss=self.load_balance_loss,
                router_z_loss=self.router_z_loss,
                scale=self.out_scale,
                dispatch=self.expert_dispatch,
                weigh_hidden=self.weigh_hidden,
                name="experts",
            )
            return mixed(x, segments)
        activation = ACTIVATIONS[name]
        if self.mlp_chunks:
            return self.chunked_mlp(x, width, hidden, gated, activation)
        bias = self.bias if self.mlp_bias is None else self.mlp_bias
        y = Linear((hidden,), ("embed", "mlp"), bias=bias, name="up")(x)  # [B, L, F]
        y = constrain(y, "batch", "length", "mlp")
        if gated:
            gate = Linear((hidden,), ("embed", "mlp"), bias=bias, name="gate")(x)
            y = y * activation(constrain(gate, "batch", "length", "mlp"))
        else:
            y = activation(y)
        y = Linear((width,), ("mlp", "embed"), bias=bias, scale=self.out_scale, name="down")(y)
        return constrain(y, "batch", "length", None)

    def chunked_mlp(
        self, x: jax.Array, width: int, hidden: int, gated: bool, activation: Any
    ) -> jax.Array:
        """Like `mlp`, with the same parameters, a chunk of the hidden width at a time."""
        inward = ("embed", "mlp")
        outward = ("mlp", "embed")
        has_bias = self.bias if self.mlp_bias is None else self.mlp_bias
        names = ("up", "gate") if gated else ("up",)
        parts = [
            ShardedParameters((width, hidden), inward, has_bias, name=name)() for name in names
        ]
        kernel, bias = ShardedParameters(
            (hidden, width), outward, has_bias, self.out_scale, name="down"
        )()
        kernels: list[Any] = [(each, inward) for each, _ in parts] + [(kernel, outward)]
        kernels += [(each, inward[1:]) for _, each in parts if each is not None]

        def work(x: jax.Array, *kernels: jax.Array) -> jax.Array:
            into = kernels[: len(parts)]
            down = kernels[len(parts)]
            biases = kernels[len(parts) + 1 :]
            # up and gate, [B, L, F/C] each
            ys = [constrain(dense_product(x, kernel), "batch", "length", "mlp") for kernel in into]
            if biases:
                ys = [y + bias[None, None] for y, bias in zip(ys, biases, strict=True)]
            y = ys[0] * activation(ys[1]) if gated else activation(ys[0])
            return constrain(dense_product(y, down), "batch", "length", None)

        y = chunked_sum(self.mlp_chunks, "mlp", work, x, kernels)
        if bias is None:
            return y
        return y + all_gather_parameter(bias, outward[1:], x.dtype)[None, None]


class Stack(TransformerFields, kw_only=True):
    """`depth` blocks, unrolled or scanned; with pre_norm a final normalization."""

    depth: PositiveInt
    """Number of blocks."""
    causal: bool = False
    """Mask later positions."""
    cross: bool = False
    """Attend to a memory too."""
    final_norm: bool = True
    """With pre_norm, normalize what the last block gives."""

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, train: bool, cache: int = 0) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        validate(self)
        if self.remat_group > 1 and (not self.scan or self.depth % self.remat_group):
            raise Refused(
                f"remat_group {self.remat_group}: it needs scan, and must divide the depth, which "
                f"is {self.depth}."
            )
        if self.microbatches:
            self.check_pipeline()
        choose("remat", self.remat, Remat)
        choose("positions", self.positions, Positions)
        scores = None
        if self.positions == "relative":  # one table for all blocks, as T5
            queries = jnp.arange(x.shape[1]) + (0 if context.offset is None else context.offset)
            relative = RelativePositions(self.heads, self.causal, name="relative")
            scores = relative(queries, jnp.arange(cache or x.shape[1])).astype(x.dtype)

        def run(
            block: Block,
            x: jax.Array,
            context: Context,
            scores: Any,
            rate: float | jax.Array,
            windowed: Any = None,
        ) -> jax.Array:
            # a constant rate is no argument: if it is 0, drop path costs nothing
            fixed = isinstance(rate, float)

            def inner(
                block: Block,
                x: jax.Array,
                context: Context,
                scores: Any,
                varying: Any,
                windowed: Any,
            ) -> jax.Array:
                return block(x, context, scores, rate if fixed else varying, train, cache, windowed)

            if self.remat in POLICIES:
                inner = nn.remat(inner, prevent_cse=not self.scan, policy=POLICIES[self.remat])
            return inner(block, x, context, scores, None if fixed else rate, windowed)

        branches = (3 if self.cross else 2) * self.depth
        fields = self.common_fields() | {
            "causal": self.causal,
            "cross": self.cross,
            "out_scale": branches**-0.5,
        }
        rates = [self.drop_path * layer / max(self.depth - 1, 1) for layer in range(self.depth)]
        fields.pop("window")
        windows = [
            self.window if self.window_pattern[layer % len(self.window_pattern)] else None
            for layer in range(self.depth)
        ]
        if self.scan:
            mixed = len(set(windows)) > 1
            varying = (
                jnp.array(rates) if self.drop_path else None,
                jnp.array([window is not None for window in windows]) if mixed else None,
            )
            fields["window"] = self.window if mixed else windows[0]
            if self.pipelined(x.shape[0], train, cache):
                block = Block(**fields, name="block", parent=None)
                x = self.in_stages(block, x, context, scores, varying, train)
            else:
                block = Block(**fields, name="block")
                grouped = self.remat_group > 1 and train and not self.is_initializing()

                def one(
                    block: Block, x: jax.Array, varying: Any, context: Context, scores: Any
                ) -> tuple[jax.Array, None]:
                    rate, windowed = varying
                    return run(
                        block, x, context, scores, 0.0 if rate is None else rate, windowed
                    ), None

                stack = (
                    in_groups(one, self.depth, self.remat_group)
                    if grouped
                    else scanned(one, self.depth)
                )
                x, _ = stack(block, x, varying, context, scores)
        else:
            for layer, (rate, window) in enumerate(zip(rates, windows, strict=True)):
                block = Block(**fields, window=window, name=f"block_{layer}")
                x = run(block, x, context, scores, rate)
        return self.normalize("norm")(x) if self.pre_norm and self.final_norm else x  # type: ignore

    @nn.nowrap
    def check_pipeline(self) -> None:
        """Raises `Refused` unless the blocks can be in stages."""
        if not self.scan:
            raise Refused(
                f"microbatches {self.microbatches}: they need the blocks scanned: turn on scan."
            )
        if self.experts and stages() > 1:
            raise Refused(
                f"experts {self.experts} do not run in stages, and the mesh has stage={stages()}: "
                f"use --mesh.expert."
            )
        if self.depth % (stages() * self.remat_group):
            groups = f" in groups of remat_group {self.remat_group}" * (self.remat_group > 1)
            raise Refused(
                f"depth {self.depth} does not divide over stage={stages()}{groups}: make it a "
                f"multiple of {stages() * self.remat_group}, or change --mesh.stage."
            )

    @nn.nowrap
    def pipelined(self, rows: int, train: bool, cache: int) -> bool:
        """Whether these rows pass in microbatches: not those of a cache, of a capture of
        intermediates, or, but in training, of a number that does not divide."""
        if not self.microbatches or cache or self.is_initializing():
            return False
        if train and rows % self.microbatches:
            raise Refused(
                f"{rows} rows do not divide into microbatches {self.microbatches}: make it a "
                f"divisor, or --data.batch a multiple."
            )
        return not (rows % self.microbatches or self.is_mutable_collection("intermediates"))

    def in_stages(
        self, block: Block, x: jax.Array, context: Context, scores: Any, varying: Any, train: bool
    ) -> jax.Array:
        """The blocks, over the mesh's `stage`; see `through_stages`."""
        leaves, structure = jax.tree.flatten(context)
        of_rows = [leaf.shape[:1] == x.shape[:1] for leaf in leaves]
        real = real_positions(*x.shape[:2]) if self.experts else None
        keys = None
        if train and self.has_rng("dropout"):
            numbers = jnp.arange(self.depth)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), numbers)

        def one(x: jax.Array, layer: Any, rows: Any, number: jax.Array) -> Any:
            params, (rate, windowed), key = layer
            mine, real = rows
            mine = iter(mine)
            c = structure.unflatten(
                next(mine) if by_row else leaf for leaf, by_row in zip(leaves, of_rows, strict=True)
            )
            rngs = {} if key is None else {"dropout": jax.random.fold_in(key, number)}
            rate = 0.0 if rate is None else rate
            with batch_mask(real):
                x, changed = block.apply(
                    {"params": params},
                    *(x, c, scores, rate, train, 0, windowed),
                    rngs=rngs,
                    mutable=[LOSSES],
                )
            losses = [jnp.zeros((), accumulation_dtype(x.dtype)), *jax.tree.leaves(changed)]
            return x, functools.reduce(jnp.add, losses)

        if self.remat in POLICIES:
            one = jax.checkpoint(one, prevent_cse=False, policy=POLICIES[self.remat])

        def some(layers: Any, x: jax.Array, rows: Any, number: jax.Array) -> Any:
            x, losses = jax.lax.scan(lambda x, layer: one(x, layer, rows, number), x, layers)
            return x, jnp.sum(losses)

        def groups(layers: Any, x: jax.Array, rows: Any, number: jax.Array) -> Any:
            group = jax.checkpoint(some, prevent_cse=False)
            layers = jax.tree.map(
                lambda leaf: leaf.reshape(-1, self.remat_group, *leaf.shape[1:]), layers
            )
            x, losses = jax.lax.scan(lambda x, layer: group(layer, x, rows, number), x, layers)
            return x, jnp.sum(losses)

        layers = (nn.meta.unbox(self.variables["params"]["block"]), varying, keys)
        rows = ([leaf for leaf, by_row in zip(leaves, of_rows, strict=True) if by_row], real)
        function = groups if self.remat_group > 1 and train else some
        x, losses = through_stages(function, layers, x, rows, self.microbatches)
        if self.experts:
            zero = functools.partial(jnp.zeros_like, losses)
            self.sow(LOSSES, "router", losses, init_fn=zero, reduce_fn=jnp.add)
        return x


def scanned(one: Any, length: int) -> Any:
    """Scans `one(block, x, varying, ...) -> (x, None)` over `length` layers, whose parameters are
    stacked."""
    return nn.scan(
        one,
        variable_axes={"params": 0, "cache": 0, "intermediates": 0, LOSSES: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),  # type: ignore[arg-type]
        length=length,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def in_groups(one: Any, depth: int, group: int) -> Any:
    """Like `scanned`, in groups that are recomputed from their input in the backward pass."""

    def grouped(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(depth // group, group, *leaf.shape[1:]), tree)

    def group_of_layers(
        block: Block, x: jax.Array, varying: Any, context: Context, scores: Any
    ) -> tuple[jax.Array, None]:
        return scanned(one, group)(block, x, varying, context, scores)

    def all_groups(block: Block, x: jax.Array, varying: Any, *rest: Any) -> tuple[jax.Array, None]:
        return scanned(nn.remat(group_of_layers, prevent_cse=False), depth // group)(
            block, x, grouped(varying), *rest
        )

    return nn.map_variables(all_groups, "params", trans_in_fn=grouped)
