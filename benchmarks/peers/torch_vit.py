"""The Vision Transformer in PyTorch."""

import importlib
from typing import Any

import numpy as np
import torch_transformer

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn


class Model(nn.Module):
    """Images [B, 3, Y, X] -> logits [B, classes]."""

    def __init__(
        self, classes: int, patch: int, depth: int, width: int, heads: int, side: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(torch_transformer.Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)  # [B, N, D]
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names."""
    found = torch_transformer.from_ours(ours)
    found["positions"] = found.pop("positions.weight")[None]
    found["patches.weight"] = found["patches.weight"].transpose(3, 2, 0, 1)
    return found
