"""Output heads: class logits for a classifier, a tied or separate token table for a language model.

Letters in shape comments: B batch, L length, D width, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax

from jaxbig.arrays.dtypes import upcast
from jaxbig.models.layers.basic import Embedding, Linear, constrain


class ClassifierHead(nn.Module):
    """A linear layer to class logits; its parameters are this module's `kernel` and `bias`.

    Input and output are constrained: left free here, a plausible mesh once gave a wrong kernel
    gradient (jax 0.10 to 0.12, CPU).
    """

    classes: int
    scale: float = 1.0
    """Scale of the initial kernel."""
    input_axis: str | None = "embed"
    """Logical name of the kernel's input axis."""

    def setup(self) -> None:
        axes = (self.input_axis, "classes")
        self.linear = Linear((self.classes,), axes, scale=self.scale)
        nn.share_scope(self, self.linear)  # its parameters are this layer's, not a level deeper

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., D] -> logits [B, ..., classes], float32."""
        axes = ("batch", *(None,) * (x.ndim - 1))
        return constrain(upcast(self.linear(constrain(x, *axes))), *axes)


class TokenTables:
    """Mixin: makes the input and output embeddings of a model with these fields."""

    vocab: int
    width: int
    tie_embeddings: bool

    def token_table(self, name: str, vocab: int | None = None) -> Embedding:
        """The input embedding of `vocab` tokens (None: the model's); small if tied."""
        std = self.width**-0.5 if self.tie_embeddings else 1.0
        return Embedding(vocab or self.vocab, self.width, std, name=name)

    def output_table(self, vocab: int | None = None) -> Embedding | None:
        """The output embedding, named `head`; None if the input embedding is used (tied)."""
        if self.tie_embeddings:
            return None
        return Embedding(vocab or self.vocab, self.width, self.width**-0.5, name="head")


class TokenHead(TokenTables):
    """Mixin: the output matrix of a language model whose `setup` sets `tokens` and `head`."""

    tokens: Any
    head: Any

    def unembedding(self) -> jax.Array:
        """The output matrix [D, V], as stored; logits are `hidden` times it."""
        return (self.tokens if self.head is None else self.head).output()
