"""GPT in PyTorch."""

import importlib
from typing import Any

from torch_transformer import Block, from_ours

__all__ = ["Model", "from_ours"]
torch: Any = importlib.import_module("torch")
nn: Any = torch.nn


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    def __init__(self, vocab: int, depth: int, width: int, heads: int, max_length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(max_length, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, causal=True, gelu="tanh") for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
