"""Convolutional nets for images.

Letters in shape comments: B batch, Y and X height and width, C channels.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import Refused
from jaxbig.models.layers import Linear, constrain, parameter


class Conv(nn.Module):
    """Convolution, padded to keep the image's size, then ReLU (He et al., 2015, for its initial values)."""

    channels: int
    """How many it puts out."""
    kernel: int = 3
    """Side of the square kernel, in pixels."""
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, Y, X, C] -> [B, Y / stride, X / stride, channels]."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.channels)
        kernel = parameter(self, "kernel", nn.initializers.he_normal(), shape, (None, None, None, "channels"))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.channels,), ("channels",))
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)
        return nn.relu(y + jnp.broadcast_to(bias, y.shape))


class Pool(nn.Module):
    """The largest or mean value of each window; windows do not overlap."""

    window: int = 2
    """Side of the square window, in pixels."""
    kind: Literal["max", "mean"] = "max"

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, Y, X, C] -> [B, Y // window, X // window, C]."""
        if not 1 <= self.window <= min(x.shape[1:3]):
            raise Refused(f"Pool(window={self.window}) on an image of {x.shape[1]}x{x.shape[2]}: pool less, or later.")
        pool = nn.max_pool if self.kind == "max" else nn.avg_pool
        return pool(x, (self.window, self.window), (self.window, self.window))


class Dropout(nn.Module):
    """Sets a share of the values to zero in training (Srivastava et al., 2014)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not 0 <= self.rate < 1:
            raise Refused(f"Dropout(rate={self.rate}): it must be 0 or more and below 1.")
        return nn.Dropout(self.rate, deterministic=not train)(x)


class Dense(nn.Module):
    """Fully connected layer, then ReLU; an image is flattened first."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, ...] -> [B, width]."""
        x = constrain(x.reshape(x.shape[0], -1), "batch", None)  # [B, Y * X * C]
        return nn.relu(Linear((self.width,), ("embed", "mlp"), name="linear")(x))


class ConvNet(nn.Module):
    """A stack of `Conv`, `Pool`, `Dropout` and `Dense`, then one logit a class (LeCun et al., 1998)."""

    layers: tuple[nn.Module, ...]
    """From the image up."""
    classes: int
    """How many logits it puts out."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, classes]."""
        for layer in self.layers:
            x = layer(x, train)  # type: ignore[operator]
        # pinned: left free here, a plausible mesh once gave a wrong kernel gradient (jax 0.10 to 0.12, CPU)
        x = constrain(x.reshape(x.shape[0], -1), "batch", None)
        logits = Linear((self.classes,), ("embed", "classes"), name="head")(x)
        return constrain(logits.astype(jnp.float32), "batch", None)
