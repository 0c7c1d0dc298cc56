"""A language model of two LSTM layers in flax.linen."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from cases import VOCAB

WIDTH = 128
LAYERS = 2


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        x = nn.Embed(VOCAB, WIDTH, name="tokens")(tokens)
        for i in range(LAYERS):
            layer: Any = nn.RNN(nn.OptimizedLSTMCell(WIDTH, name=f"lstm_{i}"))
            x = layer(x)
        return nn.Dense(VOCAB, use_bias=False, name="head")(x)


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names, which has a matrix a gate."""
    found = {"tokens/embedding": ours["tokens/embedding"], "head/kernel": ours["head/embedding"].T}
    for layer in (f"lstm_{i}" for i in range(LAYERS)):
        for number, gate in enumerate("ifgo"):
            inward = ours[f"trunk/{layer}/input/kernel"]
            recurrent = ours[f"trunk/{layer}/recurrent"]
            found[f"{layer}/i{gate}/kernel"] = inward[:, number]
            found[f"{layer}/h{gate}/kernel"] = recurrent[:, number]
            found[f"{layer}/h{gate}/bias"] = ours[f"trunk/{layer}/bias"][number]
    return found
