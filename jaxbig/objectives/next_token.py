"""The language-modeling objective: cross-entropy of the next token. Pure.

Letters in shape comments: B batch, L length, D width, V vocabulary, C chunks.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from jaxbig.distributed.logical_axes import split
from jaxbig.errors import Refused
from jaxbig.objectives.base import (
    Batch,
    Found,
    Objective,
    Sum,
    Sums,
    Words,
    call,
    check_logits,
    cross_entropy,
    exponential,
    masked,
)


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Softmax cross entropy in nats a token, accuracy, perplexity, and bits a token, or a byte
    where it is known how many a token has.

    Reads `inputs` and `targets` [B, L] (token numbers; a target is the token after its input),
    `mask` [B, L], and what else the model takes. Perplexity and bits are of the plain cross
    entropy, whatever the loss adds.
    """

    vocab: PositiveInt
    """How many different tokens the data has."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of the z-loss, logsumexp(logits)^2, which keeps logits small (PaLM: 1e-4)."""
    chunks: NonNegativeInt = 0
    """Chunks of the vocabulary, a divisor of it, whose logits are computed one at a time, to save
    memory. The model needs `hidden` and `unembedding`. 0: all at once."""
    bytes_per_token: PositiveFloat | None = None
    """Mean bytes of text per token (1 if tokens are bytes); reports `bits_per_byte` instead of
    `bits_per_token`."""

    ordered = "inputs"

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        loss, right, square = self._of_tokens(forward, batch, train)
        sums = {"loss": masked(loss, batch["mask"]), "accuracy": masked(right, batch["mask"])}
        if self.z_loss:
            sums |= {
                "cross_entropy": sums["loss"],
                "loss": masked(loss + self.z_loss * square, batch["mask"]),
            }
        return sums

    def _of_tokens(self, forward: nn.Module, batch: Batch, train: bool) -> tuple[jax.Array, ...]:
        """What `_values` returns, all at once or in chunks."""
        if self.chunks:
            return self._chunked_values(forward, batch, train)
        return self._values(call(forward, batch, train), batch["targets"])

    def _values(
        self, logits: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, L, V] and [B, L] -> cross entropy, right or wrong, and log(sum(exp(logits)))**2, each
        [B, L]."""
        check_logits(logits, self.vocab, "tokens")
        square = jnp.square(jax.nn.logsumexp(upcast(logits), axis=-1))
        return cross_entropy(logits, targets), jnp.argmax(logits, axis=-1) == targets, square

    def _chunked_values(self, forward: Any, batch: Batch, train: bool) -> tuple[jax.Array, ...]:
        """Like `_values`, from the model's hidden states, with one chunk of logits in memory.

        A model's field `logit_soft_cap`, where it has one, bounds them as `Decoder` does.
        """
        if not (hasattr(forward, "hidden") and hasattr(forward, "unembedding")):
            raise Refused(
                f"chunks {self.chunks}: {type(forward).__name__} has no `hidden` and "
                f"`unembedding`: use 0."
            )
        hidden = call(forward, batch, train, "hidden")
        kernel = forward.unembedding()
        cap = getattr(forward, "logit_soft_cap", None)
        targets = batch["targets"]
        check_logits(kernel, self.vocab, "tokens")
        x = upcast(hidden)  # its gradient is summed over the chunks in float32

        @jax.checkpoint  # the backward pass recomputes a chunk's logits
        def add_chunk(carry: tuple[jax.Array, ...], xs: list[jax.Array]) -> Any:
            # the greatest logit, sum(exp(logits - most)) and the target's logit, [B, L] each
            most, total, wanted = carry
            numbers, columns = xs  # the chunk's tokens [V/C] and their columns [D, V/C]
            # cast, then gathered here, so that its gradient is added up in the pieces it is stored
            # in
            stored = nn.with_logical_constraint(columns.astype(hidden.dtype), ("embed", "vocab"))
            whole = nn.with_logical_constraint(stored, (None, "vocab"))
            logits = upcast(jnp.tensordot(x.astype(hidden.dtype), whole, axes=1))
            logits = nn.with_logical_constraint(logits, ("batch", "length", "vocab"))  # [B, L, V/C]
            if cap is not None:
                logits = cap * jnp.tanh(logits / cap)
            greatest = jnp.maximum(most, jax.lax.stop_gradient(jnp.max(logits, axis=-1)))
            total = total * jnp.exp(most - greatest) + jnp.sum(
                jnp.exp(logits - greatest[..., None]), axis=-1
            )
            found = jnp.where(numbers[None, None] == targets[..., None], logits, 0)
            return (greatest, total, wanted + jnp.sum(found, axis=-1)), None

        nothing = jnp.zeros(targets.shape)
        start = jnp.full(targets.shape, -1e30), nothing, nothing
        chunks = [
            split(jnp.arange(self.vocab), 0, "vocab", self.chunks),
            split(kernel, 1, "vocab", self.chunks),
        ]
        (most, total, wanted), _ = jax.lax.scan(add_chunk, start, chunks)
        normalizer = most + jnp.log(total)
        return normalizer - wanted, wanted >= most, jnp.square(normalizer)

    def summarize(self, sums: Sums) -> dict[str, float]:
        metrics = super().summarize(sums)
        nats = metrics.get("cross_entropy", metrics["loss"])
        metrics |= {"perplexity": exponential(nats)}
        if self.bytes_per_token is None:
            return metrics | {"bits_per_token": nats / math.log(2)}
        return metrics | {"bits_per_byte": nats / math.log(2) / self.bytes_per_token}

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`losses` [B, L], the cross entropy of each token in nats; `right` [B, L], whether it was
        the likeliest; `counted` [B, L], which tokens count."""
        losses, right, _ = self._of_tokens(forward, batch, train=False)
        return {"losses": losses, "right": right, "counted": batch["mask"] > 0}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`tokens`, how many were read, with the metrics of an evaluation over these."""
        counted = found["counted"]
        count = int(counted.sum())
        if not count:
            return {"tokens": 0}
        sums = {
            "loss": Sum(float(np.sum(found["losses"][counted], dtype=np.float64)), count),
            "accuracy": Sum(int(np.sum(found["right"][counted])), count),
        }
        return {"tokens": count, **self.summarize(sums)}
