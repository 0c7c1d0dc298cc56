"""BERT with its masked-token head in PyTorch."""

import importlib
from typing import Any

import numpy as np
import torch_transformer

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn
functional: Any = nn.functional


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    def __init__(
        self,
        vocab: int,
        depth: int,
        width: int,
        heads: int,
        max_length: int,
        types: int,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(max_length, width)
        self.types = nn.Embedding(types, width)
        self.norm = nn.LayerNorm(width, epsilon)
        self.blocks = nn.ModuleList(
            torch_transformer.Block(width, heads, pre_norm=False, epsilon=epsilon)
            for _ in range(depth)
        )
        self.transform = nn.Linear(width, width)
        self.transform_norm = nn.LayerNorm(width, epsilon)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def forward(self, tokens: Any) -> Any:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.norm(x + self.types(torch.zeros_like(tokens)))
        for block in self.blocks:
            x = block(x)
        x = self.transform_norm(functional.gelu(self.transform(x)))
        return functional.linear(x, self.tokens.weight, self.bias)


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names."""
    return torch_transformer.from_ours(ours)
