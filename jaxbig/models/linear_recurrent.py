"""What linear recurrent language models share: the stack of blocks, the convolution over time, and
what a call with a cache knows.

Letters in shape comments: B batch, L length, D width, W channels, V vocabulary.
"""

import abc

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import DropRate, PositiveInt, validate
from jaxbig.models.base import Model
from jaxbig.models.layers.basic import Linear, RMSNorm, cast, drop
from jaxbig.models.layers.cache import Count, real_tokens
from jaxbig.models.layers.heads import TokenHead, logits_of
from jaxbig.models.layers.parameters import constrain, parameter


@struct.dataclass
class Continued:
    """What a call with a cache knows of its tokens.

    cache: how many places the cache has; offset: [], how many tokens are in it; padding: [B], how
    many of a row's first ones are padding, or None.
    """

    cache: int = struct.field(pytree_node=False)
    offset: jax.Array
    padding: jax.Array | None

    def without_padding(self, x: jax.Array) -> jax.Array:
        """[B, L, W], 0 where the token is padding."""
        real = real_tokens(self.padding, self.offset, x.shape[1])
        return x if real is None else jnp.where(real[..., None], x, 0)


class CausalConv(nn.Module):
    """A convolution over time of each channel alone: y_t = b + sum_k w_k x_(t-k), k below
    `size`."""

    size: PositiveInt = 4
    """Positions that the kernel sees, itself included."""

    @nn.compact
    def __call__(self, x: jax.Array, continued: Continued | None = None) -> jax.Array:
        """[B, L, W] -> [B, L, W]."""
        length, width = x.shape[1:]
        init = nn.initializers.normal(self.size**-0.5)
        kernel = parameter(self, "kernel", init, (self.size, width), (None, "hidden"), x.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (width,), ("hidden",), x.dtype)
        past = jnp.pad(x, ((0, 0), (self.size - 1, 0), (0, 0)))
        if continued is not None:
            x = continued.without_padding(x)
            before = past[:, : self.size - 1]
            kept = self.variable("cache", "inputs", lambda: jnp.zeros_like(before))
            past = jnp.concatenate([kept.value, x], axis=1)
            kept.value = past[:, length:]
        shifts = (
            past[:, self.size - 1 - k :][:, :length] * kernel[k][None, None]
            for k in range(self.size)
        )
        return sum(shifts, jnp.broadcast_to(bias, x.shape))


class LinearRecurrentModel(TokenHead, Model):
    """Base class of language models whose blocks mix positions, most by a linear recurrence, and
    then have a gated MLP."""

    vocab: PositiveInt
    """Number of tokens in the vocabulary."""
    depth: PositiveInt = 6
    """Number of blocks, each a mixing of positions and a gated MLP."""
    width: PositiveInt = 256
    """Width of each token's vector."""
    expansion: PositiveInt = 3
    """The gated MLP's width over that of the model."""
    dropout: DropRate = 0.0
    """Share of values dropped after each part of a block."""
    tie_embeddings: bool = True
    """Use the token embedding as the output matrix too (Press and Wolf, 2017)."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    def setup(self) -> None:
        validate(self)
        self.tokens = self.token_table("tokens")
        self.head = self.output_table(self.tokens)
        self.cached = Count()

    @abc.abstractmethod
    def mixing(self, block: int, x: jax.Array, continued: Continued | None) -> jax.Array:
        """The part of a block that mixes positions, [B, L, D] -> [B, L, D]."""

    @nn.compact
    def hidden(
        self,
        tokens: jax.Array,
        train: bool = False,
        cache: int = 0,
        padding: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens [B, L] -> hidden states [B, L, D]; cache and padding as in `Decoder.hidden`."""
        continued = None
        if cache:
            continued = Continued(cache, self.cached(tokens.shape[1]), padding)
        x = cast(self.tokens(tokens), self.dtype) * (
            self.width**0.5 if self.tie_embeddings else 1.0
        )
        for block in range(self.depth):
            y = RMSNorm(name=f"norm_{block}_mixing")(x)
            y = self.mixing(block, y, continued)
            x = constrain(x + drop(y, self.dropout, train), "batch", "length", None)
            y = RMSNorm(name=f"norm_{block}_mlp")(x)
            both = Linear(
                (2, self.expansion * self.width), ("embed", None, "mlp"), name=f"up_{block}"
            )(y)
            y = constrain(nn.gelu(both[..., 0, :]) * both[..., 1, :], "batch", "length", "mlp")
            y = Linear((self.width,), ("mlp", "embed"), name=f"down_{block}")(y)
            x = constrain(x + drop(y, self.dropout, train), "batch", "length", None)
        return RMSNorm(name="norm")(x)

    __call__ = logits_of(hidden)
