"""How the next token is chosen from a model's logits: the likeliest, or drawn from the likely ones.

Letters in shape comments: R rows, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings of a choice, applied in the order of the fields, as `transformers` does."""

    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that a text has already, and multiplies the negative
    ones (Keskar et al., 2019); 1: none."""
    temperature: float = 1.0
    """Divides the logits: below 1 likelier tokens are preferred; 0: always the likeliest."""
    top_k: int = 0
    """Draw from the k likeliest tokens (Fan et al., 2018); 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability (Holtzman et al., 2020).
    """
    min_p: float = 0.0
    """Draw from the tokens with this share of the likeliest one's probability or more (Nguyen et
    al., 2024)."""

    def check(self) -> None:
        """Raises `Refused` for a value out of its range."""
        wanted = {
            "repetition_penalty": (1e-3 <= self.repetition_penalty <= 1e3, "0.001 to 1000"),
            "temperature": (
                self.temperature == 0 or 1e-3 <= self.temperature <= 1e3,
                "0, or 0.001 to 1000",
            ),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
        }
        for name, (good, text) in wanted.items():
            if not good:
                raise Refused(f"{name} {getattr(self, name)}: it must be {text}.")

    def scores(self, logits: jax.Array, seen: jax.Array) -> jax.Array:
        """The logits [R, V] by which the next token is drawn, -inf for tokens that are left out.

        Args:
          logits: [R, V], float32.
          seen: [R, V], which tokens each row has; unused without a repetition penalty.
        """
        if self.repetition_penalty != 1:
            factor = self.repetition_penalty
            penalized = jnp.where(logits > 0, logits / factor, logits * factor)
            logits = jnp.where(seen, penalized, logits)
        if not self.temperature:
            return logits
        logits = logits / self.temperature
        vocab = logits.shape[-1]
        if 0 < self.top_k < vocab:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p < 1:
            few = self.top_k if 0 < self.top_k < vocab else vocab
            sorted_logits = jax.lax.top_k(logits, few)[0]  # [R, few], the likeliest first
            likelier = jnp.cumsum(jax.nn.softmax(sorted_logits), axis=-1)
            before = jnp.pad(likelier[:, :-1], ((0, 0), (1, 0)))  # of all tokens before each
            least = jnp.min(
                jnp.where(before < self.top_p, sorted_logits, jnp.inf), axis=-1, keepdims=True
            )
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.min_p:
            probabilities = jax.nn.softmax(logits)
            most = jnp.max(probabilities, axis=-1, keepdims=True)
            logits = jnp.where(probabilities < self.min_p * most, -jnp.inf, logits)
        return logits

    def choose(
        self, logits: jax.Array, seen: jax.Array, keys: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """The next token of each row, [R].

        It is a pure function of the row's logits, key and position: the key is folded with the
        position, and Gumbel noise from it is added to the scores (Gumbel, 1954).

        Args:
          logits: [R, V], float32.
          seen: as of `scores`.
          keys: [R], of each prompt.
          positions: [R], the number of tokens before the one that is chosen.
        """
        scores = self.scores(logits, seen)
        if self.temperature:

            def noise(key: jax.Array, position: jax.Array) -> jax.Array:
                return jax.random.gumbel(jax.random.fold_in(key, position), scores.shape[-1:])

            scores = scores + jax.vmap(noise)(keys, positions)
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
