"""GPT in flax.linen: its own attention, LayerNorm and Dense."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from cases import VOCAB

DEPTH = 6
WIDTH = 384
HEADS = 6
LENGTH = 256


class Block(nn.Module):
    """Attention, then an MLP, each after a norm."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        y = nn.LayerNorm(name="attention_norm")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(y, mask=mask)
        y = nn.LayerNorm(name="mlp_norm")(x)
        y = nn.gelu(nn.Dense(4 * WIDTH, name="up")(y))
        return x + nn.Dense(WIDTH, name="down")(y)


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        x = nn.Embed(VOCAB, WIDTH, name="tokens")(tokens)
        x = x + nn.Embed(LENGTH, WIDTH, name="positions")(positions)
        mask = nn.make_causal_mask(tokens)
        for i in range(DEPTH):
            x = Block(name=f"block_{i}")(x, mask)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(VOCAB, use_bias=False, name="head")(x)


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names."""
    found = {}
    for path, value in ours.items():
        path = path.removeprefix("blocks/")
        if path == "head/embedding":
            found["head/kernel"] = value.T
        elif "key_value" in path:
            axis = value.ndim - 3
            found[path.replace("key_value", "key")] = value.take(0, axis)
            found[path.replace("key_value", "value")] = value.take(1, axis)
        else:
            found[path] = value
    return found
