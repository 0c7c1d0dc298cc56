"""The convolutional model for images, a list of layers of your choice (LeCun et al., 1998).

Letters in shape comments: B batch, Y and X height and width, C channels.
"""

from typing import Literal

import flax.linen as nn
import jax

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import DropRate, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Model
from jaxbig.models.layers.basic import Linear, cast
from jaxbig.models.layers.convolution import Convolution, Padding
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain


class Conv(nn.Module):
    """Convolution, then ReLU."""

    channels: PositiveInt
    """Number of output channels."""
    kernel: PositiveInt = 3
    """Side of the square kernel, in pixels."""
    stride: PositiveInt = 1
    """Pixels between two places of the kernel; 2 halves the image."""
    padding: Padding = "same"
    """Zero padding: enough to keep the size, or none."""

    def setup(self) -> None:
        self.convolution = Convolution(self.channels, self.kernel, self.stride, self.padding)
        nn.share_scope(
            self, self.convolution
        )  # its parameters are this layer's, not a level deeper

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, Y, X, C] -> [B, Y / stride, X / stride, channels], less at the border with padding
        "valid"."""
        return nn.relu(self.convolution(x))


class Pool(nn.Module):
    """Max or mean pooling over windows that do not overlap."""

    window: PositiveInt = 2
    """Side of the square window, in pixels."""
    kind: Literal["max", "mean"] = "max"
    """The largest value of each window, or its mean."""

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, Y, X, C] -> [B, Y // window, X // window, C]."""
        if not 1 <= self.window <= min(x.shape[1:3]):
            raise Refused(
                f"Pool(window={self.window}) on an image of {x.shape[1]}x{x.shape[2]}: pool less, "
                f"or later."
            )
        pool = nn.max_pool if self.kind == "max" else nn.avg_pool
        return pool(x, (self.window, self.window), (self.window, self.window))


class Dropout(nn.Module):
    """Sets a share of the values to zero in training (Srivastava et al., 2014)."""

    rate: DropRate
    """Share of the values set to zero."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        validate(self)
        return nn.Dropout(self.rate, deterministic=not train)(x)


class Dense(nn.Module):
    """Fully connected layer, then ReLU; an image is flattened first."""

    width: PositiveInt
    """Number of outputs."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, ...] -> [B, width]."""
        x = constrain(x.reshape(x.shape[0], -1), "batch", None)  # [B, Y * X * C]
        return nn.relu(Linear((self.width,), ("embed", "mlp"), name="linear")(x))


class ConvNet(Model):
    """A stack of `Conv`, `Pool`, `Dropout` and `Dense`, then one logit a class (LeCun et al.,
    1998).

    Two that tutorials train on 28x28 images of one channel, with `valid = functools.partial(Conv,
    padding="valid")`:

        PyTorch, 1,199,882 parameters:
            valid(32), valid(64), Pool(), Dropout(0.25), Dense(128), Dropout(0.5)
        Keras and TensorFlow, 93,322 parameters:
            valid(32), Pool(), valid(64), Pool(), valid(64), Dense(64)
    """

    layers: tuple[nn.Module, ...]
    """In order, from the image."""
    classes: PositiveInt
    """Number of classes."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, classes]."""
        x = cast(x, self.dtype)
        for layer in self.layers:
            x = layer(x, train)  # type: ignore[operator]
        return ClassifierHead(self.classes, name="head")(x.reshape(x.shape[0], -1))
