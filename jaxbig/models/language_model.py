"""Transformer language models: `Decoder` (GPT-2, Llama), `Encoder` (BERT), `EncoderDecoder` (T5).

Letters in shape comments: B batch, L length, S length of the source, T length of the target, D
width, V vocabulary.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.batch_mask import rows_only
from jaxbig.arrays.dtypes import HIGHEST, accumulation_dtype, upcast
from jaxbig.constraints import NonNegativeFloat, PositiveFloat, PositiveInt, choose
from jaxbig.errors import Refused
from jaxbig.models.base import Translator
from jaxbig.models.layers.attention import sinusoidal, softmax
from jaxbig.models.layers.attention_mask import from_lengths
from jaxbig.models.layers.basic import Embedding, LayerNorm, Linear, Norm, cast, drop, to_logits
from jaxbig.models.layers.cache import Count
from jaxbig.models.layers.heads import ClassifierHead, TokenHead, TokenTables, logits_of
from jaxbig.models.layers.parameters import constrain, parameter
from jaxbig.models.transformer import Context, Gate, Positions, Stack, TransformerFields


class Text(TokenTables, TransformerFields, kw_only=True):
    """What the three models share: the embedding of tokens and positions."""

    vocab: PositiveInt
    """Number of tokens in the vocabulary."""
    depth: PositiveInt = 6
    """Number of blocks."""
    width: PositiveInt = 256
    """Width of each token's vector."""
    max_length: PositiveInt = 1024
    """Number of learned positions, if positions are learned."""
    tie_embeddings: bool = False
    """Use the token embedding as the output matrix too (Press and Wolf, 2017)."""
    scale_embedding: bool = False
    """Multiply embeddings by the root of the width (Vaswani et al., 2017, section 3.4)."""

    def position_table(self, name: str) -> Embedding | None:
        """The learned positions; None if positions are not learned."""
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

    def token_positions(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        offset: Any,
        cache: int,
        *,
        padding: jax.Array | None = None,
    ) -> jax.Array:
        """Positions [1 or B, L] of tokens [B, L].

        Args:
          tokens: [B, L].
          positions: [B, L] of packed documents, returned as they are; None: counted.
          offset: [], the number of tokens in the cache; None: 0.
          cache: the size of the cache; 0: none.
          padding: [B], how many of a row's first tokens are padding; position 0 comes after them.
            The caller knows then how long the rows are.

        Raises:
          Refused: if there are fewer learned positions than tokens.
        """
        length = max(tokens.shape[1], cache) if padding is None else 0
        if self.positions == "learned" and length > self.max_length:
            raise Refused(
                f"a sequence of {length} is longer than max_length {self.max_length}: make that "
                f"{length} or more, or the sequence shorter."
            )
        counted = jnp.arange(tokens.shape[1])[None] + (0 if offset is None else offset)
        if padding is not None:
            counted = jnp.maximum(counted - padding[:, None], 0)
        return counted if positions is None else positions


class Decoder(TokenHead, Text, kw_only=True):
    """A causal Transformer language model.

    By default RMSNorm, no biases, rotary positions. GPT-2 (Radford et al., 2019) is norm layer,
    bias, learned positions, tied embeddings; Llama (Touvron et al., 2023) is activation swiglu.
    """

    logit_soft_cap: PositiveFloat | None = None
    """Bounds logits smoothly, as cap * tanh(logit / cap) (Gemma 2: 30); None: no bound."""

    def setup(self) -> None:
        self.tokens = self.token_table("tokens")
        self.learned = self.position_table("positions")
        self.blocks = Stack(**self.common_fields(), depth=self.depth, causal=True, name="blocks")
        self.cached = Count()
        self.dropping = nn.Dropout(self.dropout)
        self.head = self.output_table(self.tokens)

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        cache: int = 0,
        padding: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states before the output matrix.

        Args:
          tokens: [B, L]; with a cache, the next tokens only.
          segments: [B, L], the document of each token; None: one document a row.
          positions: [B, L] of packed documents; None: counted.
          train: whether dropout is on.
          cache: the number of tokens that the cache holds; 0: no cache.
          padding: [B], how many of the first tokens of each row in the cache are padding.

        Returns:
          [B, L, D].
        """
        offset = self.cached(tokens.shape[1]) if cache else None
        at = self.token_positions(tokens, positions, offset, cache, padding=padding)
        x = self.dropping(
            self.embed(self.tokens, self.learned, tokens, at), deterministic=not train
        )
        context = Context(segments=segments, positions=at, offset=offset, padding=padding)
        return self.blocks(x, context, train, cache)

    __call__ = logits_of(hidden)


class Encoder(Text, kw_only=True):
    """BERT (Devlin et al., 2019): bidirectional; logits for each token, or for `classes`."""

    classes: PositiveInt | None = None
    """Number of classes; None: logits for every token, through the masked-token head."""
    types: PositiveInt | None = None
    """Number of token types (sentences A and B are 2)."""
    pooling: Literal["first", "mean", "none"] = "first"
    """Input of the classifier: the first token through BERT's pooler, the mean of all, or each
    token by itself."""

    norm: Norm = "layer"
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
        """Logits for each token, or for the classes.

        Args:
          tokens: [B, L].
          lengths: [B]; or give segments.
          segments: [B, L], 0 for padding.
          types: [B, L], the token types; None: all 0.
          train: whether dropout is on.

        Returns:
          [B, L, V], or with `classes` [B, classes], or [B, L, classes] without pooling; float32.
        """
        if lengths is not None:
            segments = from_lengths(lengths, tokens.shape[1])
        at = self.token_positions(tokens, None, None, 0)
        table = self.token_table("tokens")
        x = self.embed(table, self.position_table("positions"), tokens, at)
        if self.types:
            kind = Embedding(self.types, self.width, 0.02, axis=None, name="types")
            x = x + kind(jnp.zeros_like(tokens) if types is None else types).astype(x.dtype)
        x = x if self.pre_norm else self.normalize("norm")(x)  # type: ignore[operator]
        x = drop(x, self.dropout, train)
        blocks = Stack(**self.common_fields(), depth=self.depth, name="blocks")
        x = blocks(x, Context(segments=segments, positions=at), train)  # [B, L, D]
        return (
            self.of_tokens(x, table)
            if self.classes is None
            else self.of_rows(x, segments, self.classes, train)
        )

    def of_tokens(self, x: jax.Array, table: Embedding) -> jax.Array:
        """BERT's masked-token head: linear, GELU, norm, output; [B, L, D] -> [B, L, V]."""
        x = nn.gelu(Linear((self.width,), ("embed", None), name="transform")(x), approximate=False)
        x = constrain(x, "batch", "length", None)
        x = LayerNorm(self.epsilon, name="transform_norm")(x)
        logits = to_logits(x, self.output_table(table).output())
        bias = parameter(self, "bias", nn.initializers.zeros, (self.vocab,), ("vocab",))
        return constrain(logits + jnp.broadcast_to(bias, logits.shape), "batch", "length", "vocab")

    def of_rows(
        self, x: jax.Array, segments: jax.Array | None, classes: int, train: bool
    ) -> jax.Array:
        """[B, L, D] -> [B, classes], or [B, L, classes] without pooling."""
        pooling = choose("pooling", self.pooling, ("first", "mean", "none"))
        if pooling == "first":
            x = jnp.tanh(Linear((self.width,), ("embed", None), name="pooler")(x[:, 0]))
        elif pooling == "mean":
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
        return ClassifierHead(classes, name="classifier")(drop(x, self.dropout, train))


class EncoderDecoder(Translator, Text, kw_only=True):
    """The translation Transformer (Vaswani et al., 2017).

    Positions relative are those of T5 (Raffel et al., 2020).
    """

    target_vocab: PositiveInt | None = None
    """Size of the target vocabulary; None: source and target share one table."""
    scale_logits: bool = False
    """Divide logits by the root of the width, as T5 with tied embeddings does."""
    copying: bool = False
    """Mix the next token's distribution with one over the tokens of the source, as a pointer-
    generator network (See et al., 2017). Takes memory for an array [B, S, V]."""

    norm: Norm = "layer"
    pre_norm: bool = False
    bias: bool = True
    activation: Gate = "relu"
    positions: Positions = "sinusoidal"
    tie_embeddings: bool = True
    scale_embedding: bool = True

    def setup(self) -> None:
        self.sources = self.token_table("tokens")
        self.targets = self.sources
        if self.target_vocab is not None:
            self.targets = self.token_table("target_tokens", self.target_vocab)
        self.source_positions = self.position_table("positions")
        self.target_positions = self.position_table("target_positions")
        self.cached = Count()
        self.dropping = nn.Dropout(self.dropout)
        fields = self.common_fields()
        self.encoder = Stack(**fields, depth=self.depth, name="encoder")
        self.decoder = Stack(**fields, depth=self.depth, causal=True, cross=True, name="decoder")
        self.head = self.output_table(self.targets, self.target_vocab)
        if self.copying:
            self.pointer = Linear((self.width,), ("embed", None), bias=False)
            self.copies = Linear((1,), ("embed", None))

    def encode(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> Any:
        """Source tokens [B, S], lengths [B] -> memory: states [B, S, D], segments [B, S] and, to be
        copied, the tokens."""
        if self.copying and self.target_vocab is not None:
            raise Refused(
                f"copying: source and target need one vocabulary, and target_vocab is "
                f"{self.target_vocab}: leave it out."
            )
        segments = None if lengths is None else from_lengths(lengths, inputs.shape[1])
        at = self.token_positions(inputs, None, None, 0)
        x = self.dropping(
            self.embed(self.sources, self.source_positions, inputs, at), deterministic=not train
        )
        with rows_only():  # the mask's positions are those of the target
            states = self.encoder(x, Context(segments=segments, positions=at), train)
        return (states, segments, inputs) if self.copying else (states, segments)

    def decode(
        self, previous: jax.Array, memory: Any, train: bool = False, cache: int = 0
    ) -> jax.Array:
        """Logits of the target.

        Args:
          previous: [B, T], the target token before each position.
          memory: what `encode` returned.
          train: whether dropout is on.
          cache: as in `Decoder.hidden`.

        Returns:
          [B, T, V], float32.
        """
        offset = self.cached(previous.shape[1]) if cache else None
        at = self.token_positions(previous, None, offset, cache)
        x = self.dropping(
            self.embed(self.targets, self.target_positions, previous, at), deterministic=not train
        )
        context = Context(memory=memory[0], memory_segments=memory[1], positions=at, offset=offset)
        x = self.decoder(x, context, train, cache)
        scaled = x * self.width**-0.5 if self.scale_logits else x
        logits = to_logits(scaled, self.head.whole().T)
        return self.with_copies(x, logits, *memory) if self.copying else logits

    def with_copies(
        self,
        x: jax.Array,
        logits: jax.Array,
        states: jax.Array,
        segments: jax.Array | None,
        tokens: jax.Array,
    ) -> jax.Array:
        """Log probabilities [B, T, V]: p softmax(logits) + (1 - p) attention over the source's
        tokens (See et al., 2017, equations 8 and 9).

        Args:
          x: the decoder's states, [B, T, D].
          logits: of the vocabulary, [B, T, V].
          states: the encoder's, [B, S, D].
          segments: [B, S], 0 for padding.
          tokens: of the source, [B, S].
        """
        scores = upcast(jnp.einsum("btd,bsd->bts", self.pointer(x), states)) * self.width**-0.5
        if segments is not None:
            scores = jnp.where(segments[:, None] > 0, scores, -1e9)
        kinds = jax.nn.one_hot(tokens, self.vocab, dtype=scores.dtype)  # [B, S, V]
        copied = jnp.einsum("bts,bsv->btv", softmax(scores), kinds)
        gate = upcast(self.copies(x))  # [B, T, 1]
        made = jax.nn.log_softmax(logits, axis=-1) + jax.nn.log_sigmoid(gate)
        mixed = jnp.logaddexp(made, jnp.log(copied + 1e-9) + jax.nn.log_sigmoid(-gate))
        return constrain(mixed, "batch", "length", "vocab")
