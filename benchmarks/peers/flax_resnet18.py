"""ResNet-18 with a small stem in flax.linen."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Conv = partial(nn.Conv, use_bias=False, padding=1)
Norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class Block(nn.Module):
    """`relu(x + branch(x))` of two 3x3 convolutions."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(Norm, use_running_average=not train)
        strides = (self.stride, self.stride)
        y = Conv(self.channels, (3, 3), strides, name="conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = Conv(self.channels, (3, 3), name="conv_2")(y)
        y = norm(name="norm_2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = Conv(self.channels, (1, 1), strides, padding=0, name="conv_shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return nn.relu(x + y)


class Model(nn.Module):
    """Images [B, 32, 32, 3] -> logits [B, classes]."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(64, (3, 3), name="conv_stem")(x)
        x = nn.relu(Norm(use_running_average=not train, name="norm_stem")(x))
        for stage in range(4):
            for i in range(2):
                stride = 2 if stage > 0 and i == 0 else 1
                x = Block(64 * 2**stage, stride, name=f"block_{stage}_{i}")(x, train)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))


def from_ours(ours: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by path under flax's names: block_0_0/conv_1/norm/scale is
    block_0_0/norm_1/scale there."""
    found = {}
    for path, value in ours.items():
        *block, layer, kind, name = ["", *path.split("/")]
        if layer:
            path = "/".join([*block[1:], f"{kind}_{layer.removeprefix('conv_')}", name])
        found[path] = value
    return found
