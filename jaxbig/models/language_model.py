"""Transformers for text: `Decoder` (GPT-2 and Llama are two settings of it), `Encoder` (BERT), `EncoderDecoder`.

Letters in shape comments: B batch, L length, S length of the source, T length of the target, D width, V vocabulary.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.batch_mask import rows_only
from jaxbig.arrays.dtypes import HIGHEST, accumulation_dtype, upcast
from jaxbig.constraints import NonNegativeFloat, PositiveInt
from jaxbig.errors import Refused
from jaxbig.models.layers.attention import sinusoidal
from jaxbig.models.layers.attention_mask import from_lengths
from jaxbig.models.layers.basic import (
    Embedding,
    LayerNorm,
    Linear,
    cast,
    choose,
    constrain,
    drop,
    parameter,
    to_logits,
)
from jaxbig.models.transformer import Context, Fields, Gate, Positions, Stack


class Text(Fields, kw_only=True):
    """What the three have in common: tokens and their positions become vectors."""

    vocab: PositiveInt
    """How many different tokens there are."""
    depth: PositiveInt = 6
    """How many blocks."""
    width: PositiveInt = 256
    max_length: PositiveInt = 1024
    """How many learned positions there are, where positions are learned."""
    tie_embeddings: bool = False
    """One table embeds the tokens and gives the logits (Press and Wolf, 2017)."""
    scale_embedding: bool = False
    """Multiply embeddings by the root of the width (Vaswani et al., 2017, section 3.4)."""

    def table(self, name: str, vocab: int | None = None) -> Embedding:
        return Embedding(
            vocab or self.vocab,
            self.width,
            self.width**-0.5 if self.tie_embeddings else 1.0,
            name=name,
        )

    def position_table(self, name: str) -> Embedding | None:
        if self.positions != "learned":
            return None
        return Embedding(self.max_length, self.width, 0.02, axis=None, name=name)

    def embed(
        self, table: Embedding, learned: Embedding | None, tokens: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """Tokens [B, L] at positions [1 or B, L] -> [B, L, D]."""
        x = table(tokens) * (self.width**0.5 if self.scale_embedding else 1.0)
        if learned is not None:
            x = x + jnp.broadcast_to(learned(positions), x.shape)
        elif self.positions == "sinusoidal":
            x = x + jnp.broadcast_to(sinusoidal(positions, self.width), x.shape)
        return constrain(cast(x, self.dtype), "batch", "length", None)

    def places(
        self, tokens: jax.Array, positions: jax.Array | None, offset: Any, cache: int
    ) -> jax.Array:
        """The positions of tokens [B, L], [1 or B, L]; `Refused` if learned ones do not suffice."""
        length = max(tokens.shape[1], cache)
        if self.positions == "learned" and length > self.max_length:
            raise Refused(
                f"a sequence of {length} is longer than max_length {self.max_length}: make that {length} or more, or "
                f"the sequence shorter."
            )
        counted = jnp.arange(tokens.shape[1])[None] + (0 if offset is None else offset)
        return counted if positions is None else positions


class Count(nn.Module):
    """How many tokens a cache holds, in the collection "cache"."""

    @nn.compact
    def __call__(self, more: int) -> jax.Array:
        """Counts `more` in; gives how many there were before, []."""
        count = self.variable("cache", "count", lambda: jnp.int32(0))
        before = count.value
        count.value = before + more
        return before


class Decoder(Text, kw_only=True):
    """A causal language model: each position's logits see the tokens up to and including it, and no later one.

    As it stands: RMSNorm, no biases, rotary positions. Radford et al. (2019), GPT-2: norm layer, bias, positions
    learned, shared. Touvron et al. (2023), Llama: activation swiglu.
    """

    def setup(self) -> None:
        self.tokens = self.table("tokens")
        self.learned = self.position_table("positions")
        self.blocks = Stack(**self.shared_fields(), depth=self.depth, causal=True, name="blocks")
        self.cached = Count()
        self.dropping = nn.Dropout(self.dropout)
        self.head = (
            None
            if self.tie_embeddings
            else Embedding(self.vocab, self.width, self.width**-0.5, name="head")
        )

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        cache: int = 0,
    ) -> jax.Array:
        """Token numbers [B, L] -> what the logits are made of, [B, L, D].

        segments, positions: [B, L] of packed documents; cache: take the next tokens alone, and remember up to so many.
        """
        offset = self.cached(tokens.shape[1]) if cache else None
        at = self.places(tokens, positions, offset, cache)
        x = self.dropping(
            self.embed(self.tokens, self.learned, tokens, at), deterministic=not train
        )
        return self.blocks(x, Context(segments=segments, positions=at, offset=offset), train, cache)

    def unembedding(self) -> jax.Array:
        """The matrix [D, V] that makes logits of `hidden`."""
        return (self.tokens if self.head is None else self.head).output()

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        cache: int = 0,
    ) -> jax.Array:
        """Token numbers [B, L] -> logits [B, L, V], float32."""
        return to_logits(self.hidden(tokens, segments, positions, train, cache), self.unembedding())


class Encoder(Text, kw_only=True):
    """BERT (Devlin et al., 2019): every position sees all; logits a token, or `classes` logits a row."""

    classes: PositiveInt | None = None
    """How many classes a row may be of; None: logits for every token, through the masked-token head."""
    types: PositiveInt | None = None
    """How many kinds of segments there are (the sentences A and B are 2)."""
    pooling: Literal["first", "mean"] = "first"
    """What a row's classes are told from: the first token through BERT's pooler, or the mean of all."""

    norm: Literal["layer", "rms"] = "layer"
    pre_norm: bool = False
    epsilon: NonNegativeFloat = 1e-12
    bias: bool = True
    activation: Gate = "gelu"
    positions: Positions = "learned"
    max_length: PositiveInt = 512
    tie_embeddings: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        types: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Tokens [B, L], lengths [B] or segments [B, L], types [B, L] -> [B, L, V], or [B, classes]; float32."""
        if lengths is not None:
            segments = from_lengths(lengths, tokens.shape[1])
        at = self.places(tokens, None, None, 0)
        table = self.table("tokens")
        x = self.embed(table, self.position_table("positions"), tokens, at)
        if self.types:
            kind = Embedding(self.types, self.width, 0.02, axis=None, name="types")
            x = x + kind(jnp.zeros_like(tokens) if types is None else types).astype(x.dtype)
        x = x if self.pre_norm else self.normalize("norm")(x)  # type: ignore[operator]
        x = drop(x, self.dropout, train)
        blocks = Stack(**self.shared_fields(), depth=self.depth, name="blocks")
        x = blocks(x, Context(segments=segments, positions=at), train)  # [B, L, D]
        return (
            self.of_tokens(x, table)
            if self.classes is None
            else self.of_rows(x, segments, self.classes, train)
        )

    def of_tokens(self, x: jax.Array, table: Embedding) -> jax.Array:
        """[B, L, D] -> [B, L, V]: a linear layer, GELU and a norm before the vocabulary, as BERT has it."""
        x = nn.gelu(Linear((self.width,), ("embed", None), name="transform")(x), approximate=False)
        x = constrain(x, "batch", "length", None)
        x = LayerNorm(self.epsilon, name="transform_norm")(x)
        head = (
            table
            if self.tie_embeddings
            else Embedding(self.vocab, self.width, self.width**-0.5, name="head")
        )
        logits = to_logits(x, head.output())
        bias = parameter(self, "bias", nn.initializers.zeros, (self.vocab,), ("vocab",))
        return constrain(logits + jnp.broadcast_to(bias, logits.shape), "batch", "length", "vocab")

    def of_rows(
        self, x: jax.Array, segments: jax.Array | None, classes: int, train: bool
    ) -> jax.Array:
        """[B, L, D] -> [B, classes]."""
        if choose("pooling", self.pooling, ("first", "mean")) == "first":
            x = jnp.tanh(Linear((self.width,), ("embed", None), name="pooler")(x[:, 0]))
        else:
            # in float32: bf16 cannot count beyond 256
            real = (
                jnp.ones(x.shape[:2], accumulation_dtype(x.dtype))
                if segments is None
                else (segments > 0).astype(accumulation_dtype(x.dtype))
            )
            x = (
                jnp.einsum("bld,bl->bd", x, real, precision=HIGHEST)
                / jnp.maximum(real.sum(1), 1)[:, None]
            )
        x = constrain(drop(x, self.dropout, train), "batch", None)
        logits = Linear((classes,), ("embed", "classes"), name="classifier")(x)
        return constrain(upcast(logits), "batch", None)


class EncoderDecoder(Text, kw_only=True):
    """The translation Transformer (Vaswani et al., 2017); positions relative are T5's (Raffel et al., 2020)."""

    target_vocab: PositiveInt | None = None
    """How many different tokens the target has; None: the source's table is the target's too."""

    norm: Literal["layer", "rms"] = "layer"
    pre_norm: bool = False
    bias: bool = True
    activation: Gate = "relu"
    positions: Positions = "sinusoidal"
    tie_embeddings: bool = True
    scale_embedding: bool = True

    def setup(self) -> None:
        self.sources = self.table("tokens")
        self.targets = (
            self.sources
            if self.target_vocab is None
            else self.table("target_tokens", self.target_vocab)
        )
        self.source_positions, self.target_positions = (
            self.position_table("positions"),
            self.position_table("target_positions"),
        )
        self.cached = Count()
        self.dropping = nn.Dropout(self.dropout)
        fields = self.shared_fields()
        self.encoder = Stack(**fields, depth=self.depth, name="encoder")
        self.decoder = Stack(**fields, depth=self.depth, causal=True, cross=True, name="decoder")
        count = self.target_vocab or self.vocab
        self.head = (
            None
            if self.tie_embeddings
            else Embedding(count, self.width, self.width**-0.5, name="head")
        )

    def encode(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> Any:
        """Source tokens [B, S] of lengths [B] -> the memory: vectors [B, S, D] and which of them are real [B, S]."""
        segments = None if lengths is None else from_lengths(lengths, inputs.shape[1])
        at = self.places(inputs, None, None, 0)
        x = self.dropping(
            self.embed(self.sources, self.source_positions, inputs, at), deterministic=not train
        )
        with rows_only():  # the mask's positions are those of the target
            return self.encoder(x, Context(segments=segments, positions=at), train), segments

    def decode(
        self, previous: jax.Array, memory: Any, train: bool = False, cache: int = 0
    ) -> jax.Array:
        """Target tokens before each position [B, T] -> logits [B, T, V], float32; cache: as in Decoder."""
        offset = self.cached(previous.shape[1]) if cache else None
        at = self.places(previous, None, offset, cache)
        x = self.dropping(
            self.embed(self.targets, self.target_positions, previous, at), deterministic=not train
        )
        context = Context(memory=memory[0], memory_segments=memory[1], positions=at, offset=offset)
        x = self.decoder(x, context, train, cache)
        return to_logits(x, (self.targets if self.head is None else self.head).whole().T)

    def __call__(
        self,
        inputs: jax.Array,
        previous: jax.Array,
        lengths: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Source tokens [B, S] and the target's tokens before each position [B, T] -> logits [B, T, V], float32."""
        return self.decode(previous, self.encode(inputs, lengths, train), train)
