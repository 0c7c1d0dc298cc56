"""GPT in PyTorch: its own fused attention, LayerNorm and Linear."""

import importlib
from typing import Any

import numpy as np
from cases import VOCAB

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn
functional: Any = nn.functional

DEPTH = 6
WIDTH = 384
HEADS = 6
LENGTH = 256
EPSILON = 1e-6


class Block(nn.Module):
    """Attention, then an MLP, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, EPSILON)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH, EPSILON)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        y = functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self.down(y)


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names."""
    found = {name: ours[f"{name[:-7]}/embedding"] for name in ("tokens.weight", "positions.weight")}
    found |= {"head.weight": ours["head/embedding"]}
    found |= norm("norm", "blocks/norm", ours)
    for i in range(DEPTH):
        block = f"blocks/block_{i}"
        name = f"blocks.{i}"
        attention = f"{block}/attention"
        parts = [
            ours[f"{attention}/query/kernel"].reshape(WIDTH, WIDTH),
            ours[f"{attention}/key_value/kernel"].reshape(WIDTH, 2 * WIDTH),
        ]
        biases = [ours[f"{attention}/{part}/bias"].ravel() for part in ("query", "key_value")]
        found |= {
            f"{name}.qkv.weight": np.concatenate(parts, axis=1).T,
            f"{name}.qkv.bias": np.concatenate(biases),
            f"{name}.out.weight": ours[f"{attention}/out/kernel"].reshape(WIDTH, WIDTH).T,
            f"{name}.out.bias": ours[f"{attention}/out/bias"],
        }
        for part in ("up", "down"):
            found[f"{name}.{part}.weight"] = ours[f"{block}/{part}/kernel"].T
            found[f"{name}.{part}.bias"] = ours[f"{block}/{part}/bias"]
        for part in ("attention_norm", "mlp_norm"):
            found |= norm(f"{name}.{part}", f"{block}/{part}", ours)
    return found


def norm(name: str, path: str, ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}.weight": ours[f"{path}/scale"], f"{name}.bias": ours[f"{path}/bias"]}
