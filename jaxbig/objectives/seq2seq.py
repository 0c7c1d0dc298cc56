"""The sequence-to-sequence objective: cross-entropy of a target sequence, given a source. Pure.

Letters in shape comments: B batch, S length of the source, T length of the target, V vocabulary of
the target.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.batch_mask import batch_mask
from jaxbig.constraints import FractionBelowOne, NonNegativeInt, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.objectives import bleu
from jaxbig.objectives.base import (
    Batch,
    Found,
    Objective,
    Sums,
    Words,
    check_logits,
    cross_entropy,
    masked,
)


@dataclasses.dataclass(frozen=True)
class Seq2Seq(Objective):
    """Cross entropy in nats a token and token accuracy, both with the true tokens before as input;
    in evaluation also the exact match, and BLEU, of what the model writes by itself, its likeliest
    token each time; with smoothing also `cross_entropy`, the loss without it.

    Reads `inputs` [B, S] (tokens of the source), `lengths` [B] where there are some, `targets` [B,
    T] (tokens, `end`, then padding), `mask` [B, T] (1 up to and including `end`; a row of zeros is
    padding). The model takes `(inputs, previous, lengths, train)`, and has `encode(inputs,
    lengths)` and `decode(previous, memory, cache)`.
    """

    vocab: PositiveInt
    """How many different tokens a target may hold."""
    start: NonNegativeInt
    """The token that comes before the first."""
    end: NonNegativeInt
    """The token that comes after the last."""
    smoothing: FractionBelowOne = 0.0
    """Label smoothing: the share of a target that is spread evenly over the vocabulary (Szegedy et
    al., 2016)."""
    bleu: bool = False
    """BLEU in percent over the data's tokens, whatever they are (needs sacrebleu)."""

    criterion = "exact_match"
    higher_is_better = True
    ordered = "targets"

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        validate(self)
        for field in ("start", "end"):
            if getattr(self, field) >= self.vocab:
                raise Refused(
                    f"{field} {getattr(self, field)} must be one of the {self.vocab} tokens: 0 or "
                    f"more, and less."
                )
        if self.bleu:
            bleu.check()  # before the run, not after its first evaluation
        targets = batch["targets"]
        mask = batch["mask"]
        start = jnp.full_like(targets[:, :1], self.start)
        previous = jnp.concatenate([start, targets[:, :-1]], axis=1)
        with batch_mask(mask):
            model: Any = forward
            logits = model(batch["inputs"], previous, **_lengths(batch), train=train)
        check_logits(logits, self.vocab, "tokens")  # [B, T, V]
        loss = cross_entropy(logits, targets, self.smoothing)
        sums = {
            "loss": masked(loss, mask),
            "accuracy": masked(jnp.argmax(logits, axis=-1) == targets, mask),
        }
        if train:
            return sums
        if self.smoothing:
            sums["cross_entropy"] = masked(cross_entropy(logits, targets), mask)
        if forward.is_initializing():  # decoding declares no parameters
            tokens = targets
        else:
            tokens = greedy(forward, batch, self.start, self.end, targets.shape[1])
        rows = jnp.any(mask > 0, axis=1)
        sums["exact_match"] = masked(jnp.all((tokens == targets) | (mask == 0), axis=1), rows)
        if self.bleu:
            sums |= bleu.counts(
                tokens,
                jnp.where(rows, before(tokens, self.end), 0),
                targets,
                before(targets, self.end, mask),
            )
        return sums

    def summarize(self, sums: Sums) -> dict[str, float]:
        metrics = super().summarize(
            {name: each for name, each in sums.items() if name not in bleu.NAMES}
        )
        return metrics | {"bleu": bleu.score(sums)} if bleu.NAMES[0] in sums else metrics

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`tokens` [B, T]: what the model writes, its likeliest token each time."""
        length = batch["targets"].shape[1]
        return {"tokens": greedy(forward, batch, self.start, self.end, length)}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`text`; where it is known `target`, and `exact_match`."""
        row: dict[str, Any] = {"text": words.text(_written(found["tokens"], self.end))}
        if "targets" in found:
            seen = found["mask"] > 0
            row["target"] = words.text(_written(found["targets"], self.end))
            row["exact_match"] = bool(np.all((found["tokens"] == found["targets"]) | ~seen))
        return row


def greedy(forward: nn.Module, batch: Batch, start: int, end: int, length: int) -> jax.Array:
    """The model's likeliest token each time, from `start` on -> [B, length], with 0 after `end`.

    It is a part of the compiled evaluation, in the batch's own shapes; `jaxbig.inference` has the
    loop that a host drives. forward: bound to its variables; a token a step is decoded, with what
    the model keeps in the collection "cache".
    """
    model, variables = forward.unbind()
    apply: Any = model.apply
    memory = apply(variables, batch["inputs"], **_lengths(batch), method="encode")
    rows = len(batch["inputs"])

    def write(cache: Any, token: jax.Array, ended: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        """The cache, the token before [B] and whether its row has ended [B] -> the same a token
        later."""
        state: Any = {**variables, **cache}
        logits, cache = apply(
            state, token[:, None], memory, cache=length, method="decode", mutable=["cache"]
        )
        token = jnp.argmax(logits[:, 0], axis=-1).astype(batch["targets"].dtype)
        token = nn.with_logical_constraint(jnp.where(ended, 0, token), ("batch",))
        return cache, token, ended | (token == end)

    first = write(
        {}, jnp.full(rows, start, batch["targets"].dtype), jnp.zeros(rows, bool)
    )  # makes the cache

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        return write(*carry), carry[1]

    (_, last, _), tokens = jax.lax.scan(step, first, length=length - 1)
    return jnp.concatenate([tokens, last[None]]).T


def before(tokens: jax.Array, end: int, mask: jax.Array | None = None) -> jax.Array:
    """How many tokens of [B, T] come before the first `end`, or before the mask ends: [B]."""
    going = tokens != end if mask is None else (tokens != end) & (mask > 0)
    return jnp.sum(jnp.cumprod(going, axis=1), axis=1)


def _written(tokens: np.ndarray, end: int) -> np.ndarray:
    """The tokens [T] before the first `end`."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if len(ends) else tokens


def _lengths(batch: Batch) -> dict[str, jax.Array]:
    return {"lengths": batch["lengths"]} if "lengths" in batch else {}
