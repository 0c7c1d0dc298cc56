"""The CTC objective (Graves et al., 2006): a token sequence from frames, without alignment. Pure.

Letters in shape comments: B batch, F frames of the inputs, L of the model, T target tokens, K
classes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import NonNegativeInt, PositiveInt
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
    masked,
)
from jaxbig.objectives.prefix_search import BLANK, prefix_search


@dataclasses.dataclass(frozen=True)
class CTC(Objective):
    """Connectionist temporal classification (Graves et al., 2006): nats an example; in evaluation
    also the token error rate (where tokens are characters, the character error rate) and the exact
    match of what is decoded; with `space` also the word error rate.

    Reads `inputs` [B, F, ...], `lengths` [B] (frames), `targets` [B, T] (from 1: 0 is the blank)
    and `mask` [B, T]. Examples without a target are padding. An example with too few frames for its
    targets has no alignment: it is left out of the loss and counted in `impossible`.
    """

    classes: PositiveInt
    """How many tokens there are, the blank (0) among them."""
    stride: PositiveInt = 1
    """Frames of the inputs for each frame of logits: how much the model subsamples."""
    beam: NonNegativeInt = 0
    """Prefixes that decoding keeps (beam search); 0: greedy, the likeliest token of each frame."""
    space: PositiveInt | None = None
    """The token between words, for the word error rate, which compares words by hashes of 32 bits;
    None: there is none."""

    criterion = "error_rate"
    least_target = 1  # no target is a blank

    def check_fields(self) -> None:
        if self.space is not None and self.space >= self.classes:
            raise Refused(f"space {self.space}: it must be below classes, {self.classes}.")

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        logits = self._logits(forward, batch, train)
        targets = batch["targets"]
        mask = batch["mask"]
        tokens = mask > 0
        lengths, absent = self._ends(batch, logits)
        repeats = (targets[:, 1:] == targets[:, :-1]) & tokens[:, 1:]  # a blank must come between
        needed = jnp.sum(tokens, axis=1) + jnp.sum(repeats, axis=1)
        rows = jnp.any(tokens, axis=1)
        fits = needed <= lengths
        nats = optax.ctc_loss(
            logits, absent.astype(logits.dtype), targets, 1.0 - tokens, blank_id=BLANK
        )
        sums = {
            "loss": masked(jnp.where(fits, nats, 0), rows & fits),
            "impossible": masked(~fits, rows),
        }
        if train:
            return sums
        heard = self._decoded(logits, absent)
        edits = edit_distance(*heard, targets, tokens)
        sums["error_rate"] = _rate(edits, tokens)
        sums["exact_match"] = masked(edits == 0, rows)
        if self.space is not None:
            words, ends = words_of(targets, tokens, self.space)
            edits = edit_distance(*words_of(*heard, self.space), *_first(words, ends))
            sums["word_error_rate"] = _rate(edits, ends)
        return sums

    def _logits(self, forward: nn.Module, batch: Batch, train: bool) -> jax.Array:
        """What the model gives, [B, L, K]."""
        logits = call(forward, batch, train)
        check_logits(logits, self.classes, "classes")
        frames = batch["inputs"].shape[1]
        if logits.shape[1] != (wanted := -(-frames // self.stride)):
            raise Refused(
                f"the model gives {logits.shape[1]} frames for {frames}: CTC needs {wanted}, with "
                f"stride {self.stride}; set --objective.stride to what the model has."
            )
        return upcast(logits)

    def _ends(self, batch: Batch, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The frames of each example [B], and which of [B, L] are beyond its end."""
        lengths = -(-batch["lengths"] // self.stride)
        return lengths, jnp.arange(logits.shape[1])[None] >= lengths[:, None]

    def _decoded(self, logits: jax.Array, absent: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens [B, L], and which of them are in the transcript."""
        if not self.beam:
            return likeliest(logits, absent)
        prefixes, sizes, _ = prefix_search(logits, absent, self.beam)
        return prefixes[:, 0], jnp.arange(logits.shape[1])[None] < sizes[:, :1]

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`tokens` [B, L], and `present` [B, L], which of them are in the transcript; `edits` [B],
        its distance from the targets."""
        logits = self._logits(forward, batch, train=False)
        tokens, present = self._decoded(logits, self._ends(batch, logits)[1])
        edits = edit_distance(tokens, present, batch["targets"], batch["mask"] > 0)
        return {"tokens": tokens, "present": present, "edits": edits}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`text`; where it is known `target`, and `edits`, how many tokens are wrong."""
        row: dict[str, Any] = {"text": words.text(found["tokens"][found["present"]])}
        if "targets" in found:
            target = np.asarray(found["targets"])[found["mask"] > 0]
            row |= {"target": words.text(target), "edits": int(found["edits"])}
        return row


def likeliest(logits: jax.Array, absent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The likeliest token of each frame, and which of them remain without repeats and blanks.

    Args:
      logits: [B, L, K].
      absent: frames beyond an example's end, [B, L].
    """
    best = jnp.argmax(logits, axis=-1)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
    return best, (best != BLANK) & (best != before) & ~absent


def words_of(tokens: jax.Array, present: jax.Array, space: int) -> tuple[jax.Array, jax.Array]:
    """The words of each row, as hashes at the places where they end.

    Args:
      tokens: [B, L].
      present: which of them are in the text, [B, L].
      space: the token between words.

    Returns:
      Hashes, uint32 [B, L + 1], and where a word ends, [B, L + 1].
    """
    # a space behind the last word ends it
    tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=space)
    present = jnp.pad(present, ((0, 0), (0, 1)), constant_values=True)

    def step(word: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        token, there = now  # [B] each; word: the hash of its letters up to now, 0 before the first
        ends = there & (token == space)
        longer = word * jnp.uint32(0x9E3779B1) + token.astype(jnp.uint32)
        after = jnp.where(ends, 0, jnp.where(there, longer, word))
        return after, (word, ends & (word > 0))

    nothing = jnp.zeros(len(tokens), jnp.uint32)
    _, (words, ends) = jax.lax.scan(step, nothing, (tokens.T, present.T))
    return words.T, ends.T


def _first(values: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, L] with those that are there first, in their order; and which are."""
    order = jnp.argsort(~there, axis=1, stable=True)
    return jnp.take_along_axis(values, order, axis=1), jnp.take_along_axis(there, order, axis=1)


def _rate(edits: jax.Array, reference: jax.Array) -> Sum:
    """Edits [B] of rows that have a reference, over how much [B, T] that has."""
    count = jnp.sum(reference.astype(jnp.float32))
    return Sum(masked(edits, jnp.any(reference, axis=1)).total, count)


def edit_distance(
    given: jax.Array, present: jax.Array, targets: jax.Array, mask: jax.Array
) -> jax.Array:
    """Levenshtein's distance of each row: the tokens of given [B, L] where present [B, L] against
    the first of targets [B, T] as mask [B, T] counts them -> int32 [B].
    """
    places = jnp.broadcast_to(
        jnp.arange(targets.shape[1] + 1)[None], (len(targets), targets.shape[1] + 1)
    )

    def step(before: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        # [B] each; before: [B, T + 1], the distance of the output to each prefix of the target
        token, there = now
        changed = before[:, :-1] + (token[:, None] != targets)
        after = jnp.concatenate(
            [before[:, :1] + 1, jnp.minimum(before[:, 1:] + 1, changed)], axis=1
        )
        # tokens left out: min over k <= j of after_k + j - k
        after = jax.lax.cummin(after - places, axis=1) + places
        return jnp.where(there[:, None], after, before), None

    last, _ = jax.lax.scan(step, places, (given.T, present.T))
    ends = jnp.sum(mask > 0, axis=1)
    return jnp.take_along_axis(last, ends[:, None], axis=1)[:, 0]
