"""Recurrent models (Elman, LSTM, GRU): stacks of layers, a classifier and a language model.

Letters in shape comments: B batch, L length, D width of the input, W width of the state, V
vocabulary.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype, accumulation_dtype, upcast
from jaxbig.constraints import DropRate, PositiveInt, choose, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Model
from jaxbig.models.layers.basic import Embedding, Linear, cast, drop, length_mask
from jaxbig.models.layers.cache import Count, real_tokens
from jaxbig.models.layers.heads import ClassifierHead, TokenHead, logits_of
from jaxbig.models.layers.parameters import constrain
from jaxbig.models.layers.rnn_cells import EQUATIONS, Carry, CellName, Layer

Pooling = Literal["last", "mean", "attention", "none"]


class Recurrence(nn.Module):
    """Recurrent layers one after another, each in one direction or in both (Schuster and Paliwal,
    1997)."""

    width: PositiveInt
    """Of each layer's state."""
    cell: CellName = "lstm"
    """The recurrent cell: LSTM, GRU, or Elman's with tanh or ReLU."""
    layers: PositiveInt = 1
    """Number of recurrent layers."""
    bidirectional: bool = False
    """Read in both directions."""
    dropout: DropRate = 0.0
    """Share of values dropped between layers."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        carries: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, dict[str, Carry]]:
        """[B, L, D], lengths [B] and carries as given back -> states [B, L, W], each row's last [B,
        W], carries.

        With bidirectional, 2W in place of W, forward first; the last of the other direction has
        read token 0 last.
        """
        validate(self)
        carries = carries or {}
        after = {}
        last = x[:, 0]
        for layer in range(self.layers):
            x = drop(x, self.dropout, train) if layer else x
            directions = []
            for reverse in (False, True) if self.bidirectional else (False,):
                name = f"{self.cell}_{layer}_reverse" if reverse else f"{self.cell}_{layer}"
                states, after[name] = Layer(self.width, self.cell, name=name)(
                    x, lengths, carries.get(name), reverse
                )
                directions.append((states, after[name][0].astype(x.dtype)))
            x, last = (jnp.concatenate(parts, axis=-1) for parts in zip(*directions, strict=True))
            x = constrain(x, "batch", "length", None)
            last = constrain(last, "batch", None)
        return x, last, after


def masked_softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over the last axis where `mask` is 1, in float32: exactly 0 elsewhere, and in a row
    without any 1."""
    scores = upcast(scores)
    if mask is None:
        return jax.nn.softmax(scores)
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.where(mask, jax.nn.softmax(scores), 0)


class RNN(Model):
    """A recurrent net over a sequence of vectors or tokens, then one logit a class."""

    width: PositiveInt
    """Of each layer's state."""
    classes: PositiveInt
    """Number of classes."""
    layers: PositiveInt = 1
    """Number of recurrent layers."""
    dropout: DropRate = 0.0
    """Share of values dropped between layers and before the logits."""
    cell: CellName = "lstm"
    """The recurrent cell: LSTM, GRU, or Elman's with tanh or ReLU."""
    bidirectional: bool = False
    """Read in both directions."""
    pooling: Pooling = "last"
    """What the logits see: the last state, the mean of all, a weighted mean (Yang et al., 2016,
    section 2.2), or each state by itself, as CTC wants it."""
    vocab: PositiveInt | None = None
    """How many different tokens there are; None: the input is not of tokens but of vectors or
    images."""
    embedding: PositiveInt | None = None
    """Width of a token's vector; None: that of the state."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    @nn.compact
    def __call__(
        self, x: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Sequences [B, L, ...] (an image is one of its rows) or tokens [B, L], lengths [B] ->
        logits [B, classes].

        With pooling none, [B, L, classes].
        """
        choose("pooling", self.pooling, Pooling)
        if self.vocab:
            x = Embedding(self.vocab, self.embedding or self.width, name="embedding")(x)
        elif x.ndim < 3:
            raise Refused(
                f"inputs of shape {x.shape} and no vocab: give --model.vocab for tokens, or "
                f"vectors [B, L, D]."
            )
        x = cast(x.reshape(*x.shape[:2], -1), self.dtype)  # [B, L, D]
        trunk = Recurrence(
            self.width, self.cell, self.layers, self.bidirectional, self.dropout, name="trunk"
        )
        states, pooled, _ = trunk(x, lengths, train=train)
        if self.pooling == "none":
            pooled = states
        elif self.pooling != "last":
            pooled = self.mean(states, lengths)
        pooled = drop(pooled, self.dropout, train)
        return ClassifierHead(self.classes, name="head")(pooled)

    def mean(self, states: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """The mean of the states [B, L, W] within each row's length [B, W]; weighted, if pooling is
        attention."""
        ends = jnp.full(states.shape[:1], states.shape[1]) if lengths is None else lengths
        scores = jnp.zeros(states.shape[:2])
        if self.pooling == "attention":
            score = jnp.tanh(Linear((self.width,), ("embed", "hidden"), name="pooling")(states))
            scores = Linear((1,), ("hidden", None), bias=False, name="score")(score)[
                ..., 0
            ]  # [B, L]
        weights = masked_softmax(scores, length_mask(ends, states.shape[1])).astype(states.dtype)
        return jnp.einsum("bl,blw->bw", weights, states)


class RNNLanguageModel(TokenHead, Model):
    """A recurrent language model: each position's logits see the tokens up to and including it, and
    no later one."""

    vocab: PositiveInt
    """Number of tokens in the vocabulary."""
    width: PositiveInt = 256
    """Of embeddings and states."""
    layers: PositiveInt = 1
    """Number of recurrent layers."""
    cell: CellName = "lstm"
    """The recurrent cell: LSTM, GRU, or Elman's with tanh or ReLU."""
    dropout: DropRate = 0.0
    """Share of values dropped between layers, and before and after them."""
    tie_embeddings: bool = False
    """Use the token embedding as the output matrix too (Press and Wolf, 2017)."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    def setup(self) -> None:
        self.tokens = self.token_table("tokens")
        self.head = self.output_table(self.tokens)
        self.trunk = Recurrence(
            self.width, self.cell, self.layers, dropout=self.dropout, name="trunk"
        )
        self.cached = Count()

    @nn.compact
    def hidden(
        self,
        tokens: jax.Array,
        starts: jax.Array | None = None,
        train: bool = False,
        cache: int = 0,
        padding: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states before the output matrix.

        Args:
          tokens: [B, L].
          starts: [B]; each row continues from the state of the last batch (truncated
            backpropagation through time, in the collection "carry"), or from zeros where it is 1.
            None: from zeros.
          train: whether dropout is on.
          cache: 1 or more: the tokens are the next ones after those of the call before, whose
            carries are in the collection "cache" (the first call makes them).
          padding: [B], how many of the first tokens of each row are padding, with a cache.

        Returns:
          [B, L, W].
        """
        x = drop(cast(self.tokens(tokens), self.dtype), self.dropout, train)
        if cache:
            return self.continued(x, padding)
        if starts is None or not self.is_mutable_collection("carry"):
            return drop(self.trunk(x, train=train)[0], self.dropout, train)
        memory = {
            f"{self.cell}_{n}": self.memory(n, x.shape[0], x.dtype) for n in range(self.layers)
        }
        carries = {name: tuple(part.value for part in each) for name, each in memory.items()}
        carries = jax.tree.map(lambda part: jnp.where((starts == 1)[:, None], 0, part), carries)
        x, _, carries = self.trunk(x, carries=jax.lax.stop_gradient(carries), train=train)
        if not self.is_initializing():
            for name, each in memory.items():
                for part, value in zip(each, carries[name], strict=True):
                    part.value = value
        return drop(x, self.dropout, train)

    def continued(self, x: jax.Array, padding: jax.Array | None) -> jax.Array:
        """States of the next embedded tokens [B, L, D] -> [B, L, W]; padding [B]."""
        zeros = jnp.zeros((x.shape[0], self.width), accumulation_dtype(x.dtype))
        parts = choose("cell", self.cell, EQUATIONS).carries
        names = [f"{self.cell}_{layer}" for layer in range(self.layers)]
        kept = self.variable("cache", "carries", lambda: dict.fromkeys(names, (zeros,) * parts))
        real = real_tokens(padding, self.cached(x.shape[1]), x.shape[1])
        if real is None:
            states, _, kept.value = self.trunk(x, carries=kept.value)
            return states
        # a layer stops at a row's length: each row's padding is moved behind its tokens and back
        count = jnp.sum(real, axis=1)
        places = (jnp.arange(x.shape[1])[None] + count[:, None]) % x.shape[1]
        x = jnp.take_along_axis(x, jnp.argsort(places, axis=1)[..., None], axis=1)
        states, _, kept.value = self.trunk(x, count, kept.value)
        return jnp.take_along_axis(states, places[..., None], axis=1)

    def memory(self, layer: int, batch: int, dtype: Any) -> list[Any]:
        """A layer's carry as variables [B, W], zeros at first."""
        shape = (batch, self.width)
        zeros = nn.with_logical_partitioning(jnp.zeros, ("batch", "hidden"))
        names = [
            f"layer_{layer}_{part}" for part in range(choose("cell", self.cell, EQUATIONS).carries)
        ]
        found = [
            self.variable("carry", name, zeros, shape, accumulation_dtype(dtype)) for name in names
        ]
        rows = jnp.shape(found[0].value)[0]  # type: ignore[arg-type]
        if rows != batch:
            raise Refused(
                f"the carry holds {rows} rows and the batch {batch}: keep the batch's size."
            )
        return found

    __call__ = logits_of(hidden)
