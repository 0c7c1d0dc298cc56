"""The contrastive objective: of all halves of a batch, which belong together. Pure.

Letters in shape comments: B batch, D width of the vectors.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import HIGHEST, upcast
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
    masked,
)


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
    """Softmax cross entropy in nats of the other half of each pair among those of the whole batch,
    a mean over both directions (InfoNCE; Radford et al., 2021, figure 3), and `accuracy`, the share
    of halves whose own other half has the largest score.

    With `within` the halves of the same side are negatives too (NT-Xent; Chen et al., 2020,
    equation 1). Negatives are those of the global batch, whatever the mesh; with `accumulate` or
    `reproducible` those of each part of it. Evaluations rank within their batches.

    Reads `inputs` and `other` [B, ...], `lengths` and `other_lengths` [B] of texts, `mask` [B]. The
    model takes `(inputs, lengths, train)`, as does its method `other`; both give vectors [B, D]
    whose products are the scores.
    """

    within: bool = False
    """Whether halves of the same side are negatives too."""

    criterion = "accuracy"
    higher_is_better = True
    mixes_rows = True

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        first, second = self.vectors(forward, batch, train)
        mask = batch["mask"]
        own = jnp.arange(len(mask))
        there = self.scores(first, second, mask > 0)
        back = self.scores(second, first, mask > 0)
        loss = (cross_entropy(there, own) + cross_entropy(back, own)) / 2
        right = [upcast(jnp.argmax(each, axis=1) == own) for each in (there, back)]
        return {"loss": masked(loss, mask), "accuracy": masked((right[0] + right[1]) / 2, mask)}

    def vectors(self, forward: nn.Module, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        """Both sides [B, D], float32 or wider."""
        if "other" not in batch or not hasattr(forward, "other"):
            raise Refused(
                "Contrastive needs pairs, as jb.data.Views and jb.data.TextPairs give, and a model "
                "with a method `other`, as jb.models.DualEncoder has."
            )
        other = {"inputs": batch["other"], "mask": batch["mask"]}
        if "other_lengths" in batch:
            other["lengths"] = batch["other_lengths"]
        first = call(forward, batch, train)
        return upcast(first), upcast(call(forward, other, train, method="other"))

    def scores(self, one: jax.Array, others: jax.Array, real: jax.Array) -> jax.Array:
        """Scores of each of [B, D] with all others [B, D], those of padding -inf: [B, B], or with
        `within` [B, 2 B], the last B of its own side."""
        own = jnp.eye(len(real), dtype=bool)
        scores = jnp.where(real[None] | own, jnp.matmul(one, others.T, precision=HIGHEST), -jnp.inf)
        if not self.within:
            return scores
        side = jnp.where(real[None] & ~own, jnp.matmul(one, one.T, precision=HIGHEST), -jnp.inf)
        return jnp.concatenate([scores, side], axis=1)

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`vector` and `other_vector` [B, D] of both halves."""
        first, second = self.vectors(forward, batch, train=False)
        return {"vector": first, "other_vector": second}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """Both vectors; their products are scores."""
        return {name: as_numbers(found[name]) for name in ("vector", "other_vector")}
