"""The ConvNeXt models for images (Liu et al., 2022): residual nets designed like a Transformer.

Letters in shape comments: B batch, Y and X height and width, C channels.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import DropRate, NonNegativeFloat, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier
from jaxbig.models.layers.basic import ACTIVATIONS, LayerNorm, Linear, cast, drop_path
from jaxbig.models.layers.convolution import Convolution
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain, parameter

STD = 0.02  # of all initial kernels, as the paper's
NORMAL = nn.initializers.normal(STD)


class Block(nn.Module):
    """`x + layer_scale * down(gelu(up(norm(depthwise(x)))))`: 7x7 a channel, then 1x1 to 4 x C and
    back."""

    layer_scale: float | None = 1e-6
    """The initial scale of the branch, per channel; None: it has none."""
    drop_path: DropRate = 0.0
    """Share of examples whose branch is dropped in training."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, Y, X, C] -> [B, Y, X, C]."""
        width = x.shape[-1]
        y = Convolution(width, kernel=7, groups=width, initial=NORMAL, name="depthwise")(x)
        y = LayerNorm(name="norm")(y)
        y = Linear((4 * width,), ("embed", "mlp"), scale=STD * math.sqrt(width), name="up")(
            y
        )  # [B, Y, X, 4 C]
        y = ACTIVATIONS["gelu"](y)
        y = Linear((width,), ("mlp", "embed"), scale=STD * math.sqrt(4 * width), name="down")(y)
        if self.layer_scale is not None:
            init = nn.initializers.constant(self.layer_scale)
            y = y * jnp.broadcast_to(
                parameter(self, "layer_scale", init, (width,), (None,), y.dtype), y.shape
            )
        return constrain(x + drop_path(y, self.drop_path, train), "batch", None, None, None)


class ConvNeXt(Classifier):
    """ConvNeXt (Liu et al., 2022); by default ConvNeXt-T, 28,589,128 parameters for 1,000 classes.

    S has stages (3, 3, 27, 3), 50,223,688; B has these and widths (128, 256, 512, 1024),
    88,591,464.
    """

    stages: tuple[PositiveInt, ...] = (3, 3, 9, 3)
    """Blocks of each stage; the first sees the image in patches of 4x4, each further one halves
    it."""
    widths: tuple[PositiveInt, ...] = (96, 192, 384, 768)
    """Channels of each stage."""
    drop_path: DropRate = 0.1
    """Share of examples that leave out the last block's branch in training; in between it rises
    from 0 in a line."""
    layer_scale: float | None = 1e-6
    """What the branches' factors start with (Touvron et al., 2021); None: they have none."""
    head_epsilon: NonNegativeFloat = 1e-6
    """Of the normalization before the head."""
    dtype: Dtype = "float32"
    """Of the computation; parameters, norms and logits are float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, classes]."""
        validate(self)
        if not self.stages or len(self.stages) != len(self.widths):
            raise Refused(
                f"stages {self.stages} and widths {self.widths}: give as many of both, one or more."
            )
        x = cast(x, self.dtype)
        depth = sum(self.stages)
        for stage, (blocks, width) in enumerate(zip(self.stages, self.widths, strict=True)):
            if stage == 0:
                x = Convolution(width, 4, 4, "valid", initial=NORMAL, name="stem")(x)
                x = LayerNorm(name="stem_norm")(x)
            else:
                x = LayerNorm(name=f"shrink_{stage}_norm")(x)
                x = Convolution(width, 2, 2, "valid", initial=NORMAL, name=f"shrink_{stage}")(x)
            x = constrain(x, "batch", None, None, None)
            for i in range(blocks):
                rate = self.drop_path * (sum(self.stages[:stage]) + i) / max(depth - 1, 1)
                x = Block(self.layer_scale, rate, name=f"block_{stage}_{i}")(x, train)
        # constrained as the head's input is
        x = constrain(jnp.mean(x, axis=(1, 2)), "batch", None)  # [B, C]
        x = LayerNorm(self.head_epsilon, name="norm")(x)
        scale = STD * math.sqrt(x.shape[-1])
        return ClassifierHead(self.classes, scale, name="head")(x)
