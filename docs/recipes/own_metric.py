"""A metric of your own: how much more confident than right a classifier is.

Letters in shape comments: B batch, K classes.
"""

import dataclasses

import flax.linen as nn
import jax

import jaxbig as jb
from jaxbig.objectives.base import Batch, call, masked


@dataclasses.dataclass(frozen=True)
class Calibrated(jb.objectives.Classification):
    """Classification that also reports `confidence` and `overconfidence` in evaluations."""

    def __call__(
        self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool
    ) -> jb.objectives.Sums:
        sums = super().__call__(forward, batch, key, train)
        if not train:
            logits = call(forward, batch, train)  # [B, K]; the same call, compiled once
            confidence = jax.nn.softmax(logits).max(axis=-1)
            sums["confidence"] = masked(confidence, batch["mask"])  # a sum and its weight
        return sums

    def summarize(self, sums: jb.objectives.Sums) -> dict[str, float]:
        """Adds what follows from the means over all examples."""
        metrics = super().summarize(sums)
        if "confidence" in metrics:
            metrics["overconfidence"] = metrics["confidence"] - metrics["accuracy"]
        return metrics


def config() -> jb.Experiment:
    return jb.load("digits_convnet").replace(objective=Calibrated(classes=10), steps=300)


def main() -> None:
    run = jb.fit(config(), "runs/calibrated")
    print(f"overconfident by {run.metrics['eval/overconfidence']:.3f}")


if __name__ == "__main__":
    main()
