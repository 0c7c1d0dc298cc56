"""Direct preference optimization (Rafailov et al., 2023): of two answers, one is preferred. Pure.

Letters in shape comments: B batch, L length, V vocabulary.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.constraints import PositiveFloat, PositiveInt, Probability
from jaxbig.errors import Refused
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

FIELDS = ("rejected", "rejected_mask", "reference")


@dataclasses.dataclass(frozen=True)
class DPO(Objective):
    """Direct preference optimization (Rafailov et al., 2023, eq. 7), a mean over pairs of answers.

    An answer's gain is its log-probability less that under the reference. The margin of a pair is
    beta times the gain of the chosen answer less that of the rejected one, and the loss is
    -log(sigmoid(margin)). `accuracy` is the share of pairs whose margin is above 0.

    Reads `inputs`, `targets` and `mask` [B, L] of the chosen answers as `NextToken` does,
    `rejected` and `rejected_mask` [B, L], the targets and mask of the others, and `reference`
    [B, 2], the log-probabilities of both under the reference.
    """

    vocab: PositiveInt
    """How many different tokens the data has."""
    beta: PositiveFloat = 0.1
    """How strongly the model is held near the reference."""
    label_smoothing: Probability = 0.0
    """The share of pairs whose preference is taken to be wrong, below 0.5 (Mitchell, 2023)."""
    reference: str = ""
    """The folder of the reference's run; its best checkpoint is used. Empty: the weights that this
    run starts from."""

    def check_fields(self) -> None:
        if self.label_smoothing >= 0.5:
            raise Refused(
                f"label_smoothing {self.label_smoothing}: it must be below 0.5, where both answers "
                f"are equally good."
            )

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        found = self.log_probabilities(forward, batch, train)
        gains = found - batch["reference"]  # [B, 2]
        margin = self.beta * (gains[:, 0] - gains[:, 1])
        right = -jax.nn.log_sigmoid(margin)
        wrong = -jax.nn.log_sigmoid(-margin)
        loss = (1 - self.label_smoothing) * right + self.label_smoothing * wrong
        real = jnp.any(batch["mask"] > 0, axis=1)
        return {
            "loss": masked(loss, real),
            "accuracy": masked(margin > 0, real),
            "margin": masked(margin, real),
        }

    def log_probabilities(self, forward: nn.Module, batch: Batch, train: bool) -> jax.Array:
        """The log-probabilities of the chosen and of the rejected answers, float32 [B, 2].

        The model is called once, on 2 B rows, a pair after the other.
        """
        if lost := [name for name in FIELDS if name not in batch]:
            raise Refused(
                f"DPO: the data gives no {', '.join(lost)}: it needs pairs of answers, as "
                f"jb.data.Preferences gives."
            )
        first = batch["inputs"][:, :1]
        after = jnp.concatenate([first, batch["rejected"][:, :-1]], axis=1)
        inputs = _pairs(batch["inputs"], after)
        targets = _pairs(batch["targets"], batch["rejected"])
        mask = _pairs(batch["mask"], batch["rejected_mask"])
        logits = call(forward, {"inputs": inputs, "mask": mask}, train)  # [2 B, L, V]
        check_logits(logits, self.vocab, "tokens")
        nats = cross_entropy(logits, targets) * mask
        return -jnp.sum(nats, axis=1).reshape(-1, 2)

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`log_probabilities` [B, 2] of the chosen and of the rejected answers."""
        return {"log_probabilities": self.log_probabilities(forward, batch, train=False)}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """The log-probabilities of both answers, by the name of each."""
        chosen, rejected = as_numbers(found["log_probabilities"])
        return {"chosen": chosen, "rejected": rejected}


def _pairs(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """[B, L] twice -> [2 B, L], in which each device keeps the rows it has."""
    return jnp.stack([chosen, rejected], axis=1).reshape(-1, chosen.shape[1])
