"""A Transformer with a mixture of experts in PyTorch: each expert takes the tokens routed to it."""

import importlib
from typing import Any

import numpy as np
import torch_transformer

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn
functional: Any = nn.functional


class Experts(nn.Module):
    """[B, L, D] -> the weighted sum of the chosen experts' MLPs [B, L, D], and the loss that
    balances them."""

    def __init__(self, width: int, experts: int, chosen: int, hidden: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.up_kernel = nn.Parameter(torch.empty(experts, width, hidden))
        self.down_kernel = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Any) -> Any:
        experts = len(self.up_kernel)
        scores = self.router(x)  # [B, L, E]
        best, numbers = scores.topk(self.chosen)
        share = functional.one_hot(numbers, experts).sum(2).float().mean(1) / self.chosen  # [B, E]
        even = experts * (share * scores.softmax(-1).mean(1)).sum(-1)  # [B]
        weights = best.softmax(-1).flatten(0, 1)  # [T, K]
        numbers = numbers.flatten(0, 1)
        tokens = x.flatten(0, 1)
        y = torch.zeros_like(tokens)
        for expert in range(experts):
            row, place = torch.where(numbers == expert)
            made = functional.gelu(tokens[row] @ self.up_kernel[expert], approximate="tanh")
            made = made @ self.down_kernel[expert]
            y = y.index_add(0, row, made * weights[row, place, None])
        return y.view_as(x), even.mean()


class Block(nn.Module):
    """Attention, then experts, each after a norm."""

    def __init__(self, width: int, heads: int, *experts: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, 1e-6)
        self.attention = torch_transformer.Attention(width, heads, causal=True, bias=False)
        self.mlp_norm = nn.RMSNorm(width, 1e-6)
        self.experts = Experts(width, *experts)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.attention_norm(x))
        y, even = self.experts(self.mlp_norm(x))
        return x + y, even


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V], and what is added to their loss."""

    def __init__(
        self,
        vocab: int,
        depth: int,
        width: int,
        heads: int,
        max_length: int,
        experts: int,
        experts_per_token: int,
        mlp_width: int,
        load_balance_loss: float,
    ) -> None:
        super().__init__()
        self.balance = load_balance_loss
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(max_length, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, experts, experts_per_token, mlp_width) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, 1e-6)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        added = 0.0
        for block in self.blocks:
            x, even = block(x)
            added = added + self.balance * even
        return self.head(self.norm(x)), added


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names."""
    return torch_transformer.from_ours(ours)
