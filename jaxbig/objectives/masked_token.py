"""The masked-language-modeling objective of BERT: cross-entropy of hidden tokens. Pure.

Letters in shape comments: B batch, L length.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import Fraction, NonNegativeInt, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.objectives.base import (
    Batch,
    Found,
    Objective,
    Sums,
    Words,
    as_numbers,
    call,
    check_logits,
    cross_entropy,
    exponential,
    masked,
)


@dataclasses.dataclass(frozen=True)
class MaskedToken(Objective):
    """Masked language modelling (Devlin et al., 2019): cross entropy in nats, accuracy, perplexity
    and bits over the tokens that were chosen.

    A share `rate` of a row's tokens is chosen, and one at least, so that no loss is over nothing;
    of those 80% become the mask token, 10% another token of the vocabulary at random and 10% stay.
    What is chosen follows from the key and the row's own tokens alone: an example is corrupted
    identically in whatever batch, row or mesh it comes.

    Reads `inputs` [B, L] (token numbers, uncorrupted: they are the targets), `mask` [B, L] (which
    of them may be chosen), and what else the model takes.
    """

    vocab: PositiveInt
    """How many different tokens there are, the mask token among them."""
    mask_token: NonNegativeInt
    """The number that stands for a hidden token."""
    rate: Fraction = 0.15
    """Share of the tokens that are chosen."""

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        validate(self)
        if self.mask_token >= self.vocab or self.vocab < 2:
            raise Refused(
                f"mask_token {self.mask_token} must be one of the {self.vocab} tokens, of 2 or "
                f"more."
            )
        targets = batch["inputs"]
        inputs, chosen = self.corrupt(targets, batch["mask"], key)
        logits = call(forward, {**batch, "inputs": inputs}, train)
        check_logits(logits, self.vocab, "tokens")
        right = jnp.argmax(logits, axis=-1) == targets
        return {
            "loss": masked(cross_entropy(logits, targets), chosen),
            "accuracy": masked(right, chosen),
        }

    def corrupt(
        self, tokens: jax.Array, mask: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens and mask [B, L] -> what the model sees [B, L], and which positions are chosen [B,
        L]."""
        length = tokens.shape[1]

        def draw(row: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            shares, other = jax.random.split(row)
            which, how = jax.random.uniform(shares, (2, length))
            return which, how, jax.random.randint(other, (length,), 0, self.vocab - 1, tokens.dtype)

        rows = jax.vmap(jax.random.fold_in, (None, 0))(key, fingerprint(tokens, mask))
        which, how, other = jax.vmap(draw)(rows)  # [B, L] each
        other = other + (other >= self.mask_token)  # any token but the mask token
        which = jnp.where(mask > 0, which, 2.0)
        first = jnp.arange(length)[None] == jnp.argmin(which, axis=1)[:, None]
        chosen = ((which < self.rate) | first) & (mask > 0)
        seen = jnp.where(how < 0.8, self.mask_token, jnp.where(how < 0.9, other, tokens))
        return jnp.where(chosen, seen, tokens), chosen

    def summarize(self, sums: Sums) -> dict[str, float]:
        metrics = super().summarize(sums)
        nats = metrics["loss"]
        return metrics | {"perplexity": exponential(nats), "bits_per_token": nats / math.log(2)}

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """What the model sees in place of each token that is hidden.

        In a row with mask tokens those are hidden; another row is corrupted as in an evaluation.

        Returns:
          `hidden` [B, L], which tokens are asked for; `asked` [B], whether the row has mask tokens;
          `counted` [B, L], which tokens are no padding; `tokens` [B, L]; `best` and
          `probabilities` [B, L, top], the likeliest first; `losses` [B, L].
        """
        tokens = batch["inputs"]
        given = (tokens == self.mask_token) & (batch["mask"] > 0)
        asked = jnp.any(given, axis=1)
        corrupted, chosen = self.corrupt(tokens, batch["mask"], key)
        inputs = jnp.where(asked[:, None], tokens, corrupted)
        logits = upcast(call(forward, {**batch, "inputs": inputs}, False))
        check_logits(logits, self.vocab, "tokens")
        most, best = jax.lax.top_k(logits, min(top, self.vocab))
        return {
            "hidden": jnp.where(asked[:, None], given, chosen),
            "asked": asked,
            "counted": batch["mask"] > 0,
            "tokens": tokens,
            "best": best,
            "probabilities": jnp.exp(most - jax.nn.logsumexp(logits, axis=-1, keepdims=True)),
            "losses": cross_entropy(logits, tokens),
        }

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`text` with the likeliest tokens in place of the hidden ones, and `masked`, these.

        Where they are known, each has its `target` too, and the row `loss` and `accuracy`.
        """

        def named(token: np.ndarray) -> dict[str, Any]:
            return {"token": int(token), "text": words.text(np.asarray(token)[None])}

        places = np.flatnonzero(found["hidden"])
        filled = np.where(found["hidden"], found["best"][:, 0], found["tokens"])
        known = not found["asked"]
        masked_tokens = []
        for place in places:
            answers = [
                {**named(token), "probability": as_numbers(share)}
                for token, share in zip(
                    found["best"][place], found["probabilities"][place], strict=True
                )
            ]
            answer = {"position": int(place), **answers[0], "top": answers}
            if known:
                answer["target"] = named(found["tokens"][place])
            masked_tokens.append(answer)
        end = int(np.max(np.flatnonzero(found["counted"]), initial=-1)) + 1
        row: dict[str, Any] = {"text": words.text(filled[:end]), "masked": masked_tokens}
        if known and len(places):
            right = found["best"][places, 0] == found["tokens"][places]
            row["loss"] = float(np.mean(found["losses"][places], dtype=np.float64))
            row["accuracy"] = float(np.mean(right))
        return row


def fingerprint(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """A number a row of [B, L] -> uint32 [B]: a polynomial in the tokens modulo 2**32; padding adds
    nothing."""
    factor = jnp.full(
        tokens.shape[1], 2_654_435_761, jnp.uint32
    )  # odd: no token's part is lost (Knuth, 6.4)
    powers = jnp.cumprod(factor, dtype=jnp.uint32)
    terms = (tokens.astype(jnp.uint32) + 1) * jnp.broadcast_to(powers, tokens.shape)
    return jnp.sum(jnp.where(mask > 0, terms, 0), axis=1, dtype=jnp.uint32)
