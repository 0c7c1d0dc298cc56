"""One class an example."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import Refused
from jaxbig.objectives.base import Batch, Objective, Sums, cross_entropy, masked


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Softmax cross entropy in nats, and accuracy.

    Reads `inputs` [B, ...], `targets` [B] (a class number each), `mask` [B], and `lengths` [B] where there is one.
    """

    classes: int
    """How many classes the data has."""

    criterion = "accuracy"
    higher_is_better = True

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        lengths = {"lengths": batch["lengths"]} if "lengths" in batch else {}
        logits = forward(batch["inputs"], **lengths, train=train)  # type: ignore[operator]
        if logits.shape[-1] != self.classes:
            raise Refused(f"the model gives {logits.shape[-1]} logits for {self.classes} classes: make them equal.")
        right = jnp.argmax(logits, axis=-1) == batch["targets"]
        return {
            "loss": masked(cross_entropy(logits, batch["targets"]), batch["mask"]),
            "accuracy": masked(right, batch["mask"]),
        }
