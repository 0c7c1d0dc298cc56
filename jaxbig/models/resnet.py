"""The ResNet models for images (He et al., 2016), with batch or group normalization.

Letters in shape comments: B batch, Y and X height and width, C channels.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import PositiveInt, choose, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier
from jaxbig.models.layers.basic import cast
from jaxbig.models.layers.convolution import BatchNorm, Convolution, GroupNorm
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain

Norm = Literal["batch", "group"]
Stem = Literal["imagenet", "deep", "small"]
Shortcut = Literal["strided", "pooled"]

# By depth: blocks of each stage, and whether they are bottlenecks (He et al., 2016, table 1).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def resnet(depth: int, classes: int, **fields: Any) -> "ResNet":
    """The `ResNet` of a published depth: 18, 34, 50, 101 or 152; `fields` are its others."""
    if depth not in DEPTHS:
        raise Refused(
            f"ResNet of depth {depth}: it must be one of {', '.join(map(str, DEPTHS))}, or give "
            f"`stages`."
        )
    stages, bottleneck = DEPTHS[depth]
    return ResNet(classes=classes, stages=stages, bottleneck=bottleneck, **fields)


class ConvNorm(nn.Module):
    """A convolution without bias, then its normalization."""

    channels: PositiveInt
    """Number of output channels."""
    kernel: PositiveInt
    """Side of the square kernel, in pixels."""
    stride: PositiveInt = 1
    """Pixels between two places of the kernel."""
    norm: Norm = "batch"
    """batch or group normalization."""
    groups: PositiveInt = 32
    """Of norm "group"."""
    zero: bool = False
    """Start with scale 0."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, Y, X, C] -> [B, Y / stride, X / stride, channels]."""
        grouped = self.norm == "group"
        padding = self.kernel // 2
        conv = Convolution(
            self.channels,
            self.kernel,
            self.stride,
            padding,
            bias=False,
            standardized=grouped,
            initial=FAN_OUT,
            name="conv",
        )
        if grouped:
            return GroupNorm(self.groups, zero=self.zero, name="norm")(conv(x))
        return BatchNorm(zero=self.zero, name="norm")(conv(x), train)


class Block(nn.Module):
    """`relu(x + branch(x))`, of two 3x3 convolutions or a bottleneck of 1x1, 3x3 and 1x1 to 4 x
    channels.

    The stride is the 3x3's (ResNet v1.5). The last norm's scale starts at 0, so that each block
    starts as the identity (Goyal et al., 2017).
    """

    channels: PositiveInt
    """Channels of the 3x3 convolutions."""
    stride: PositiveInt = 1
    """Of the 3x3 convolution; 2 halves the image."""
    bottleneck: bool = True
    """Three convolutions, the middle one narrow, instead of two."""
    norm: Norm = "batch"
    """batch or group normalization."""
    groups: PositiveInt = 32
    """Of norm "group"."""
    shortcut: Shortcut = "strided"
    """How a shortcut shrinks the image."""
    stride_first: bool = False
    """A bottleneck has the stride in its first convolution."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, Y, X, C] -> [B, Y / stride, X / stride, channels or 4 x channels]."""
        layer = functools.partial(ConvNorm, norm=self.norm, groups=self.groups)
        out = self.channels * (4 if self.bottleneck else 1)
        if self.bottleneck:
            strides = (self.stride, 1) if self.stride_first else (1, self.stride)
            y = nn.relu(layer(self.channels, 1, strides[0], name="conv_1")(x, train))
            y = nn.relu(layer(self.channels, 3, strides[1], name="conv_2")(y, train))
            y = layer(out, 1, zero=True, name="conv_3")(y, train)
        else:
            y = nn.relu(layer(self.channels, 3, self.stride, name="conv_1")(x, train))
            y = layer(out, 3, zero=True, name="conv_2")(y, train)
        if x.shape != y.shape:
            stride = self.stride
            if self.shortcut == "pooled" and stride > 1:
                x = nn.avg_pool(x, (2, 2), (stride, stride), "SAME", count_include_pad=False)
                stride = 1
            x = layer(out, 1, stride, name="shortcut")(x, train)
        return constrain(nn.relu(x + y), "batch", None, None, None)


class ResNet(Classifier):
    """Residual net (He et al., 2016), v1.5; `resnet(depth, classes)` gives those of the paper, this
    one's default 50.

    With norm "group", group normalization and standardized kernels take the place of batch
    statistics, as in BiT (Kolesnikov et al., 2020): no example then depends on the others of its
    batch.
    """

    stages: tuple[PositiveInt, ...] = (3, 4, 6, 3)
    """Blocks of each stage; each stage after the first halves the image and doubles the
    channels."""
    bottleneck: bool = True
    """Blocks of three convolutions, the middle one narrow, instead of two."""
    norm: Norm = "batch"
    """batch or group normalization, the latter with standardized kernels."""
    groups: PositiveInt = 32
    """Of norm "group"."""
    stem: Stem = "imagenet"
    """7x7 with stride 2 and a max pool; the same of three 3x3 (He et al., 2019, ResNet-C); or 3x3
    for small images such as CIFAR's."""
    shortcut: Shortcut = "strided"
    """How a shortcut shrinks the image: by its 1x1 convolution's stride, or by a 2x2 average pool
    before it (He et al., 2019, ResNet-D)."""
    stride_first: bool = False
    """Bottlenecks have the stride in their first convolution, as He et al. (2016), not in the 3x3's
    (v1.5)."""
    width: PositiveInt = 64
    """Channels of the stem and the first stage."""
    dtype: Dtype = "float32"
    """Of the computation; parameters, statistics and logits are float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, head: bool = True) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, classes]; without the head the last feature map
        [B, Y', X', C']."""
        norm = choose("norm", self.norm, Norm)
        stem = choose("stem", self.stem, Stem)
        validate(self)
        if not self.stages:
            raise Refused(f"stages {self.stages}: give one number of blocks or more.")
        shortcut = choose("shortcut", self.shortcut, Shortcut)
        x = cast(x, self.dtype)
        layer = functools.partial(ConvNorm, norm=norm, groups=self.groups)
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        if stem == "deep":
            if self.width % 2:
                raise Refused(f"width {self.width}: with stem deep it must be even.")
            x = nn.relu(layer(self.width // 2, 3, 2, name="stem_1")(x, train))
            x = nn.relu(layer(self.width // 2, 3, name="stem_2")(x, train))
        x = nn.relu(layer(self.width, kernel, stride, name="stem")(x, train))
        if stem != "small":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # type: ignore[arg-type]
        x = constrain(x, "batch", None, None, None)
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                block = Block(
                    self.width * 2**stage,
                    stride,
                    self.bottleneck,
                    norm,
                    self.groups,
                    shortcut,
                    self.stride_first,
                    name=f"block_{stage}_{i}",
                )
                x = block(x, train)
        if not head:
            return x
        return ClassifierHead(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))
