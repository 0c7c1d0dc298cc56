"""A Transformer's block in PyTorch: its own fused attention, LayerNorm and Linear."""

import importlib
from typing import Any

import numpy as np

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn
functional: Any = nn.functional


class Attention(nn.Module):
    """[B, L, D] -> [B, L, D], with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.out = nn.Linear(width, width, bias)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then an MLP, each after a norm, or before it without `pre_norm`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        gelu: str = "none",
        pre_norm: bool = True,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = Attention(width, heads, causal=causal)
        self.attention_norm = nn.LayerNorm(width, epsilon)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(gelu), nn.Linear(4 * width, width)
        )
        self.mlp_norm = nn.LayerNorm(width, epsilon)

    def forward(self, x: Any) -> Any:
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))


NAMES = {
    "query": "qkv",
    "up": "mlp.0",
    "down": "mlp.2",
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "router_kernel": "router.weight",
}


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names: `blocks/block_0/up/kernel` is
    `blocks.0.mlp.0.weight` there."""
    found = {}
    for path, value in ours.items():
        if "key_value" in path:
            continue
        if "/query/" in path:
            other = ours[path.replace("query", "key_value")]
            inputs = value.shape[:-2]  # [D] of a kernel, none of a bias
            both = [each.reshape(*inputs, -1) for each in (value, other)]
            value = np.concatenate(both, axis=-1)
        if path.endswith("attention/out/kernel"):
            value = value.reshape(-1, value.shape[-1])  # [H K, D]
        parts = path.removeprefix("blocks/").split("/")
        if parts[0].startswith("block_"):
            parts = ["blocks", *parts]
        name = ".".join(NAMES.get(each, each.removeprefix("block_")) for each in parts)
        turned = value.ndim == 2 and parts[-1].endswith("kernel")
        found[name] = value.T if turned else value
    return found
