"""The recurrent encoder-decoder model with attention, for translation.

Letters in shape comments: B batch, S length of the source, T length of the target, M width of the
memory, W width of the state, V target vocabulary.
"""

import abc
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype, accumulation_dtype, upcast
from jaxbig.constraints import DropRate, PositiveInt, choose
from jaxbig.errors import Refused
from jaxbig.models.base import Translator
from jaxbig.models.layers.basic import Embedding, Linear, cast, length_mask
from jaxbig.models.layers.parameters import constrain, parameter
from jaxbig.models.layers.rnn_cells import (
    EQUATIONS,
    Carry,
    CellName,
    Layer,
    cell_step,
    constrain_carry,
)
from jaxbig.models.rnn import Recurrence, masked_softmax

AttentionName = Literal["additive", "dot", "general"]
Attend = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Queries [B, W] -> contexts [B, M] and weights [B, S], which sum to 1 and are exactly 0 where the
mask is."""


def attending(
    score: Callable[[jax.Array], jax.Array], memory: jax.Array, mask: jax.Array | None
) -> Attend:
    """From scores [B, S] of a query to the mean of the memory [B, S, M], weighted by their
    softmax."""

    def attend(query: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = constrain(masked_softmax(score(query), mask), "batch", None)
        context = jnp.einsum("bs,bsm->bm", weights.astype(memory.dtype), memory)
        return constrain(context, "batch", None), weights

    return attend


class RNNAttention(nn.Module):
    """Base class of the attentions of recurrent nets."""

    width: PositiveInt
    """W, of the query; of the hidden layer too, if there is one."""

    @abc.abstractmethod
    def over(self, memory: jax.Array, mask: jax.Array | None = None) -> Attend:
        """A function of the query alone; the memory's products and the parameters are taken once,
        not each step."""

    def __call__(
        self, query: jax.Array, memory: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Query [B, W], memory [B, S, M], mask [B, S] -> context [B, M], weights [B, S]."""
        return self.over(memory, mask)(query)


class Additive(RNNAttention):
    """Bahdanau et al. (2015), section A.1.2: the score is v . tanh(W query + U memory)."""

    @nn.compact
    def over(self, memory: jax.Array, mask: jax.Array | None = None) -> Attend:
        keys = Linear((self.width,), ("embed", "hidden"), name="keys")(memory)  # [B, S, W]
        init = nn.initializers.lecun_normal()
        kernel = parameter(
            self, "query", init, (self.width, self.width), ("embed", "hidden"), memory.dtype
        )
        vector = parameter(self, "score", init, (self.width, 1), ("hidden", None), memory.dtype)

        def score(query: jax.Array) -> jax.Array:
            moved = jnp.broadcast_to((query @ kernel)[:, None], keys.shape)
            return jnp.tensordot(jnp.tanh(keys + moved), vector[:, 0], axes=1)

        return attending(score, memory, mask)


class Multiplicative(RNNAttention):
    """Luong et al. (2015), section 3.1: the score is query . memory, or with general query . W
    memory."""

    general: bool = True
    """Multiply by a learned matrix between query and memory."""

    @nn.compact
    def over(self, memory: jax.Array, mask: jax.Array | None = None) -> Attend:
        if not self.general and memory.shape[-1] != self.width:
            raise Refused(
                f"dot attention of a query of {self.width} and a memory of {memory.shape[-1]}: "
                f"make them equally wide (bidirectional False), or the attention general."
            )
        keys = (
            Linear((self.width,), ("embed", "hidden"), bias=False, name="keys")(memory)
            if self.general
            else memory
        )
        return attending(lambda query: jnp.einsum("bw,bsw->bs", query, keys), memory, mask)


class AttentiveDecoder(nn.Module):
    """A recurrent layer that before each step attends with its state, and reads what it found with
    the token."""

    width: PositiveInt
    """Of the state."""
    cell: CellName
    """The recurrent cell: LSTM, GRU, or Elman's with tanh or ReLU."""
    attention: AttentionName
    """The score: additive, dot or general."""

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: dict[str, Any], cached: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Embedded tokens [B, T, W] -> states with their contexts [B, T, W + M], weights [B, T, S].

        cached: continue from the state of the last call.
        """
        cell = choose("cell", self.cell, EQUATIONS)
        choose("attention", self.attention, AttentionName)
        if self.attention == "additive":
            attention = Additive(self.width, name="attention")
        else:
            attention = Multiplicative(self.width, self.attention == "general", name="attention")
        attend = attention.over(memory["states"], memory["mask"])
        layer = Layer(self.width, self.cell, name=self.cell)
        inputs, kernel, bias = layer.products(jnp.swapaxes(x, 0, 1))  # [T, B, G, W]
        shape = (memory["states"].shape[-1], *inputs.shape[2:])
        axes = ("embed", None, "hidden")
        from_context = parameter(
            self, "context", nn.initializers.lecun_normal(0, (1, 2)), shape, axes, x.dtype
        )

        def step(carry: Carry, inputs: jax.Array) -> tuple[Carry, Any]:
            context, weights = attend(carry[0].astype(x.dtype))
            inputs = inputs + jnp.tensordot(context, from_context, axes=1)
            _, carry = cell_step(cell, kernel, bias, inputs, carry)
            return carry, (jnp.concatenate([carry[0].astype(x.dtype), context], axis=-1), weights)

        first = jnp.tanh(Linear((self.width,), ("embed", "hidden"), name="start")(memory["last"]))
        first = first.astype(accumulation_dtype(x.dtype))
        start = constrain_carry((first, *(jnp.zeros_like(first) for _ in range(cell.carries - 1))))
        if not cached:
            _, (states, weights) = jax.lax.scan(step, start, inputs)
        else:
            kept = self.variable("cache", "carry", lambda: start)
            kept.value, (states, weights) = jax.lax.scan(step, kept.value, inputs)
        return constrain(jnp.swapaxes(states, 0, 1), "batch", "length", None), jnp.swapaxes(
            weights, 0, 1
        )


class RNNEncoderDecoder(Translator):
    """Translation by recurrent nets with attention (Bahdanau et al., 2015), its score also Luong's
    (2015)."""

    vocab: PositiveInt
    """How many different tokens the source has."""
    target_vocab: PositiveInt
    """Number of tokens of the target."""
    width: PositiveInt = 256
    """Of embeddings and states."""
    layers: PositiveInt = 1
    """Of the encoder; the decoder has one."""
    cell: CellName = "gru"
    """The recurrent cell: LSTM, GRU, or Elman's with tanh or ReLU."""
    bidirectional: bool = True
    """The encoder reads in both directions."""
    attention: AttentionName = "additive"
    """The score: additive (Bahdanau's), dot or general (Luong's)."""
    dropout: DropRate = 0.0
    """Share of values dropped between layers and before the logits."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    def setup(self) -> None:
        self.sources = Embedding(self.vocab, self.width, name="tokens")
        self.targets = Embedding(self.target_vocab, self.width, name="target_tokens")
        fields = self.width, self.cell, self.layers, self.bidirectional, self.dropout
        self.encoder = Recurrence(*fields, name="encoder")
        self.decoder = AttentiveDecoder(self.width, self.cell, self.attention, name="decoder")
        self.readout = Linear((self.width,), ("embed", None), name="readout")
        self.head = Linear((self.target_vocab,), ("embed", "vocab"), name="head")
        self.dropping = nn.Dropout(self.dropout)

    def encode(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> dict[str, Any]:
        """Source tokens [B, S], lengths [B] -> the memory: states [B, S, M], mask [B, S] or None,
        last [B, M]."""
        x = self.dropping(cast(self.sources(inputs), self.dtype), deterministic=not train)
        states, last, _ = self.encoder(x, lengths, train=train)
        mask = None if lengths is None else length_mask(lengths, inputs.shape[1])
        return {"states": states, "mask": mask, "last": last}

    def decode(
        self, previous: jax.Array, memory: dict[str, Any], train: bool = False, cache: int = 0
    ) -> jax.Array:
        """Target tokens before each position [B, T] -> logits [B, T, V], float32.

        cache: 1 or more: the tokens are the next ones after those of the call before, whose carry
        is in the collection "cache" (the first call makes it). Attention weights [B, T, S] are sown
        into "intermediates".
        """
        x = self.dropping(cast(self.targets(previous), self.dtype), deterministic=not train)
        states, weights = self.decoder(x, memory, cache > 0)
        self.sow("intermediates", "attention", weights)
        y = jnp.tanh(self.readout(jnp.concatenate([states, x], axis=-1)))
        y = constrain(self.dropping(y, deterministic=not train), "batch", "length", None)
        return constrain(upcast(self.head(y)), "batch", "length", "vocab")
