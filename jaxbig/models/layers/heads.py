"""Output heads: class logits for a classifier, a tied or separate token table for a language model.

Letters in shape comments: B batch, L length, D width, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.models.layers.basic import Embedding, Linear, soft_cap, to_logits
from jaxbig.models.layers.parameters import constrain


class ClassifierHead(nn.Module):
    """A linear layer to class logits; its parameters are this module's `kernel` and `bias`.

    Input and output are constrained: left free here, a plausible mesh once gave a wrong kernel
    gradient (jax 0.10 to 0.12, CPU).
    """

    classes: int
    """Number of classes."""
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

    def output_table(self, tokens: Embedding, vocab: int | None = None) -> Embedding:
        """The output embedding: the input embedding if tied, else one named `head`."""
        if self.tie_embeddings:
            return tokens
        return Embedding(vocab or self.vocab, self.width, self.width**-0.5, name="head")


class TokenHead(TokenTables):
    """Mixin: the output matrix of a language model whose `setup` sets `head`, an output table."""

    head: Any
    logit_soft_cap: float | None = None

    def unembedding(self) -> jax.Array:
        """The output matrix [D, V], as stored; logits are `hidden` times it, soft-capped."""
        return self.head.output()

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B, L, D] -> logits [B, L, V], float32."""
        return soft_cap(to_logits(hidden, self.unembedding()), self.logit_soft_cap)

    def next_logits(self, hidden: jax.Array) -> jax.Array:
        """The last hidden state of each row [B, D] -> logits [B, V], float32.

        The table is multiplied as it is stored. XLA:CPU needs three times as long for the product
        with its transpose, which it would make of this one but for the barrier.
        """
        table = constrain(self.unembedding().T.astype(hidden.dtype), "vocab", "embed")
        product = jnp.einsum("vd,bd->vb", constrain(table, "vocab", None), hidden)
        logits = jax.lax.optimization_barrier(upcast(product)).T
        return constrain(soft_cap(logits, self.logit_soft_cap), "batch", "vocab")


def logits_of(hidden: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes `__call__` of a language model with a `TokenHead`, from its method `hidden`."""

    @functools.wraps(hidden, assigned=("__module__",), updated=())  # the same arguments
    def __call__(self: Any, *arguments: Any, **named: Any) -> jax.Array:
        """Tokens [B, L] -> logits [B, L, V], float32; arguments as in `hidden`."""
        return self.logits(self.hidden(*arguments, **named))

    return __call__
