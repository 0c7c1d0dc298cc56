"""A language model of two LSTM layers in PyTorch."""

import importlib
from typing import Any

import numpy as np
from cases import VOCAB

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn

WIDTH = 128
LAYERS = 2


class Model(nn.Module):
    """Tokens [B, L] -> logits [B, L, V]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        for name, each in self.lstm.named_parameters():
            # PyTorch adds two biases; one is enough
            each.requires_grad_(not name.startswith("bias_ih"))

    def forward(self, tokens: Any) -> Any:
        return self.head(self.lstm(self.tokens(tokens))[0])


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names."""
    found = {"tokens.weight": ours["tokens/embedding"], "head.weight": ours["head/embedding"]}
    for i in range(LAYERS):
        layer = f"trunk/lstm_{i}"
        bias = ours[f"{layer}/bias"].ravel()
        found |= {
            f"lstm.weight_ih_l{i}": ours[f"{layer}/input/kernel"].reshape(WIDTH, -1).T,
            f"lstm.weight_hh_l{i}": ours[f"{layer}/recurrent"].reshape(WIDTH, -1).T,
            f"lstm.bias_ih_l{i}": np.zeros_like(bias),
            f"lstm.bias_hh_l{i}": bias,
        }
    return found
