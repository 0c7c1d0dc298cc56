"""A language model of two LSTM layers in flax.linen."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    vocab: int
    width: int
    layers: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        x = nn.Embed(self.vocab, self.width, name="tokens")(tokens)
        for i in range(self.layers):
            layer: Any = nn.RNN(nn.OptimizedLSTMCell(self.width, name=f"lstm_{i}"))
            x = layer(x)
        return nn.Dense(self.vocab, use_bias=False, name="head")(x)


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names, which has a matrix a gate."""
    found = {"tokens/embedding": ours["tokens/embedding"], "head/kernel": ours["head/embedding"].T}
    for path in (path for path in ours if path.endswith("/recurrent")):
        layer = path.split("/")[1]
        for number, gate in enumerate("ifgo"):
            inward = ours[f"trunk/{layer}/input/kernel"]
            recurrent = ours[f"trunk/{layer}/recurrent"]
            found[f"{layer}/i{gate}/kernel"] = inward[:, number]
            found[f"{layer}/h{gate}/kernel"] = recurrent[:, number]
            found[f"{layer}/h{gate}/bias"] = ours[f"trunk/{layer}/bias"][number]
    return found
