"""The bag-of-tokens model: a text as the sum of the embeddings of its tokens.

Letters in shape comments: B batch, L length, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import DropRate, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Model
from jaxbig.models.layers.basic import Embedding, cast, drop, length_mask
from jaxbig.models.layers.parameters import constrain, parameter


class BagOfTokens(Model):
    """A text as the sum of its tokens' embeddings, each times a learned factor of its place, 1 at
    first; without these factors it is fastText's (Joulin et al., 2017).

    It is a tower of `DualEncoder`: before training the product of two sums is about how many tokens
    two texts share, and the length of an embedding learns how much a token says.
    """

    vocab: PositiveInt
    """Number of tokens in the vocabulary."""
    width: PositiveInt = 256
    """Length of each embedding."""
    max_length: PositiveInt = 512
    """Number of places."""
    dropout: DropRate = 0.0
    """Share of tokens left out in training."""
    dtype: Dtype = "float32"
    """Of the computation; parameters are float32."""

    @nn.compact
    def __call__(
        self, tokens: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Tokens [B, L], of which the first `lengths` [B] count (None: all) -> [B, D]."""
        validate(self)
        length = tokens.shape[1]
        if length > self.max_length:
            raise Refused(f"{length} tokens: make max_length {self.max_length} {length} or more.")
        table = Embedding(self.vocab, self.width, self.width**-0.5, name="tokens")
        x = constrain(cast(table(tokens), self.dtype), "batch", None, None)  # [B, L, D]
        ones = nn.initializers.ones
        factors = parameter(self, "places", ones, (self.max_length,), (None,), x.dtype)
        real = jnp.ones(tokens.shape, bool)
        if lengths is not None:
            real = length_mask(lengths, length)
        weights = drop(jnp.where(real, factors[None, :length], 0), self.dropout, train)  # [B, L]
        return constrain(jnp.einsum("bld,bl->bd", x, weights), "batch", None)

    @nn.nowrap
    def features(
        self, tokens: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """The sums themselves, [B, D]."""
        return self(tokens, lengths, train)
