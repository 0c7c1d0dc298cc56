"""The span objective: which part of a text answers a question. Pure.

Letters in shape comments: B batch, L length.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveInt
from jaxbig.errors import Refused
from jaxbig.objectives.base import (
    Batch,
    Found,
    Objective,
    Sums,
    Words,
    as_numbers,
    call,
    cross_entropy,
    in_words,
    masked,
)

OUT = -1e9
"""The score of a token that is no choice."""


@dataclasses.dataclass(frozen=True)
class Span(Objective):
    """Cross entropy in nats of the first and the last token of the answer, their mean (Devlin et
    al., 2019, section 4.2); in evaluation also `exact_span`, the share of answers that are found,
    and `span_f1`, by the tokens that a span shares with the right one.

    Reads `inputs` [B, L], `types` [B, L], 1 in the context, `offsets` [B, L, 2], of the words in
    it, `targets` [B, 2], `mask` [B], and what else the model takes, which gives two scores for each
    token, [B, L, 2]. An answer that is cut away, whose targets are 0, is not learned, and missed.
    """

    longest: PositiveInt = 30
    """Tokens of an answer at most."""

    criterion = "span_f1"
    higher_is_better = True

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        scores = self._scores(forward, batch, train)
        targets = batch["targets"]
        mask = batch["mask"]
        there = mask * jnp.any(targets > 0, axis=1)
        nats = cross_entropy(jnp.swapaxes(scores, 1, 2), targets)  # [B, 2]
        sums = {"loss": masked(jnp.where(there > 0, jnp.mean(nats, axis=1), 0), there)}
        if train:
            return sums
        spans, _ = best_spans(scores, batch["offsets"], longest=self.longest, count=1)
        spans = spans[:, 0]
        sizes = spans[:, 1] - spans[:, 0] + targets[:, 1] - targets[:, 0] + 2
        shared = jnp.minimum(spans[:, 1], targets[:, 1]) - jnp.maximum(spans[:, 0], targets[:, 0])
        sums["exact_span"] = masked(jnp.all(spans == targets, axis=1), mask)
        sums["span_f1"] = masked(2 * jnp.maximum(shared + 1, 0) / jnp.maximum(sizes, 1), mask)
        return sums

    def _scores(self, forward: nn.Module, batch: Batch, train: bool) -> jax.Array:
        """Scores [B, L, 2] in float32 or wider, `OUT` outside of the context."""
        scores = upcast(call(forward, batch, train))
        if scores.shape != (*batch["inputs"].shape, 2):
            raise Refused(
                f"the model gives {in_words(scores)}: a span needs two scores for each token, "
                f"{[*batch['inputs'].shape, 2]}, as Encoder with classes 2 and pooling none."
            )
        return jnp.where(batch["types"][..., None] > 0, scores, OUT)

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`spans` [B, top, 2], the likeliest first, their `probabilities` [B, top] among all pairs
        of a start and an end, and the `tokens` [B, L] and `words` [B, L, 2] that they are of."""
        scores = self._scores(forward, batch, train=False)
        spans, shares = best_spans(scores, batch["offsets"], longest=self.longest, count=top)
        return {
            "spans": spans,
            "probabilities": jnp.exp(shares),
            "tokens": batch["inputs"],
            "words": batch["offsets"],
        }

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`answer` and `start`, its place in the context in characters, and `probability`; `top`,
        the same of the best ones; where it is known `target` too, null if it is cut away, and
        `exact_span`."""
        pairs = list(zip(found["spans"], found["probabilities"], strict=True))
        best = [
            {
                "answer": text_of(found["tokens"], span, words),
                "start": int(found["words"][span[0], 0]),
                "probability": as_numbers(share),
            }
            for span, share in pairs[:1] + [pair for pair in pairs[1:] if pair[1] > 0]
        ]
        row: dict[str, Any] = {**best[0], "top": best}
        if "targets" in found:
            known = np.any(found["targets"] > 0)
            row["target"] = text_of(found["tokens"], found["targets"], words) if known else None
            row["exact_span"] = bool(np.all(found["spans"][0] == found["targets"]))
        return row


def text_of(tokens: np.ndarray, span: np.ndarray, words: Words) -> str:
    """The text of a span, its first and last token [2], of tokens [L]."""
    return words.text(tokens[span[0] : span[1] + 1]).strip()


def best_spans(
    scores: jax.Array, offsets: jax.Array, *, longest: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """The pairs of a first and a last token whose scores have the highest sums.

    Args:
      scores: of being the first and the last, [B, L, 2].
      offsets: of the word of each token, [B, L, 2]: an answer consists of whole words.
      longest: tokens of a span at most.
      count: how many to find.

    Returns:
      Spans [B, count, 2], the best first, and their log probabilities [B, count].
    """
    length = scores.shape[1]
    longest = min(longest, length)
    new = jnp.any(offsets[:, 1:] != offsets[:, :-1], axis=2)  # [B, L - 1]
    first = jnp.pad(new, ((0, 0), (1, 0)), constant_values=True)
    last = jnp.pad(new, ((0, 0), (0, 1)), constant_values=True)
    shares = jax.nn.log_softmax(scores, axis=1)
    starts = jnp.where(first, shares[..., 0], OUT)
    ends = jnp.where(last, shares[..., 1], OUT)
    ends = jnp.pad(ends, ((0, 0), (0, longest - 1)), constant_values=OUT)
    after = jnp.arange(length)[:, None] + jnp.arange(longest)[None]  # [L, longest]
    pairs = starts[..., None] + ends[:, after]  # [B, L, longest]
    best, flat = jax.lax.top_k(pairs.reshape(len(scores), -1), min(count, length * longest))
    return jnp.stack([flat // longest, flat // longest + flat % longest], axis=2), best
