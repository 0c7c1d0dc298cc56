"""BERT with its masked-token head in flax.linen."""

from functools import partial
from typing import Any

import flax.linen as nn
import flax_transformer
import jax
import jax.numpy as jnp
import numpy as np


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    vocab: int
    depth: int
    width: int
    heads: int
    max_length: int
    types: int
    epsilon: float

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.LayerNorm, self.epsilon)
        positions = jnp.arange(tokens.shape[1])[None]
        table = nn.Embed(self.vocab, self.width, name="tokens")
        x = table(tokens)
        x = x + nn.Embed(self.max_length, self.width, name="positions")(positions)
        x = x + nn.Embed(self.types, self.width, name="types")(jnp.zeros_like(tokens))
        x = norm(name="norm")(x)
        for i in range(self.depth):
            x = flax_transformer.Block(
                self.heads, pre_norm=False, epsilon=self.epsilon, name=f"block_{i}"
            )(x)
        x = nn.gelu(nn.Dense(self.width, name="transform")(x), approximate=False)
        x = norm(name="transform_norm")(x)
        return (
            table.attend(x) + self.param("bias", nn.initializers.zeros, (self.vocab,))[None, None]
        )


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names."""
    return flax_transformer.from_ours(ours)
