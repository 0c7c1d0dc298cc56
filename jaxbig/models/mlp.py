"""The MLP model: fully connected layers for vectors.

Letters in shape comments: B batch, D width, K outputs.
"""

import flax.linen as nn
import jax

from jaxbig.arrays.dtypes import Dtype
from jaxbig.constraints import DropRate, PositiveInt, choose, validate
from jaxbig.models.base import Model
from jaxbig.models.layers.basic import ACTIVATIONS, Activation, Linear, cast, drop
from jaxbig.models.layers.heads import ClassifierHead
from jaxbig.models.layers.parameters import constrain


class MLP(Model):
    """Linear layers with a nonlinearity between them (Rumelhart et al., 1986)."""

    widths: tuple[PositiveInt, ...] = (64, 64)
    """Of each hidden layer; none: a linear model."""
    outputs: PositiveInt = 1
    """Number of outputs."""
    activation: Activation = "relu"
    """The nonlinearity."""
    dropout: DropRate = 0.0
    """Share of values dropped after each hidden layer."""
    dtype: Dtype = "float32"
    """Of the computation; parameters and logits are float32."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[B, ...] -> float32 [B, K], or [B] with one output."""
        validate(self)
        activate = choose("activation", self.activation, ACTIVATIONS)
        x = cast(x.reshape(x.shape[0], -1), self.dtype)  # [B, D]
        for layer, width in enumerate(self.widths):
            # the first takes what the data has, which need not divide over `fsdp`
            axes = ("embed" if layer else None, "mlp")
            x = activate(Linear((width,), axes, name=f"linear_{layer}")(x))
            x = constrain(drop(x, self.dropout, train), "batch", "mlp")
        input_axis = "embed" if self.widths else None
        y = ClassifierHead(self.outputs, input_axis=input_axis, name="head")(x)
        return y[:, 0] if self.outputs == 1 else y
