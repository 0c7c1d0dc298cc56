"""The next token of a text.

Letters in shape comments: B batch, L length, D width, V vocabulary, C pieces.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Objective, Sums, call, check_logits, cross_entropy, exponential, masked


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Softmax cross entropy in nats a token, accuracy, perplexity, and bits per byte.

    Reads `inputs` and `targets` [B, L] (token numbers; a target is the token after its input), `mask` [B, L], and
    what else the model takes. Perplexity and bits per byte are of the plain cross entropy, whatever the loss adds.
    """

    vocab: int
    """How many different tokens the data has."""
    z_loss: float = 0.0
    """Adds this times the square of log(sum(exp(logits))), which keeps logits small (PaLM: 1e-4)."""
    chunks: int = 0
    """Makes logits and their loss in that many pieces of the length, one at a time, so that float32 [B, L, V] is
    never in memory. For models with `hidden` and `unembedding`; 0: all at once."""
    bytes_per_token: float = 1.0
    """How many bytes of text a token stands for, on average."""

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        if self.chunks:
            values = self._in_pieces(forward, batch, train)
        else:
            values = self._values(call(forward, batch, train), batch["targets"])
        loss, right, square = values
        sums = {"loss": masked(loss, batch["mask"]), "accuracy": masked(right, batch["mask"])}
        if self.z_loss:
            sums |= {"cross_entropy": sums["loss"], "loss": masked(loss + self.z_loss * square, batch["mask"])}
        return sums

    def _values(self, logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, L, V] and [B, L] -> cross entropy, right or wrong, and log(sum(exp(logits)))**2, each [B, L]."""
        check_logits(logits, self.vocab, "tokens")
        square = jnp.square(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1))
        return cross_entropy(logits, targets), jnp.argmax(logits, axis=-1) == targets, square

    def _in_pieces(self, forward: Any, batch: Batch, train: bool) -> tuple[jax.Array, ...]:
        """The same from the model's last hidden states, with the logits of one piece in memory at a time."""
        if not (hasattr(forward, "hidden") and hasattr(forward, "unembedding")):
            raise Refused(f"chunks {self.chunks}: {type(forward).__name__} has no `hidden` and `unembedding`: use 0.")
        rows, length = batch["targets"].shape
        if self.chunks < 0 or length % self.chunks:
            raise Refused(f"chunks {self.chunks} do not divide the length {length}: choose a divisor, or 0.")
        x, kernel = call(forward, batch, train, "hidden"), forward.unembedding()  # [B, L, D], [D, V]

        @jax.checkpoint  # the backward pass makes a piece's logits again
        def piece(_: None, now: tuple[jax.Array, jax.Array]) -> tuple[None, Any]:
            x, targets = now  # [B, L/C, D], [B, L/C]
            # cast and gathered here, so that its gradient is added up in its own dtype, in the pieces it is stored in
            stored = nn.with_logical_constraint(kernel.astype(x.dtype), ("embed", "vocab"))
            whole = nn.with_logical_constraint(stored, (None, "vocab"))
            logits = (x @ whole[None]).astype(jnp.float32)
            return None, self._values(nn.with_logical_constraint(logits, ("batch", None, "vocab")), targets)

        def split(x: jax.Array) -> jax.Array:  # [B, L, ...] -> [C, B, L/C, ...]
            x = jnp.moveaxis(x.reshape(rows, self.chunks, length // self.chunks, *x.shape[2:]), 1, 0)
            return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

        _, values = jax.lax.scan(piece, None, (split(x), split(batch["targets"])))
        return tuple(jnp.moveaxis(each, 0, 1).reshape(rows, length) for each in values)

    def summarize(self, sums: Sums) -> dict[str, float]:
        metrics = super().summarize(sums)
        nats = metrics.get("cross_entropy", metrics["loss"])
        bits = nats / math.log(2) / self.bytes_per_token
        return metrics | {"perplexity": exponential(nats), "bits_per_byte": bits}
