"""The conv net of PyTorch's MNIST example in flax.linen, without dropout."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

NAMES = {"layers_0": "conv_1", "layers_1": "conv_2", "layers_3/linear": "dense", "head": "head"}


class Model(nn.Module):
    """Images [B, 28, 28, 1] -> logits [B, classes]."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.Conv(32, (3, 3), padding="VALID", name="conv_1")(x))
        x = nn.relu(nn.Conv(64, (3, 3), padding="VALID", name="conv_2")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(128, name="dense")(x))
        return nn.Dense(self.classes, name="head")(x)


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names."""
    found = {}
    for path, value in ours.items():
        layer, _, name = path.rpartition("/")
        found[f"{NAMES[layer]}/{name}"] = value
    return found
