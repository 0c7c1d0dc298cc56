"""Transformers (Vaswani et al., 2017).

Letters in shape comments: B batch, L length, D width, F hidden width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import Refused
from jaxbig.models.layers import Attention, Linear, RMSNorm, constrain, parameter


class Block(nn.Module):
    """Attention, then a two-layer perceptron with GELU, each normalized before and added after (pre-norm).

    `out_scale` shrinks the initial values of what is added, so that the sum over `depth` blocks keeps its
    size (Radford et al., 2019).
    """

    heads: int
    dropout: float = 0.0
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = x + drop(Attention(self.heads, scale=self.out_scale, name="attention")(RMSNorm(name="norm_1")(x)))
        y = Linear((4 * width,), ("embed", "mlp"), bias=False, name="up")(RMSNorm(name="norm_2")(x))
        y = nn.gelu(constrain(y, "batch", "length", "mlp"))  # [B, L, F]
        y = Linear((width,), ("mlp", "embed"), bias=False, scale=self.out_scale, name="down")(y)
        return x + drop(constrain(y, "batch", "length", None))


class Decoder(nn.Module):
    """A causal language model: each position's logits see the tokens up to and including it, and no later one."""

    vocab: int
    """How many different tokens there are."""
    depth: int = 6
    """How many blocks."""
    width: int = 256
    heads: int = 8
    dropout: float = 0.0
    scan: bool = False
    """Compile one block and scan it over the depth: for big models, whose compile time then stays flat. The
    parameters of all blocks are then one stack; on small models unrolled blocks run faster."""

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Token numbers [B, L] -> logits [B, L, V], float32."""
        if self.width % (2 * self.heads):
            raise Refused(f"width {self.width} does not divide into {self.heads} heads of an even width (rotary).")
        shape = (self.vocab, self.width)
        table = parameter(self, "embedding", nn.initializers.normal(1.0), shape, ("vocab", "embed"))
        x = constrain(jnp.take(table, tokens, axis=0), "batch", "length", None)  # [B, L, D]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        fields = {"heads": self.heads, "dropout": self.dropout, "out_scale": (2 * self.depth) ** -0.5}
        if self.scan:
            stack = nn.scan(
                lambda block, x, _: (block(x, train), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = stack(Block(**fields, name="blocks"), x, None)
        else:
            for layer in range(self.depth):
                x = Block(**fields, name=f"block_{layer}")(x, train)
        x = RMSNorm(name="norm")(x)
        logits = Linear((self.vocab,), ("embed", "vocab"), bias=False, name="head")(x)
        return constrain(logits.astype(jnp.float32), "batch", "length", "vocab")
