"""ResNet-18 with a small stem in PyTorch."""

import importlib
from typing import Any

import numpy as np

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn


class ConvNorm(nn.Module):
    """A convolution without bias, then batch normalization."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, channels, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Any) -> Any:
        return self.norm(self.conv(x))


class Block(nn.Module):
    """`relu(x + branch(x))` of two 3x3 convolutions."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = ConvNorm(before, channels, 3, stride)
        self.conv_2 = ConvNorm(channels, channels, 3)
        same = before == channels
        self.shortcut = nn.Identity() if same else ConvNorm(before, channels, 1, stride)

    def forward(self, x: Any) -> Any:
        y = self.conv_2(torch.relu(self.conv_1(x)))
        return torch.relu(self.shortcut(x) + y)


class Model(nn.Module):
    """Images [B, 3, 32, 32] -> logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 64, 3)
        before = 64
        for stage in range(4):
            for i in range(2):
                channels = 64 * 2**stage
                stride = 2 if stage > 0 and i == 0 else 1
                self.add_module(f"block_{stage}_{i}", Block(before, channels, stride))
                before = channels
        self.head = nn.Linear(before, classes)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.stem(x))
        for stage in range(4):
            for i in range(2):
                x = getattr(self, f"block_{stage}_{i}")(x)
        return self.head(x.mean((2, 3)))


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters by path under PyTorch's names."""
    found = {}
    for path, value in ours.items():
        layer, _, name = path.replace("/", ".").rpartition(".")
        turned = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        found[f"{layer}.{'bias' if name == 'bias' else 'weight'}"] = turned
    return found
