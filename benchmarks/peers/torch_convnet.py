"""The conv net of PyTorch's MNIST example, without dropout."""

import importlib
from typing import Any

import numpy as np

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn

SIDE = 12
"""Of the image after the pool."""


class Model(nn.Module):
    """Images [B, 1, 28, 28] -> logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 32, 3)
        self.conv_2 = nn.Conv2d(32, 64, 3)
        self.dense = nn.Linear(64 * SIDE * SIDE, 128)
        self.head = nn.Linear(128, classes)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.conv_1(x))
        x = torch.relu(self.conv_2(x))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.dense(x)))


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names; an image is flattened channels first there."""
    dense = ours["layers_3/linear/kernel"].reshape(SIDE, SIDE, 64, 128)
    return {
        "conv_1.weight": ours["layers_0/kernel"].transpose(3, 2, 0, 1),
        "conv_1.bias": ours["layers_0/bias"],
        "conv_2.weight": ours["layers_1/kernel"].transpose(3, 2, 0, 1),
        "conv_2.bias": ours["layers_1/bias"],
        "dense.weight": dense.transpose(3, 2, 0, 1).reshape(128, -1),
        "dense.bias": ours["layers_3/linear/bias"],
        "head.weight": ours["head/kernel"].T,
        "head.bias": ours["head/bias"],
    }
