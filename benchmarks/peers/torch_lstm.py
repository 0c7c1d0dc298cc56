"""A language model of two LSTM layers in PyTorch."""

import importlib
from typing import Any

import numpy as np

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    def __init__(self, vocab: int, width: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, vocab, bias=False)
        for name, each in self.lstm.named_parameters():
            # PyTorch adds two biases; one is enough
            each.requires_grad_(not name.startswith("bias_ih"))

    def forward(self, tokens: Any) -> Any:
        return self.head(self.lstm(self.tokens(tokens))[0])


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names."""
    found = {"tokens.weight": ours["tokens/embedding"], "head.weight": ours["head/embedding"]}
    for path in (path for path in ours if path.endswith("/recurrent")):
        layer = path.removesuffix("/recurrent")
        i = layer.removeprefix("trunk/lstm_")
        width = len(ours[path])
        bias = ours[f"{layer}/bias"].ravel()
        found |= {
            f"lstm.weight_ih_l{i}": ours[f"{layer}/input/kernel"].reshape(width, -1).T,
            f"lstm.weight_hh_l{i}": ours[f"{layer}/recurrent"].reshape(width, -1).T,
            f"lstm.bias_ih_l{i}": np.zeros_like(bias),
            f"lstm.bias_hh_l{i}": bias,
        }
    return found
