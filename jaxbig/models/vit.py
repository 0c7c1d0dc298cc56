"""The Vision Transformer model for images (Dosovitskiy et al., 2021).

Letters in shape comments: B batch, Y and X height and width, C channels, P side of a patch, N
patches, D width.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.constraints import PositiveInt, choose
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier
from jaxbig.models.layers.attention import Attention, sinusoidal
from jaxbig.models.layers.basic import Embedding, Linear, Norm, cast, drop
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain, parameter
from jaxbig.models.transformer import Context, Gate, Stack, TransformerFields

Pooling = Literal["token", "average", "attention"]
Positions = Literal["learned", "sincos"]


class PatchFields(TransformerFields, kw_only=True):
    """The fields and the first layer of models that see an image as a sequence of patches."""

    patch: PositiveInt = 16
    """Side of a patch, in pixels."""
    depth: PositiveInt = 12
    """Number of blocks."""
    width: PositiveInt = 384
    """Width of each patch's vector."""
    heads: PositiveInt = 6
    norm: Norm = "layer"
    bias: bool = True
    activation: Gate = "gelu"
    positions: Positions = "learned"  # type: ignore[assignment]
    """learned, or sines and cosines of the patch's row and column (Chen et al., 2021, MoCo v3)."""

    def embed_patches(self, x: jax.Array) -> jax.Array:
        """Images [B, Y, X, C] -> vectors [B, N, D], with positions sincos added."""
        choose("positions", self.positions, Positions)
        batch, height, across, channels = x.shape
        if height % self.patch or across % self.patch:
            raise Refused(f"patch {self.patch} does not divide an image of {height}x{across}.")
        rows = height // self.patch
        columns = across // self.patch
        p = self.patch
        x = cast(x, self.dtype).reshape(batch, rows, p, columns, p, channels)
        x = jnp.moveaxis(x, 3, 2).reshape(batch, rows * columns, p, p, channels)  # [B, N, P, P, C]
        x = Linear((self.width,), (None, None, None, "embed"), inputs=3, name="patches")(
            x
        )  # [B, N, D]
        if self.positions == "sincos":
            x = x + jnp.broadcast_to(self.grid(rows, columns).astype(x.dtype), x.shape)
        return x

    def with_positions(self, x: jax.Array) -> jax.Array:
        """Vectors [B, N, D] plus a learned one for each position."""
        table = Embedding(x.shape[1], self.width, 0.02, axis=None, name="positions").whole()
        return x + jnp.broadcast_to(table[None].astype(x.dtype), x.shape)

    def grid(self, rows: int, columns: int) -> jax.Array:
        """Positions of patches [1, N, D]: half of the width is for the row, half for the column."""
        if self.width % 4:
            raise Refused(f"width {self.width} does not divide by 4, which positions sincos need.")
        y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
        halves = [sinusoidal(axis.reshape(-1), self.width // 2) for axis in (y, x)]  # [N, D/2] each
        return jnp.concatenate(halves, axis=-1)[None]


class ViT(Classifier, PatchFields, kw_only=True):
    """An image as a sequence of patches, then one logit a class.

    Ti, S, B and L are width 192, 384, 768 and 1024, heads 3, 6, 12 and 16, depth 12 (L: 24).
    """

    pooling: Pooling = "token"
    """Input of the head: a class token, the mean of all patches, or attention with a learned query
    (Zhai et al., 2022, section 3.3, without its MLP)."""
    class_token: bool | None = None
    """Put a learned vector before the patches; None: with pooling token alone. An average leaves it
    out."""
    token_position: bool = True
    """Give that vector a learned position too."""
    norm_after_pooling: bool = False
    """Normalize what is pooled, in place of what the last block gives."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images [B, Y, X, C] -> logits [B, classes], float32."""
        choose("pooling", self.pooling, Pooling)
        has_token = self.pooling == "token" if self.class_token is None else self.class_token
        if self.pooling == "token" and not has_token:
            raise Refused("class_token False: pooling token needs it; use pooling average.")
        if self.norm_after_pooling and not self.pre_norm:
            raise Refused("norm_after_pooling needs pre_norm, which is off.")
        batch = x.shape[0]
        x = self.embed_patches(x)  # [B, N, D]
        if self.positions == "learned" and not self.token_position:
            x = self.with_positions(x)
        if has_token:
            token = parameter(
                self,
                "token",
                nn.initializers.zeros,
                (1, 1, self.width),
                (None, None, "embed"),
                x.dtype,
            )
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)), x], axis=1)
        if self.positions == "learned" and self.token_position:
            x = self.with_positions(x)
        x = constrain(drop(x, self.dropout, train), "batch", "length", None)
        fields: dict[str, Any] = self.common_fields() | {"positions": "none"}
        normalized = self.pre_norm and not self.norm_after_pooling
        stack = Stack(**fields, depth=self.depth, final_norm=normalized, name="blocks")
        x = stack(x, Context(), train)
        if self.pooling == "attention":
            query = parameter(
                self,
                "query",
                nn.initializers.normal(self.width**-0.5),
                (1, 1, self.width),
                (None, None, "embed"),
            )
            probe = jnp.broadcast_to(query.astype(x.dtype), (batch, 1, self.width))
            x = Attention(
                heads=self.heads, bias=self.bias, kernel=self.attention_kernel, name="pooling"
            )(probe, x)
        if self.pooling == "average" and has_token:
            x = x[:, 1:]
        x = x.mean(axis=1) if self.pooling == "average" else x[:, 0]
        if self.norm_after_pooling:
            x = self.normalize("norm")(constrain(x, "batch", None))  # type: ignore[operator]
        return ClassifierHead(self.classes, name="head")(x)
