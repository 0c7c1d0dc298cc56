"""One class an example."""

import dataclasses

import flax.linen as nn
import jax

from jaxbig.objectives.base import Batch, Objective, Sums, of_logits


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
        return of_logits(forward(batch["inputs"], **lengths, train=train), batch, self.classes, "classes")  # type: ignore[operator]
