"""The CTC objective (Graves et al., 2006): a token sequence from frames, without alignment. Pure.

Letters in shape comments: B batch, L frames, T target tokens, K classes.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveInt
from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Objective, Sum, Sums, call, check_logits, masked

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
        logits = call(forward, batch, train)
        targets = batch["targets"]
        mask = batch["mask"]
        check_logits(logits, self.classes, "classes")
        frames = batch["inputs"].shape[1]
        if logits.shape[1] != frames:
            raise Refused(
                f"the model gives {logits.shape[1]} frames for {frames}: CTC needs one for each."
            )
        logits = upcast(logits)
        tokens = mask > 0
        absent = jnp.arange(frames)[None] >= batch["lengths"][:, None]  # [B, L]
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
        best = jnp.argmax(logits, axis=-1)
        before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
        present = (best != BLANK) & (best != before) & ~absent  # repeats collapsed, blanks dropped
        edits = edit_distance(best, present, targets, tokens)
        reference = jnp.sum(tokens.astype(jnp.float32))
        sums["error_rate"] = Sum(masked(edits, rows).total, reference)
        return sums | {"exact_match": masked(edits == 0, rows)}


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
