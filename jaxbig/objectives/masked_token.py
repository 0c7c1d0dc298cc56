"""The masked-language-modeling objective of BERT: cross-entropy of hidden tokens. Pure.

Letters in shape comments: B batch, L length.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.constraints import Fraction, NonNegativeInt, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.objectives.base import (
    Batch,
    Objective,
    Sums,
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


def fingerprint(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """A number a row of [B, L] -> uint32 [B]: a polynomial in the tokens modulo 2**32; padding adds
    nothing."""
    factor = jnp.full(
        tokens.shape[1], 2_654_435_761, jnp.uint32
    )  # odd: no token's part is lost (Knuth, 6.4)
    powers = jnp.cumprod(factor, dtype=jnp.uint32)
    terms = (tokens.astype(jnp.uint32) + 1) * jnp.broadcast_to(powers, tokens.shape)
    return jnp.sum(jnp.where(mask > 0, terms, 0), axis=1, dtype=jnp.uint32)
