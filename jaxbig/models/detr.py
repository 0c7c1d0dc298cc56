"""DETR: the objects of an image, a class and a box each (Carion et al., 2020).

Letters in shape comments: B batch, Y and X height and width, S places of the feature map, Q
queries, R layers of the decoder, D width, K classes.
"""

import math
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import Dtype, upcast
from jaxbig.constraints import DropRate, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier, without_features
from jaxbig.models.layers.attention import sinusoidal
from jaxbig.models.layers.basic import Embedding, LayerNorm, Linear, cast
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain, parameter
from jaxbig.models.resnet import ResNet
from jaxbig.models.transformer import Block, Context, Stack

SIDE = 32.0
"""Units of the sine positions along a side of the image."""
RARE = math.log(0.01 / 0.99)
"""Of each class at first: logits of 1% (Lin et al., 2017, section 4.1)."""


class DETR(Classifier, kw_only=True):
    """A ResNet's feature map, a Transformer encoder of its places, and a decoder whose queries each
    give the logits of the classes, and a box.

    Each query starts from a point of a grid, its box is an offset from a square around that point
    (Wang et al., 2022, Anchor DETR), and it attends to places near the point first, how near is
    learned by each head (Gao et al., 2021, SMCA): queries without a place train much slower.
    Blocks are pre-norm, and positions are added once, to what the encoder and the decoder see.
    """

    backbone: ResNet
    """The ResNet, whose feature map is read; its classes are not used."""
    depth: PositiveInt = 6
    """Number of blocks of the encoder, and of the decoder."""
    width: PositiveInt = 256
    """Width of each vector, a multiple of 4."""
    heads: PositiveInt = 8
    """Number of attention heads, a divisor of the width."""
    mlp_width: PositiveInt | None = None
    """Hidden width of the MLPs; None: 4 times the width."""
    grid: PositiveInt = 10
    """Queries along each side of the image: grid x grid in all."""
    auxiliary: bool = True
    """Each block of the decoder answers, and is trained; without, only the last."""
    dropout: DropRate = 0.0
    """Dropout rate at the end of each branch."""
    dtype: Dtype = "float32"
    """Of the computation but the backbone's, which has its own; parameters, norms, softmax, logits
    and boxes are float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Images [B, Y, X, C] -> `logits` [B, R, Q, K] and `boxes` [B, R, Q, 4], float32: center x
        and y, width and height, as fractions of the image. The last layer is the answer."""
        validate(self)
        if self.width % 4:
            raise Refused(f"width {self.width}: it must be a multiple of 4.")
        fields: dict[str, Any] = {
            "heads": self.heads,
            "mlp_width": self.mlp_width,
            "norm": "layer",
            "bias": True,
            "activation": "relu",
            "positions": "none",
            "dropout": self.dropout,
            "dtype": self.dtype,
        }
        features = cast(self.backbone(x, train, head=False), self.dtype)  # [B, Y', X', C']
        rows = features.shape[1]
        columns = features.shape[2]
        y = features.reshape(features.shape[0], rows * columns, -1)
        y = Linear((self.width,), (None, "embed"), name="input")(y)  # [B, S, D]
        places = self.positions(middles(columns, rows)).astype(y.dtype)
        y = constrain(y + jnp.broadcast_to(places, y.shape), "batch", "length", None)
        memory = Stack(**fields, depth=self.depth, name="encoder")(y, Context(), train)
        memory = memory + jnp.broadcast_to(places, memory.shape)

        points = middles(self.grid, self.grid)  # [Q, 2]
        learned = Embedding(len(points), self.width, 0.02, axis=None, name="queries").whole()
        odd = 2 * np.arange(self.grid) + 1
        under = odd[:, None] * rows // (2 * self.grid) * columns + odd * columns // (2 * self.grid)
        q = jnp.take(constrain(memory, "batch", None, None), under.ravel(), axis=1)  # [B, Q, D]
        q = constrain(
            q + jnp.broadcast_to(learned.astype(q.dtype), q.shape), "batch", "length", None
        )
        near = self.nearness(points, middles(columns, rows))
        context = Context(constrain(memory, "batch", "length", None), memory_scores=near)
        norm = LayerNorm(name="norm")
        answers = []
        for layer in range(self.depth):
            block = Block(
                **fields, cross=True, out_scale=(3 * self.depth) ** -0.5, name=f"decoder_{layer}"
            )
            q = block(q, context, None, 0.0, train)
            if self.auxiliary or layer == self.depth - 1:
                answers.append(norm(q))
        q = constrain(jnp.stack(answers, axis=1), "batch", None, "length", None)  # [B, R, Q, D]
        logits = ClassifierHead(self.classes, name="head")(q) + RARE
        return {"logits": logits, "boxes": self.boxes(q, points)}

    def boxes(self, q: jax.Array, points: np.ndarray) -> jax.Array:
        """Queries [B, R, Q, D] at points [Q, 2] -> boxes [B, R, Q, 4], float32."""
        for layer in range(2):
            q = Linear((self.width,), ("embed", "mlp"), name=f"box_{layer}")(q)
            q = nn.relu(constrain(q, "batch", None, None, None))
        offsets = upcast(Linear((4,), ("embed", None), scale=0.1, name="box_head")(q))
        square = np.full_like(points, min(2 / self.grid, 0.5))
        anchors = np.concatenate([points, square], axis=1)  # [Q, 4]
        odds = jnp.asarray(np.log(anchors / (1 - anchors)), offsets.dtype)
        boxes = nn.sigmoid(offsets + jnp.broadcast_to(odds, offsets.shape))
        return constrain(boxes, "batch", None, None, None)

    def nearness(self, points: np.ndarray, places: np.ndarray) -> jax.Array:
        """Points [Q, 2] and places [S, 2] -> scores of attention [1, H, Q, S]: a Gaussian, 0 in the
        middle, whose standard deviation starts as half an anchor's width or less."""
        learned = parameter(self, "nearness", nn.initializers.zeros, (self.heads,), ("heads",))
        rate = jnp.exp(learned) * np.geomspace(self.grid, 4 * self.grid, self.heads)  # [H]
        square = np.square(points[:, None] - places).sum(axis=2)  # [Q, S]
        gaussian = -jnp.square(rate)[:, None, None] * jnp.asarray(square, rate.dtype)[None] / 2
        return gaussian[None]

    @nn.nowrap
    def positions(self, points: np.ndarray) -> jax.Array:
        """Points [N, 2] -> sine positions [1, N, D]; half of the width is for x, half for y."""
        halves = [sinusoidal(SIDE * jnp.asarray(axis), self.width // 2) for axis in points.T]
        return jnp.concatenate(halves, axis=-1)[None]

    @nn.nowrap
    def features(self, *arguments: Any, **named: Any) -> jax.Array:
        """Raises `Refused`: it is no classifier of images."""
        raise without_features(self)

    @nn.nowrap
    def narrower(self) -> Self | None:
        backbone = self.backbone.narrower()
        half = super().narrower()
        return None if half is None or backbone is None else half.clone(backbone=backbone)

    @nn.nowrap
    def shallower(self, depth: int) -> Self:
        return super().shallower(depth).clone(backbone=self.backbone.shallower(depth))

    @nn.nowrap
    def with_dtype(self, dtype: str) -> Self | None:
        return self.clone(dtype=dtype, backbone=self.backbone.with_dtype(dtype))


def middles(columns: int, rows: int) -> np.ndarray:
    """The middles of a grid of places, row by row: x and y as fractions, [rows * columns, 2]."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=1)
