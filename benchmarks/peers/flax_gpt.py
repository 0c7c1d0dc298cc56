"""GPT in flax.linen."""

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

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        x = nn.Embed(self.vocab, self.width, name="tokens")(tokens)
        x = x + nn.Embed(self.max_length, self.width, name="positions")(positions)
        mask = nn.make_causal_mask(tokens)
        for i in range(self.depth):
            x = flax_transformer.Block(self.heads, approximate=True, name=f"block_{i}")(x, mask)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(self.vocab, use_bias=False, name="head")(x)


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names."""
    found = flax_transformer.from_ours(ours)
    found["head/kernel"] = found.pop("head/embedding").T
    return found
