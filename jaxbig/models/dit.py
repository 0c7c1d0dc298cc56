"""The diffusion Transformer for images (DiT; Peebles and Xie, 2023).

Letters in shape comments: B batch, Y and X height and width, C channels, P side of a patch, N
patches, D width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveInt
from jaxbig.errors import Refused
from jaxbig.models.base import without_features
from jaxbig.models.layers.attention import sinusoidal
from jaxbig.models.layers.basic import Embedding, Linear, cast, drop
from jaxbig.models.layers.parameters import constrain
from jaxbig.models.transformer import Context, Gate, Stack, modulation
from jaxbig.models.vit import PatchFields, Positions

NO_CLASS = -1
FREQUENCIES = 256
"""Sines and cosines of the time."""
TIMES = 1000.0
"""Time 1 is embedded as position 1,000, DDPM's last step."""


class DiT(PatchFields, kw_only=True):
    """From noisy images, their times and their classes to images, such as the noise in them.

    The condition, of time and class, shifts, scales and gates each branch of a block (adaLN-zero),
    so at first the model gives 0. S, B, L and XL are width 384, 768, 1024 and 1152, heads 6, 12, 16
    and 16, depth 12, 12, 24 and 28.
    """

    classes: PositiveInt
    """Number of classes; there is one embedding more, the first, of no class."""

    patch: PositiveInt = 2
    activation: Gate = "gelu_tanh"
    positions: Positions = "sincos"  # type: ignore[assignment]

    @nn.compact
    def __call__(
        self, x: jax.Array, times: jax.Array, labels: jax.Array, train: bool = False
    ) -> jax.Array:
        """Images [B, Y, X, C], times [B] of 0 to 1, classes [B] (below 0: none) -> [B, Y, X, C],
        float32."""
        if not self.pre_norm:
            raise Refused("pre_norm is off: a condition scales what is normalized, so turn it on.")
        if self.sandwich_norm:
            raise Refused("sandwich_norm would undo the gates, which scale what a branch adds.")
        shape = x.shape
        x = self.embed_patches(x)  # [B, N, D]
        if self.positions == "learned":
            x = self.with_positions(x)
        x = constrain(drop(x, self.dropout, train), "batch", "length", None)
        condition = self.condition(times, labels)  # [B, D]
        fields: dict[str, Any] = self.common_fields() | {"positions": "none"}
        stack = Stack(**fields, depth=self.depth, final_norm=False, name="blocks")
        x = stack(x, Context(condition=condition), train)
        shift, factor = modulation(condition, 2, self.width, "modulation")
        norm: Any = self.normalize("norm", learned=False)
        x = norm(x) * (1 + factor) + shift
        p = self.patch
        axes = ("embed", None, None, None)
        x = Linear((p, p, shape[-1]), axes, scale=0.0, name="head")(x)  # [B, N, P, P, C]
        x = upcast(x).reshape(shape[0], shape[1] // p, shape[2] // p, p, p, shape[-1])
        return constrain(jnp.moveaxis(x, 3, 2).reshape(shape), "batch", None, None, None)

    @nn.nowrap
    def features(self, *arguments: Any, **named: Any) -> jax.Array:
        """Raises `Refused`: it is no classifier."""
        raise without_features(self)

    def condition(self, times: jax.Array, labels: jax.Array) -> jax.Array:
        """Times [B] and classes [B] -> [B, D]."""
        wave = cast(sinusoidal(TIMES * times, FREQUENCIES), self.dtype)
        time = Linear((self.width,), (None, "embed"), name="time")(wave)
        time = Linear((self.width,), ("embed", None), name="time_out")(nn.silu(time))
        table = Embedding(self.classes + 1, self.width, 0.02, axis=None, name="labels")
        label = table(jnp.maximum(labels, NO_CLASS) + 1)
        return nn.silu(constrain(time + label.astype(time.dtype), "batch", None))
