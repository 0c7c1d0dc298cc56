"""The Vision Transformer in flax.linen."""

from typing import Any

import flax.linen as nn
import flax_transformer
import jax
import jax.numpy as jnp
import numpy as np


class Model(nn.Module):
    """Images [B, Y, X, 3] -> logits [B, classes]."""

    classes: int
    patch: int
    depth: int
    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        side = (self.patch, self.patch)
        x = nn.Conv(self.width, side, strides=side, padding="VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)  # [B, N, D]
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for i in range(self.depth):
            x = flax_transformer.Block(self.heads, name=f"block_{i}")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(self.classes, name="head")(x[:, 0])


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names."""
    found = flax_transformer.from_ours(ours)
    found["positions"] = found.pop("positions/embedding")[None]
    return found
