"""Models for speech recognition: spectrograms to the logits of each frame, for CTC.

Letters in shape comments: B batch, F frames, M mel bands, L frames after the convolutions, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import DropRate, NonNegativeInt, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier
from jaxbig.models.layers.attention import Attention
from jaxbig.models.layers.attention_mask import from_lengths
from jaxbig.models.layers.basic import LayerNorm, Linear, cast, drop, length_mask
from jaxbig.models.layers.convolution import Convolution
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain, parameter


class Subsampling(nn.Module):
    """Convolutions over time and frequency with ReLU, then a linear layer; each convolution halves
    frames and bands."""

    width: PositiveInt
    """Width of each frame's vector."""
    channels: PositiveInt
    """Channels of each convolution."""
    convolutions: NonNegativeInt = 2
    """Number of convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Spectrograms [B, F, M, C], lengths [B] -> vectors [B, L, D], their lengths [B], with L =
        ceil(F / 2^convolutions)."""
        for layer in range(self.convolutions):
            x = within(x, lengths)  # a frame sees the next one, which may be padding
            # one zero on each side: "same" would depend on the length
            x = Convolution(self.channels, 3, 2, padding=1, name=f"convolution_{layer}")(x)
            x = constrain(nn.relu(x), "batch", "length", None, None)
            lengths = -(-lengths // 2)
        x = x.reshape(*x.shape[:2], -1)
        x = Linear((self.width,), (None, "embed"), name="linear")(x)
        return constrain(x, "batch", "length", None), lengths


def within(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """[B, L, ...] with zeros beyond each row's length."""
    inside = length_mask(lengths, x.shape[1])
    return jnp.where(inside.reshape(*inside.shape, *(1,) * (x.ndim - 2)), x, 0)


def lengths_of(x: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """The lengths [B]; those of [B, F, ...] without padding, where none are given."""
    return jnp.full(x.shape[:1], x.shape[1]) if lengths is None else lengths


def check_odd(kernel: int) -> None:
    """Refuses a kernel without a center."""
    if kernel % 2 == 0:
        raise Refused(f"kernel {kernel} is even, and has no center: make it odd.")


class TimeConvolution(nn.Module):
    """A convolution over time alone, centered, layer normalization and ReLU."""

    width: PositiveInt
    """Width of each frame's vector."""
    size: PositiveInt
    """Frames that the kernel sees; odd."""
    stride: PositiveInt = 1
    """Frames between two places of the kernel."""

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, F, C], lengths [B] -> [B, L, D], their lengths [B], with L = ceil(F / stride)."""
        frames = x.shape[1]
        padded = jnp.pad(within(x, lengths), ((0, 0), (self.size // 2, self.size // 2), (0, 0)))
        seen = [padded[:, k : k + frames : self.stride] for k in range(self.size)]
        x = Linear((self.width,), (None, "embed"), name="linear")(jnp.concatenate(seen, axis=-1))
        x = nn.relu(LayerNorm(name="norm")(constrain(x, "batch", "length", None)))
        return x, -(-lengths // self.stride)


class Jasper(Classifier, kw_only=True):
    """Convolutions over time, each but the first added to its input, then logits of each frame (Li
    et al., 2019; with one convolution a block, and layer normalization in place of batch
    normalization, so that no frame of padding and no other example counts)."""

    width: PositiveInt = 256
    """Width of each frame's vector."""
    depth: PositiveInt = 10
    """Number of blocks."""
    kernel: PositiveInt = 11
    """Frames that a convolution sees; odd."""
    convolutions: PositiveInt = 2
    """Number of convolutions before the blocks; each halves the frames."""
    dropout: DropRate = 0.0
    """Share of values dropped at the end of each block."""
    dtype: Dtype = "float32"
    """Of the computation; parameters, norms and logits are float32."""

    def check_fields(self) -> None:
        check_odd(self.kernel)

    @nn.compact
    def __call__(
        self, x: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Spectrograms [B, F, M, 1], lengths [B] -> logits [B, L, classes], float32, with L =
        ceil(F / 2^convolutions)."""
        validate(self)
        lengths = lengths_of(x, lengths)
        x = cast(x, self.dtype).reshape(*x.shape[:2], -1)  # [B, F, M]: each band is a channel
        for layer in range(self.convolutions):
            convolution = TimeConvolution(self.width, self.kernel, 2, name=f"convolution_{layer}")
            x, lengths = convolution(x, lengths)
        for layer in range(self.depth):
            block = TimeConvolution(self.width, self.kernel, name=f"block_{layer}")
            y, _ = block(x, lengths)
            x = x + drop(y, self.dropout, train)
        return ClassifierHead(self.classes, name="head")(x)


class DepthwiseConvolution(nn.Module):
    """A convolution over time of each channel alone, centered."""

    size: PositiveInt
    """Frames that the kernel sees; odd."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]; zeros beyond both ends.

        It is a sum of shifted frames: XLA's grouped convolution is slow on a CPU.
        """
        length, width = x.shape[1:]
        init = nn.initializers.normal(self.size**-0.5)
        kernel = parameter(self, "kernel", init, (self.size, width), (None, "hidden"), x.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (width,), ("hidden",), x.dtype)
        padded = jnp.pad(x, ((0, 0), (self.size // 2, self.size // 2), (0, 0)))
        shifts = (padded[:, k : k + length] * kernel[k][None, None] for k in range(self.size))
        return sum(shifts, jnp.broadcast_to(bias, x.shape))


class ConformerBlock(nn.Module):
    """Half a feed-forward module, attention, a convolution and the other half (Gulati et al., 2020,
    section 2.4), each added to its input; then a normalization."""

    heads: PositiveInt
    """Number of attention heads."""
    kernel: PositiveInt
    """Frames that the convolution sees."""
    dropout: DropRate
    """Share of values dropped at the end of each module."""

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, train: bool) -> jax.Array:
        """[B, L, D], lengths [B] -> [B, L, D]."""
        segments = from_lengths(lengths, x.shape[1])
        attention = Attention(heads=self.heads, bias=True, rotary=True, name="attention")

        def added(x: jax.Array, y: jax.Array, share: float = 1.0) -> jax.Array:
            return x + share * drop(constrain(y, "batch", "length", None), self.dropout, train)

        x = added(x, self.feed_forward(x, "first", train), 0.5)
        x = added(x, attention(LayerNorm(name="attention_norm")(x), segments=segments))
        x = added(x, self.convolution(x, lengths))
        x = added(x, self.feed_forward(x, "second", train), 0.5)
        return LayerNorm(name="norm")(x)

    def feed_forward(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        width = x.shape[-1]
        y = LayerNorm(name=f"{name}_norm")(x)
        y = Linear((4 * width,), ("embed", "mlp"), name=f"{name}_up")(y)
        y = drop(nn.silu(constrain(y, "batch", "length", "mlp")), self.dropout, train)
        return Linear((width,), ("mlp", "embed"), name=f"{name}_down")(y)

    def convolution(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """[B, L, D], lengths [B] -> [B, L, D]."""
        width = x.shape[-1]
        y = LayerNorm(name="convolution_norm")(x)
        y = Linear((2, width), ("embed", None, "hidden"), name="convolution_in")(y)
        y = constrain(y[:, :, 0] * nn.sigmoid(y[:, :, 1]), "batch", "length", "hidden")
        y = DepthwiseConvolution(self.kernel, name="convolution")(within(y, lengths))
        y = LayerNorm(name="convolution_middle_norm")(constrain(y, "batch", "length", None))
        y = constrain(nn.silu(y), "batch", "length", "hidden")
        return Linear((width,), ("hidden", "embed"), name="convolution_out")(y)


class Conformer(Classifier, kw_only=True):
    """Convolutions, then blocks of attention and convolution, then logits of each frame (Gulati et
    al., 2020).

    S, M and L are width 144, 256 and 512, depth 16, 16 and 17, heads 4, 4 and 8. Positions are
    rotary, in place of relative ones, and layer normalization stands for batch normalization, so
    that no frame of padding and no other example counts.
    """

    depth: PositiveInt = 16
    """Number of blocks."""
    width: PositiveInt = 256
    """Width of each frame's vector."""
    heads: PositiveInt = 4
    """Number of attention heads, a divisor of the width."""
    kernel: PositiveInt = 31
    """Frames that each block's convolution sees; odd."""
    channels: PositiveInt | None = None
    """Channels of the first convolutions; None: the width."""
    convolutions: NonNegativeInt = 2
    """Number of first convolutions; each halves the frames."""
    dropout: DropRate = 0.1
    """Share of values dropped at the end of each module."""
    dtype: Dtype = "float32"
    """Of the computation; parameters, norms, softmax and logits are float32."""

    def check_fields(self) -> None:
        check_odd(self.kernel)

    @nn.compact
    def __call__(
        self, x: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Spectrograms [B, F, M, 1], lengths [B] -> logits [B, L, classes], float32."""
        validate(self)
        channels = self.channels or self.width
        front = Subsampling(self.width, channels, self.convolutions, name="front")
        x, lengths = front(cast(x, self.dtype), lengths_of(x, lengths))
        x = drop(x, self.dropout, train)
        for layer in range(self.depth):
            block = ConformerBlock(self.heads, self.kernel, self.dropout, name=f"block_{layer}")
            x = block(x, lengths, train)
        return ClassifierHead(self.classes, name="head")(x)
