"""U-Net: a class for each pixel of an image (Ronneberger et al., 2015).

Letters in shape comments: B batch, Y and X height and width, C channels, K classes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import PositiveInt, choose, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier
from jaxbig.models.layers.basic import cast
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain
from jaxbig.models.resnet import ConvNorm, Norm


class UNet(Classifier):
    """Two 3x3 convolutions at each of several sizes of an image, from large to small and back; on
    the way back each size sees what it gave on the way down.

    Images keep their size, as convolutions are padded; each is followed by a normalization; and
    what grows is repeated and convolved, where the paper has transposed convolutions.
    """

    levels: PositiveInt = 5
    """Number of sizes; each after the first has half the side and twice the channels."""
    width: PositiveInt = 64
    """Channels at the full size."""
    norm: Norm = "batch"
    """batch or group normalization, the latter with standardized kernels."""
    groups: PositiveInt = 32
    """Of norm "group"."""
    dtype: Dtype = "float32"
    """Of the computation; parameters, statistics and logits are float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, Y, X, K], float32."""
        validate(self)
        layer = functools.partial(
            ConvNorm, norm=choose("norm", self.norm, Norm), groups=self.groups
        )
        least = 2 ** (self.levels - 1)
        if x.shape[1] % least or x.shape[2] % least:
            raise Refused(
                f"levels {self.levels}: the sides of an image must divide by {least}, and it is "
                f"{x.shape[1]}x{x.shape[2]}."
            )

        def twice(x: jax.Array, level: int, name: str) -> jax.Array:
            for number in (1, 2):
                channels = self.width * 2**level
                x = nn.relu(layer(channels, 3, name=f"{name}_{level}_{number}")(x, train))
                x = constrain(x, "batch", None, None, None)
            return x

        x = constrain(cast(x, self.dtype), "batch", None, None, None)
        seen = []
        for level in range(self.levels):
            if level:
                x = nn.max_pool(x, (2, 2), (2, 2))  # [B, Y / 2, X / 2, C]
            x = twice(x, level, "down")
            seen.append(x)
        for level in reversed(range(self.levels - 1)):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)  # [B, 2 Y, 2 X, C]
            x = layer(self.width * 2**level, 3, name=f"grow_{level}")(x, train)
            x = twice(jnp.concatenate([seen[level], nn.relu(x)], axis=-1), level, "up")
        return ClassifierHead(self.classes, name="head")(x)
