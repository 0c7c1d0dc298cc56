"""The AlexNet model for images (Krizhevsky et al., 2012).

Letters in shape comments: B batch, Y and X height and width, C channels.
"""

import flax.linen as nn
import jax

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import DropRate, PositiveInt
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier
from jaxbig.models.convnet import Dense
from jaxbig.models.layers.basic import cast, drop
from jaxbig.models.layers.convolution import Convolution
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain

KERNELS = (11, 5, 3, 3, 3)
POOLED = (0, 1, 4)  # the convolutions that a max pool follows
SMALLEST = 64  # the side of an image of which the last pool still sees 3x3


class AlexNet(Classifier):
    """AlexNet (Krizhevsky et al., 2012) in one tower: 62,378,344 parameters.

    Channels (64, 192, 384, 256, 256) give the tower of Krizhevsky (2014), 61,100,840 parameters, as
    torchvision has it. Without local response normalization, which that one leaves out too.
    """

    channels: tuple[PositiveInt, ...] = (96, 256, 384, 384, 256)
    """Of each convolution."""
    width: PositiveInt = 4096
    """Of each of the two hidden dense layers."""
    dropout: DropRate = 0.5
    """Share of the hidden dense layers' values dropped in training."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C], of 64x64 or larger -> logits [B, classes]."""
        if len(self.channels) != len(KERNELS):
            raise Refused(
                f"channels {self.channels}: AlexNet has {len(KERNELS)} convolutions, so give "
                f"{len(KERNELS)}."
            )
        rows, columns = x.shape[1:3]
        if min(rows, columns) < SMALLEST:
            raise Refused(
                f"AlexNet on images of {rows}x{columns}: they must be {SMALLEST}x{SMALLEST} or "
                f"larger."
            )
        # 227 fits its strides of 4 without padding; 224 takes 2 pixels; both give 55x55
        first = 0 if rows % 4 == columns % 4 == 3 else 2
        x = cast(x, self.dtype)
        for i, (channels, kernel) in enumerate(zip(self.channels, KERNELS, strict=True)):
            stride, padding = (4, first) if i == 0 else (1, kernel // 2)
            x = nn.relu(Convolution(channels, kernel, stride, padding, name=f"conv_{i + 1}")(x))
            if i in POOLED:
                x = nn.max_pool(x, (3, 3), (2, 2))  # 55 -> 27, 27 -> 13, 13 -> 6
            x = constrain(x, "batch", None, None, None)
        for i in (6, 7):
            x = drop(
                Dense(self.width, name=f"dense_{i}")(x, train), self.dropout, train
            )  # [B, width]
        return ClassifierHead(self.classes, name="head")(x)
