"""The BLEU score of token sequences (Papineni et al., 2002), counted on the device.

Letters in shape comments: B batch, T length.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import Refused
from jaxbig.objectives.base import Sum, Sums

ORDER = 4
NAMES = ("bleu_correct", "bleu_total", "bleu_hypothesis", "bleu_reference")


def check() -> None:
    """`Refused` unless sacrebleu is there."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise Refused("BLEU is scored by sacrebleu, which is not installed: pip install sacrebleu.")


def counts(
    hypothesis: jax.Array, hypothesis_length: jax.Array, reference: jax.Array, length: jax.Array
) -> Sums:
    """Tokens [B, T] and how many of each row count [B], twice -> `NAMES`: n-grams found, n-grams
    given, lengths.

    An n-gram is found as often as the reference has it: the occurrence counts if fewer equal ones
    came before it in the hypothesis than there are in the reference.
    """
    size = hypothesis.shape[1]
    same = hypothesis[:, :, None] == hypothesis[:, None, :]  # [B, T, T]
    found = hypothesis[:, :, None] == reference[:, None, :]
    earlier = jnp.triu(jnp.ones((size, size), bool), 1)[None]
    same_gram = same
    found_gram = found
    correct = []
    total = []
    for n in range(
        1, ORDER + 1
    ):  # grams that begin at a place; those that run over the end are not there
        if n > 1:
            same_gram = same_gram & _later(same, n - 1)
            found_gram = found_gram & _later(found, n - 1)
        there = _begins(hypothesis_length, n, size)
        in_reference = _begins(length, n, reference.shape[1])
        rank = jnp.sum(same_gram & earlier & there[:, :, None], axis=1)  # [B, T]
        most = jnp.sum(found_gram & in_reference[:, None, :], axis=2)
        correct.append(jnp.sum(there & (rank < most)))
        total.append(jnp.sum(there))
    lengths = jnp.sum(hypothesis_length), jnp.sum(length)
    values = (jnp.stack(correct), jnp.stack(total), *lengths)
    rows = jnp.sum((length > 0).astype(jnp.float32))
    return {
        name: Sum(value.astype(jnp.float32), rows)
        for name, value in zip(NAMES, values, strict=True)
    }


def _later(pairs: jax.Array, by: int) -> jax.Array:
    """[B, T, T] -> the same at (i + by, j + by); False beyond the end."""
    ahead = pairs[:, by:, by:]
    return jnp.pad(
        ahead, ((0, 0), (0, pairs.shape[1] - ahead.shape[1]), (0, pairs.shape[2] - ahead.shape[2]))
    )


def _begins(lengths: jax.Array, n: int, size: int) -> jax.Array:
    """[B] -> whether an n-gram begins at each place [B, T]."""
    return jnp.arange(size)[None] <= lengths[:, None] - n


def score(sums: Sums) -> float:
    """BLEU in percent, as sacrebleu's corpus BLEU of the same tokens (exponential smoothing)."""
    check()
    from sacrebleu.metrics.bleu import BLEU  # here: only who asks for BLEU needs it

    correct, total, hypothesis, reference = (sums[name].total for name in NAMES)

    def whole(values: Any) -> list[int]:
        return [round(float(value)) for value in values]

    sizes = whole((hypothesis, reference))
    return BLEU.compute_bleu(whole(correct), whole(total), *sizes, smooth_method="exp").score
