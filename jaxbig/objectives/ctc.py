"""The CTC objective (Graves et al., 2006): a token sequence from frames, without alignment. Pure.

Letters in shape comments: B batch, L frames, T target tokens, K classes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveInt
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

BLANK = 0


@dataclasses.dataclass(frozen=True)
class CTC(Objective):
    """Connectionist temporal classification (Graves et al., 2006): nats an example; in evaluation
    also the token error rate and the exact match of greedy decoding.

    Reads `inputs` [B, L, ...], `lengths` [B] (frames), `targets` [B, T] (from 1: 0 is the blank)
    and `mask` [B, T]. Examples without a target are padding. An example with too few frames for its
    targets has no alignment: it is left out of the loss and counted in `impossible`.
    """

    classes: PositiveInt
    """How many tokens there are, the blank (0) among them."""

    criterion = "error_rate"

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        logits = self._logits(forward, batch, train)
        targets = batch["targets"]
        mask = batch["mask"]
        tokens = mask > 0
        absent = _absent(batch)
        repeats = (targets[:, 1:] == targets[:, :-1]) & tokens[:, 1:]  # a blank must come between
        needed = jnp.sum(tokens, axis=1) + jnp.sum(repeats, axis=1)
        rows = jnp.any(tokens, axis=1)
        fits = needed <= batch["lengths"]
        nats = optax.ctc_loss(
            logits, absent.astype(logits.dtype), targets, 1.0 - tokens, blank_id=BLANK
        )
        sums = {
            "loss": masked(jnp.where(fits, nats, 0), rows & fits),
            "impossible": masked(~fits, rows),
        }
        if train:
            return sums
        best, present = likeliest(logits, absent)
        edits = edit_distance(best, present, targets, tokens)
        reference = jnp.sum(tokens.astype(jnp.float32))
        sums["error_rate"] = Sum(masked(edits, rows).total, reference)
        return sums | {"exact_match": masked(edits == 0, rows)}

    def _logits(self, forward: nn.Module, batch: Batch, train: bool) -> jax.Array:
        """What the model gives, [B, L, K]."""
        logits = call(forward, batch, train)
        check_logits(logits, self.classes, "classes")
        frames = batch["inputs"].shape[1]
        if logits.shape[1] != frames:
            raise Refused(
                f"the model gives {logits.shape[1]} frames for {frames}: CTC needs one for each."
            )
        return upcast(logits)

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`tokens` [B, L], the likeliest of each frame, and `present` [B, L], which of them are in
        the transcript; `edits` [B], its distance from the targets."""
        best, present = likeliest(self._logits(forward, batch, train=False), _absent(batch))
        edits = edit_distance(best, present, batch["targets"], batch["mask"] > 0)
        return {"tokens": best, "present": present, "edits": edits}

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


def _absent(batch: Batch) -> jax.Array:
    """The frames beyond each example's end, [B, L]."""
    return jnp.arange(batch["inputs"].shape[1])[None] >= batch["lengths"][:, None]


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
