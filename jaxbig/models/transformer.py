"""What all Transformers are made of (Vaswani et al., 2017): one block, and a stack of it.

Letters in shape comments: B batch, L length, S length of the memory, D width, F hidden width.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import AtLeastOne, DropRate, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxbig.errors import Refused
from jaxbig.models.layers.attention import PROJECTION, Attention, Kernel, RelativePositions
from jaxbig.models.layers.basic import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    RMSNorm,
    Stored,
    choose,
    constrain,
    drop,
    drop_path,
    gather,
    in_pieces,
)
from jaxbig.models.layers.mixture_of_experts import LOSSES, Experts

Positions = Literal["rotary", "learned", "sinusoidal", "relative", "none"]
Gate = Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu"]
GATED = {"swiglu": "silu", "geglu": "gelu_tanh"}
Remat = Literal["none", "attention", "dots", "projections", "full"]
"""In the order of what they save."""
POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names(PROJECTION),
    "full": None,
}


class Fields(nn.Module, kw_only=True):
    """The fields that every Transformer and its blocks share."""

    heads: PositiveInt = 8
    kv_heads: PositiveInt | None = None
    """Heads of keys and values, which divide heads (grouped-query attention); None: as many as heads."""
    mlp_width: PositiveInt | None = None
    """Width inside the two-layer perceptron; None: 4 times the width, or 8/3 times in 64s with a gate."""
    activation: Gate = "gelu_tanh"
    """Of the perceptron; swiglu and geglu have a gate besides (Shazeer, 2020)."""
    mlp_chunks: NonNegativeInt = 0
    """Computes each perceptron in that many pieces of its hidden width, one at a time, so that neither all of it nor
    the whole kernels, where those are stored in pieces, are ever in memory: for big models. 0: all at once."""
    experts: NonNegativeInt = 0
    """How many perceptrons there are to choose from in each block (a mixture of experts); 0: one, for all tokens."""
    experts_per_token: PositiveInt = 2
    """How many of them each token is seen by."""
    load_balance_loss: NonNegativeFloat = 0.01
    """Adds this to the loss, times how unevenly the experts of each block are used (1: evenly)."""
    router_z_loss: NonNegativeFloat = 0.0
    """Adds this times the square of log(sum(exp(scores of the experts))), which keeps those small (ST-MoE: 1e-3)."""
    norm: Literal["layer", "rms"] = "rms"
    pre_norm: bool = True
    """Normalize what enters a branch (pre-norm); else the sum after it (post-norm)."""
    epsilon: NonNegativeFloat = 1e-6
    """Of the normalization."""
    bias: bool = False
    """On every linear layer and LayerNorm."""
    positions: Positions = "rotary"
    """rotary (Su et al., 2021), learned, sinusoidal (Vaswani et al., 2017), relative (T5), or none."""
    rotary_base: AtLeastOne = 10_000.0
    window: PositiveInt | None = None
    """How far a position sees to one side, itself counted; None: everything."""
    dropout: DropRate = 0.0
    """Share of values dropped after the embedding and at the end of each branch."""
    drop_path: DropRate = 0.0
    """Share of examples that the last block's branches leave out; grows in a line from 0 at the first of several."""
    scan: bool = False
    """Compile one block and scan it over the depth: for big models, whose compile time then stays flat. The
    parameters of all blocks are then one stack; on small models unrolled blocks run faster."""
    remat: Remat = "none"
    """What the backward pass computes anew to save memory: none; attention: scores and softmax, which grow with the
    square of the length (of the plain kernel, the others keep none); dots: all but products with parameters;
    projections: all but those of attention, so the perceptron, where most of the memory is; full: each block whole."""
    remat_group: PositiveInt = 1
    """With scan, in training: keeps the input of every so manyth block alone, and of the blocks between only while one
    group's gradient is taken (Chen et al., 2016, section 4.3). About the root of the depth saves most; the forward
    pass of what remat does anew is then made once more. It must divide the depth."""
    attention_kernel: Kernel = "auto"
    """What computes attention: plain, fused (cuDNN), splash (TPU), or the one for the device; ring is for rows so long
    that no device should hold all their keys, which then go round over the mesh's `sequence`."""
    dtype: Dtype = "float32"
    """Of the computation; parameters, norms, softmax and logits are float32."""

    def shared_fields(self) -> dict[str, Any]:
        """These fields' values by name, for a part made of the same."""
        names = [
            field.name
            for field in dataclasses.fields(Fields)
            if field.name not in ("parent", "name")
        ]
        return {name: getattr(self, name) for name in names}

    def normalize(self, name: str) -> nn.Module:
        if choose("norm", self.norm, ("layer", "rms")) == "rms":
            return RMSNorm(self.epsilon, name=name)
        return LayerNorm(self.epsilon, self.bias, name=name)


@struct.dataclass
class Context:
    """What every block of a stack sees besides its input; None where it is not needed.

    memory: [B, S, D] to attend to; segments: [B, L] and memory_segments: [B, S], who sees whom; positions: [B, L];
    offset: [], how many tokens are in the cache.
    """

    memory: Any = None
    segments: Any = None
    memory_segments: Any = None
    positions: Any = None
    offset: Any = None


class Block(Fields, kw_only=True):
    """Attention, attention to a memory where `cross`, then a two-layer perceptron, each added to what it was given.

    `out_scale` shrinks the initial values of what is added, so that the sum over all blocks keeps its size
    (Radford et al., 2019).
    """

    causal: bool = False
    cross: bool = False
    out_scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: Context,
        scores: Any,
        rate: float | jax.Array,
        train: bool,
        cache: int = 0,
    ) -> jax.Array:
        """[B, L, D] -> [B, L, D]; scores: biases of attention [1, H, L, S]; rate: of drop path, in this block."""
        width, c = x.shape[-1], context
        same = {
            "bias": self.bias,
            "scale": self.out_scale,
            "kernel": self.attention_kernel,
            "kv_heads": self.kv_heads,
        }
        same["anew"] = self.remat == "attention"

        def add(x: jax.Array, name: str, branch: Any) -> jax.Array:
            norm = self.normalize(f"{name}_norm")
            y = branch(norm(x) if self.pre_norm else x)  # type: ignore[operator]
            x = x + drop_path(drop(y, self.dropout, train), rate, train)
            return x if self.pre_norm else norm(x)  # type: ignore[operator]

        turned = {
            "rotary": self.positions == "rotary",
            "rotary_base": self.rotary_base,
            "window": self.window,
        }
        attention = Attention(
            heads=self.heads, causal=self.causal, **same, **turned, name="attention"
        )
        x = add(
            x,
            "attention",
            lambda y: attention(y, None, c.segments, None, c.positions, scores, c.offset, cache),
        )
        if self.cross:
            cross = Attention(heads=self.heads, **same, name="cross")
            x = add(
                x, "cross", lambda y: cross(y, c.memory, c.segments, c.memory_segments, cache=cache)
            )
        return add(x, "mlp", lambda y: self.perceptron(y, width, c.segments))

    def perceptron(self, x: jax.Array, width: int, segments: jax.Array | None) -> jax.Array:
        """[B, L, D], of segments [B, L] -> [B, L, D]."""
        choose("activation", self.activation, Gate)
        gated = self.activation in GATED
        hidden = self.mlp_width or ((-(-width * 8 // 3) + 63) // 64 * 64 if gated else 4 * width)
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
                name="experts",
            )
            return mixed(x, segments)
        activation = ACTIVATIONS[name]
        if self.mlp_chunks:
            return self.in_pieces(x, width, hidden, gated, activation)
        y = Linear((hidden,), ("embed", "mlp"), bias=self.bias, name="up")(x)  # [B, L, F]
        y = constrain(y, "batch", "length", "mlp")
        if gated:
            gate = Linear((hidden,), ("embed", "mlp"), bias=self.bias, name="gate")(x)
            y = y * activation(constrain(gate, "batch", "length", "mlp"))
        else:
            y = activation(y)
        y = Linear((width,), ("mlp", "embed"), bias=self.bias, scale=self.out_scale, name="down")(y)
        return constrain(y, "batch", "length", None)

    def in_pieces(
        self, x: jax.Array, width: int, hidden: int, gated: bool, activation: Any
    ) -> jax.Array:
        """The same, with the same parameters, in pieces of the hidden width."""
        inward, outward = ("embed", "mlp"), ("mlp", "embed")
        parts = [
            Stored((width, hidden), inward, self.bias, name=name)()
            for name in ("up", "gate")[: 1 + gated]
        ]
        kernel, bias = Stored((hidden, width), outward, self.bias, self.out_scale, name="down")()
        kernels: list[Any] = [(each, inward) for each, _ in parts] + [(kernel, outward)]
        kernels += [(each, inward[1:]) for _, each in parts if each is not None]

        def work(x: jax.Array, *kernels: jax.Array) -> jax.Array:
            into, down, biases = (
                kernels[: len(parts)],
                kernels[len(parts)],
                kernels[len(parts) + 1 :],
            )
            up, *gate = (
                constrain(x @ each[None], "batch", "length", "mlp") for each in into
            )  # [B, L, F/C]
            up, *gate = (
                (y + b[None, None] for y, b in zip((up, *gate), biases, strict=True))
                if biases
                else (up, *gate)
            )
            return constrain(
                (up * activation(gate[0]) if gate else activation(up)) @ down[None],
                "batch",
                "length",
                None,
            )

        y = in_pieces(self.mlp_chunks, "mlp", work, x, kernels)
        return y if bias is None else y + gather(bias, outward[1:], x.dtype)[None, None]


class Stack(Fields, kw_only=True):
    """`depth` blocks, unrolled or scanned, and with pre_norm one last normalization."""

    depth: PositiveInt
    causal: bool = False
    cross: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, train: bool, cache: int = 0) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        if self.depth < 1:
            raise Refused(f"depth {self.depth}: a Transformer has 1 block or more.")
        if self.remat_group > 1 and (not self.scan or self.depth % self.remat_group):
            raise Refused(
                f"remat_group {self.remat_group}: it needs scan, and must divide the depth, which is {self.depth}."
            )
        choose("remat", self.remat, Remat)
        choose("positions", self.positions, Positions)
        scores = None
        if self.positions == "relative":  # one table for all blocks, as T5
            queries = jnp.arange(x.shape[1]) + (0 if context.offset is None else context.offset)
            relative = RelativePositions(self.heads, self.causal, name="relative")
            scores = relative(queries, jnp.arange(cache or x.shape[1])).astype(x.dtype)

        def run(
            block: Block, x: jax.Array, context: Context, scores: Any, rate: float | jax.Array
        ) -> jax.Array:
            fixed = isinstance(
                rate, float
            )  # not an argument then: a rate that is known to be 0 costs nothing

            def inner(
                block: Block, x: jax.Array, context: Context, scores: Any, varying: Any
            ) -> jax.Array:
                return block(x, context, scores, rate if fixed else varying, train, cache)

            if self.remat in POLICIES:
                inner = nn.remat(inner, prevent_cse=not self.scan, policy=POLICIES[self.remat])
            return inner(block, x, context, scores, None if fixed else rate)

        branches = (3 if self.cross else 2) * self.depth
        fields = self.shared_fields() | {
            "causal": self.causal,
            "cross": self.cross,
            "out_scale": branches**-0.5,
        }
        rates = [self.drop_path * layer / max(self.depth - 1, 1) for layer in range(self.depth)]
        if self.scan:
            varying = jnp.array(rates) if self.drop_path else None
            grouped = self.remat_group > 1 and train and not self.is_initializing()

            def one(
                block: Block, x: jax.Array, rate: Any, context: Context, scores: Any
            ) -> tuple[jax.Array, None]:
                return run(block, x, context, scores, 0.0 if rate is None else rate), None

            stack = (
                in_groups(one, self.depth, self.remat_group)
                if grouped
                else scanned(one, self.depth)
            )
            x, _ = stack(Block(**fields, name="block"), x, varying, context, scores)
        else:
            for layer, rate in enumerate(rates):
                x = run(Block(**fields, name=f"block_{layer}"), x, context, scores, rate)
        return self.normalize("norm")(x) if self.pre_norm else x  # type: ignore[operator]


def scanned(one: Any, length: int) -> Any:
    """`one(block, x, rate, ...) -> (x, None)` over so many layers, each with its own part of the block's parameters."""
    return nn.scan(
        one,
        variable_axes={"params": 0, "cache": 0, "intermediates": 0, LOSSES: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),  # type: ignore[arg-type]
        length=length,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def in_groups(one: Any, depth: int, group: int) -> Any:
    """The same in groups, each computed anew from its input in the backward pass; the parameters stay one stack."""

    def apart(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(depth // group, group, *leaf.shape[1:]), tree)

    def few(
        block: Block, x: jax.Array, rates: Any, context: Context, scores: Any
    ) -> tuple[jax.Array, None]:
        return scanned(one, group)(block, x, rates, context, scores)

    def all_of_them(block: Block, x: jax.Array, rates: Any, *rest: Any) -> tuple[jax.Array, None]:
        return scanned(nn.remat(few, prevent_cse=False), depth // group)(
            block, x, apart(rates), *rest
        )

    return nn.map_variables(all_of_them, "params", trans_in_fn=apart)
