"""A Transformer's block in flax.linen: its own attention, LayerNorm and Dense."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np


class Block(nn.Module):
    """Attention, then an MLP, each after a norm, or before it without `pre_norm`."""

    heads: int
    approximate: bool = False
    """Of GELU: its tanh."""
    pre_norm: bool = True
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        norm = partial(nn.LayerNorm, self.epsilon)
        attention_norm = norm(name="attention_norm")
        mlp_norm = norm(name="mlp_norm")
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        up = nn.Dense(4 * width, name="up")
        down = nn.Dense(width, name="down")

        def mlp(x: jax.Array) -> jax.Array:
            return down(nn.gelu(up(x), approximate=self.approximate))

        if self.pre_norm:
            x = x + attention(attention_norm(x), mask=mask)
            return x + mlp(mlp_norm(x))
        x = attention_norm(x + attention(x, mask=mask))
        return mlp_norm(x + mlp(x))


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names, which has keys and values apart."""
    found = {}
    for path, value in ours.items():
        path = path.removeprefix("blocks/")
        if "key_value" in path:
            axis = value.ndim - 3
            found[path.replace("key_value", "key")] = value.take(0, axis)
            found[path.replace("key_value", "value")] = value.take(1, axis)
        else:
            found[path] = value
    return found
