"""An objective of your own: contrastive learning of two noisy views (Chen et al., 2020).

Letters in shape comments: B batch, D width of an embedding.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxbig as jb
from jaxbig.objectives.base import Batch, call, cross_entropy, masked


@dataclasses.dataclass(frozen=True)
class Contrastive(jb.objectives.Objective):
    """Finds the other view of an image among those of the whole batch."""

    temperature: float = 0.1
    """Divides the cosine similarities."""
    noise: float = 0.2
    """Standard deviation of what is added to each view."""

    criterion = "accuracy"
    higher_is_better = True
    mixes_rows = True  # a row's loss depends on the others by design

    def __call__(
        self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool
    ) -> jb.objectives.Sums:
        views = []
        for each in jax.random.split(key):
            noise = self.noise * jax.random.normal(each, batch["inputs"].shape)
            outputs = call(forward, {**batch, "inputs": batch["inputs"] + noise}, train)  # [B, D]
            views.append(outputs / (1e-6 + jnp.linalg.norm(outputs, axis=-1, keepdims=True)))
        similarity = views[0] @ views[1].T / self.temperature  # [B, B]
        mask = batch["mask"]
        similarity = jnp.where(mask[None, :] > 0, similarity, -1e9)  # padding is no candidate
        own = jnp.arange(len(similarity))
        losses = cross_entropy(similarity, own)
        right = similarity.argmax(axis=-1) == own
        return {"loss": masked(losses, mask), "accuracy": masked(right, mask)}


def config() -> jb.Experiment:
    parent = jb.load("digits_convnet")
    model = parent.model.clone(classes=32)  # an embedding of 32 numbers in place of logits
    return parent.replace(model=model, objective=Contrastive(), steps=300)


def main() -> None:
    run = jb.fit(config(), "runs/contrastive")
    embeddings = jb.apply(run, run.experiment.data.source("eval").rows(np.arange(100)))
    embeddings /= (embeddings**2).sum(-1, keepdims=True) ** 0.5
    nearest = (embeddings @ embeddings.T)[0].argsort()[::-1][1:4]
    print(f"nearest to image 0: {nearest}")


if __name__ == "__main__":
    main()
