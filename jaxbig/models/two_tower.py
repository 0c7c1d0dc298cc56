"""The two-tower model: a vector for what is asked and one for each item, whose product is a score.

Letters in shape comments: B batch, N inputs, D width, K items.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype, upcast
from jaxbig.constraints import DropRate, PositiveInt, choose, validate
from jaxbig.models.base import Model
from jaxbig.models.layers.basic import (
    ACTIVATIONS,
    Activation,
    Embedding,
    Linear,
    cast,
    drop,
    length_mask,
)
from jaxbig.models.layers.parameters import constrain, parameter


class TwoTower(Model):
    """Two towers and a product (Covington et al., 2016; Yi et al., 2019).

    That of the query is the mean of the embeddings of its inputs and an MLP, that of the items an
    embedding each and an MLP, which is none by default. An item has a bias, for how frequent it is.
    """

    vocab: PositiveInt
    """Rows of the query's table."""
    items: PositiveInt
    """Number of items."""
    width: PositiveInt = 64
    """Length of embeddings and of both towers' vectors."""
    query_widths: tuple[PositiveInt, ...] = (128,)
    """Of the hidden layers of the query's MLP; none: the mean is the query."""
    item_widths: tuple[PositiveInt, ...] = ()
    """Of the hidden layers of the items' MLP; none: an embedding is the item."""
    activation: Activation = "relu"
    """The nonlinearity of the MLPs."""
    dropout: DropRate = 0.0
    """Share of values dropped before each layer of the MLPs."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and scores are float32."""

    def setup(self) -> None:
        self.inputs = Embedding(self.vocab, self.width, name="inputs")
        self.catalog = Embedding(self.items, self.width, self.width**-0.5, name="catalog")
        self.query_mlp = Tower(self.query_widths, self.width, self.activation, self.dropout)
        self.item_mlp = Tower(self.item_widths, self.width, self.activation, self.dropout)
        zeros = nn.initializers.zeros
        self.bias = parameter(self, "bias", zeros, (self.items,), ("vocab",))

    def query(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Inputs [B, N], of which the first `lengths` [B] count (None: all) -> [B, D]."""
        x = cast(self.inputs(inputs), self.dtype)  # [B, N, D]
        real = jnp.ones(inputs.shape, bool)
        if lengths is not None:
            real = length_mask(lengths, inputs.shape[1])
        x = jnp.where(real[..., None], x, 0).sum(axis=1)  # [B, D]
        share = 1 / jnp.maximum(real.sum(axis=1), 1).astype(x.dtype)
        # a product: XLA rounds the derivative of a quotient in more than one way
        x = constrain(x * share[:, None], "batch", None)
        return self.query_mlp(x, train)

    def catalog_vectors(self, train: bool = False) -> jax.Array:
        """A vector for each item, [K, D]."""
        x = cast(self.catalog.whole(), self.dtype)
        return constrain(self.item_mlp(x, train), "vocab", None)

    def __call__(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Inputs [B, N], lengths [B] or None -> scores [B, K], float32."""
        validate(self)
        query = self.query(inputs, lengths, train)
        scores = upcast(jnp.einsum("bd,kd->bk", query, self.catalog_vectors(train)))
        return constrain(scores + self.bias[None], "batch", "vocab")


class Tower(nn.Module):
    """Hidden layers and a linear one; none without hidden layers."""

    widths: tuple[PositiveInt, ...]
    """Of the hidden layers."""
    width: PositiveInt
    """Length of the result."""
    activation: Activation = "relu"
    """The nonlinearity."""
    dropout: DropRate = 0.0
    """Share of values dropped before each layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, D] -> [B, width]."""
        if not self.widths:
            return x
        activate = choose("activation", self.activation, ACTIVATIONS)
        for layer, width in enumerate(self.widths):
            x = drop(x, self.dropout, train)
            x = activate(Linear((width,), ("embed", "mlp"), name=f"linear_{layer}")(x))
            x = constrain(x, "batch", "mlp")
        return Linear((self.width,), ("mlp", "embed"), name="out")(drop(x, self.dropout, train))
