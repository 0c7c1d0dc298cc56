"""DLRM: a model of clicks from numbers and categories.

Letters in shape comments: B batch, M numbers, N categories, D width, P pairs, K classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Classifier
from jaxbig.models.layers.basic import Embedding, Linear, cast
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain


class DLRM(Classifier):
    """An MLP of the numbers, an embedding of each category, the products of each two of these, and
    an MLP (Naumov et al., 2019). The classes are two logits in place of one."""

    vocab: PositiveInt
    """Rows of the table, which has the parts of all categories."""
    width: PositiveInt = 16
    """Length of embeddings."""
    bottom: tuple[PositiveInt, ...] = (512, 256, 64)
    """Widths of the hidden layers of the MLP of the numbers."""
    top: tuple[PositiveInt, ...] = (512, 256)
    """Widths of the hidden layers of the MLP of the products."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    @nn.compact
    def __call__(
        self, inputs: jax.Array, numbers: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Rows of the table [B, N], numbers [B, M] -> logits [B, K], float32."""
        validate(self)
        if numbers is None:
            raise Refused(
                "DLRM needs numbers beside the categories: name some with --data.numbers."
            )
        table = Embedding(self.vocab, self.width, self.width**-0.5, name="table")
        x = cast(numbers, self.dtype)  # [B, M]
        for layer, width in enumerate((*self.bottom, self.width)):
            x = hidden(x, width, f"bottom_{layer}", "embed" if layer else None)
        x = constrain(x, "batch", None)  # [B, D]
        vectors = jnp.concatenate([x[:, None], cast(table(inputs), self.dtype)], axis=1)
        products = jnp.einsum("bnd,bmd->bnm", vectors, vectors)  # [B, 1 + N, 1 + N]
        rows, columns = np.tril_indices(vectors.shape[1], -1)
        x = jnp.concatenate([x, products[:, rows, columns]], axis=1)  # [B, D + P]
        for layer, width in enumerate(self.top):
            x = hidden(x, width, f"top_{layer}", "embed" if layer else None)
        return ClassifierHead(self.classes, name="head")(x)


def hidden(x: jax.Array, width: int, name: str, axis: str | None) -> jax.Array:
    """[B, ...] -> [B, width]: a linear layer whose input has this logical axis, and ReLU."""
    return constrain(nn.relu(Linear((width,), (axis, "mlp"), name=name)(x)), "batch", "mlp")
