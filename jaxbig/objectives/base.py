"""What every objective is, and the sums it gives."""

import abc
import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxbig.errors import Refused

Batch = dict[str, jax.Array]


@struct.dataclass
class Sum:
    """A weighted sum and its weight, so that means over batches and devices are never means of means."""

    total: Any
    weight: Any

    def mean(self) -> Any:
        return self.total / self.weight


Sums = dict[str, Sum]


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What is learned: calls the model (so that it may call it twice, or corrupt first) and gives sums."""

    criterion = "loss"
    """The evaluation metric by which the best checkpoint is chosen."""
    higher_is_better = False

    @abc.abstractmethod
    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        """forward: the model bound to parameters and variables; batch: arrays [B, ...] with `mask`, 0 for
        padding; key: for the objective's own randomness. Gives `loss` (its mean is minimized) and metrics.
        """

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """The means with what follows from them, such as perplexity."""
        return means


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[targets] in nats; logits [..., K] and targets [...] -> [...]. Float32: bf16 lies here."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def of_logits(logits: jax.Array, batch: Batch, kinds: int, name: str) -> Sums:
    """Cross entropy in nats and accuracy of logits [..., K] for `targets` and `mask` [...] of kinds called name."""
    if logits.shape[-1] != kinds:
        raise Refused(f"the model gives {logits.shape[-1]} logits for {kinds} {name}: make them equal.")
    right = jnp.argmax(logits, axis=-1) == batch["targets"]
    loss = masked(cross_entropy(logits, batch["targets"]), batch["mask"])
    return {"loss": loss, "accuracy": masked(right, batch["mask"])}


def masked(values: jax.Array, mask: jax.Array) -> Sum:
    """The sum of `values` where `mask` is 1, and how many those are; both of one shape."""
    chex.assert_equal_shape([values, mask])
    values, mask = values.astype(jnp.float32), mask.astype(jnp.float32)
    return Sum(jnp.sum(values * mask), jnp.sum(mask))
