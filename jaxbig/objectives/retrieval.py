"""The retrieval objective: softmax over a catalog; hit rate and NDCG of the ranking. Pure.

Letters in shape comments: B batch, N shown items, K items of the catalog.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveInt, validate
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
    masked,
)


@dataclasses.dataclass(frozen=True)
class Retrieval(Objective):
    """Softmax cross entropy in nats over all items (Covington et al., 2016), and in evaluation the
    hit rate and NDCG of the ranking (Järvelin and Kekäläinen, 2002).

    Reads `inputs` [B, N], of which `lengths` [B] count where there are these, the item `targets`
    [B], `mask` [B], and what else the model takes, which gives a score for each item, [B, K]. With
    one target, NDCG is 1 / log2(1 + rank), and 0 beyond the cutoff.
    """

    items: PositiveInt
    """How many items the catalog has."""
    cutoff: PositiveInt = 10
    """The ranks that count as a hit."""
    exclude_shown: bool = True
    """Inputs are items, and those that are shown are in no ranking, and not in the softmax. False
    where inputs are no items, as those of `Categories`."""

    criterion = "ndcg"
    higher_is_better = True

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        validate(self)
        scores = self._scores(forward, batch, train, but=batch["targets"])
        mask = batch["mask"]
        sums = {"loss": masked(cross_entropy(scores, batch["targets"]), mask)}
        if not train:
            rank = ranks(scores, batch["targets"])
            hit = rank <= self.cutoff
            sums["hit_rate"] = masked(hit, mask)
            sums["ndcg"] = masked(hit / jnp.log2(1 + upcast(rank)), mask)
        return sums

    def _scores(
        self, forward: nn.Module, batch: Batch, train: bool, but: jax.Array | None = None
    ) -> jax.Array:
        """Scores [B, K] in float32 or wider, -inf for items that are shown.

        but: an item of each row [B] that stays, also where it is shown.
        """
        scores = upcast(call(forward, batch, train))
        check_logits(scores, self.items, "items")
        if not self.exclude_shown:
            return scores
        inputs = batch["inputs"]
        real = jnp.ones(inputs.shape, bool)
        if "lengths" in batch:
            real = jnp.arange(inputs.shape[1])[None] < batch["lengths"][:, None]
        item = jnp.arange(self.items)
        shown = (inputs[..., None] == item[None, None]) & real[..., None]  # [B, N, K]
        shown = jnp.any(shown, axis=1)
        if but is not None:
            shown &= but[:, None] != item[None]
        return jnp.where(shown, -jnp.inf, scores)

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`best` [B, top], the items in order, their `probabilities` [B, top], and the `rank` [B]
        of the target, from 1."""
        scores = self._scores(forward, batch, train=False)
        best = jax.lax.top_k(scores, min(top, self.items))[1]
        shares = jnp.take_along_axis(jax.nn.softmax(scores, axis=-1), best, axis=-1)
        rank = ranks(scores, batch["targets"])
        return {"best": best, "probabilities": shares, "rank": rank}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`top`, the items with their probabilities; `target` and its `rank` where it is known."""
        pairs = zip(found["best"], found["probabilities"], strict=True)
        row: dict[str, Any] = {
            "top": [
                {"item": words.class_name(int(item)), "probability": as_numbers(share)}
                for item, share in pairs
            ]
        }
        if "targets" in found:
            row["target"] = words.class_name(int(found["targets"]))
            row["rank"] = int(found["rank"])
        return row


def ranks(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Ranks from 1 of the targets [B] by falling scores [B, K]; of equal scores the item with the
    lower number is first, as `top_k` has them."""
    own = jnp.take_along_axis(scores, targets[:, None], axis=1)  # [B, 1]
    before = jnp.arange(scores.shape[1])[None] < targets[:, None]
    after = (scores < own) | ((scores == own) & ~before)  # False for NaN, which is never a hit
    return 1 + jnp.sum(~after, axis=1)
