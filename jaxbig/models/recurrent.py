"""Recurrent nets, scanned over time.

Letters in shape comments: B batch, L length, D width of the input, W width of the state.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.models.layers import Linear, constrain, parameter


def forget_one(key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> jax.Array:
    """Initial biases [4, W]: 1 for the forget gate, 0 for the others."""
    return jnp.zeros(shape, dtype or jnp.float32).at[1].set(1.0)


class LSTM(nn.Module):
    """One layer of long short-term memory (Hochreiter and Schmidhuber, 1997; gates as Gers et al., 2000):

        i, f, g, o = W x_t + U h_(t-1) + b
        c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g),    h_t = sigmoid(o) tanh(c_t)

    W x_t is one matrix product for all t, outside the scan. The forget gate's bias starts at 1 (Jozefowicz et
    al., 2015).
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """[B, L, D] and lengths [B] -> each h_t [B, L, W] and each row's last [B, W].

        Beyond a row's length the state stands still, so padding changes nothing.
        """
        batch, length, _ = x.shape
        inputs = Linear((4, self.width), ("embed", None, "hidden"), bias=False, name="input")(x)  # [B, L, 4, W]
        within = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", 0, (1, 2))  # +- 1 / sqrt(W), as PyTorch
        axes = ("embed", None, "hidden")
        kernel = parameter(self, "recurrent", within, (self.width, 4, self.width), axes)
        bias = parameter(self, "bias", forget_one, (4, self.width), axes[1:])
        inputs = inputs + jnp.broadcast_to(bias, inputs.shape)
        ends = jnp.full((batch,), length) if lengths is None else lengths

        def step(carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]) -> Any:
            hidden, cell = carry  # [B, W] each
            time, from_input = now  # [], [B, 4, W]
            gates = from_input + jnp.tensordot(hidden, kernel, axes=1)
            i, f, g, o = (gates[:, gate] for gate in range(4))
            new_cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            new_hidden = nn.sigmoid(o) * jnp.tanh(new_cell)
            alive = (time < ends)[:, None]
            hidden, cell = jnp.where(alive, new_hidden, hidden), jnp.where(alive, new_cell, cell)
            return (hidden, cell), hidden

        zeros = constrain(jnp.zeros((batch, self.width), inputs.dtype), "batch", "hidden")
        steps = (jnp.arange(length), jnp.moveaxis(inputs, 1, 0))
        (last, _), states = jax.lax.scan(step, (zeros, zeros), steps)
        states = constrain(jnp.moveaxis(states, 0, 1), "batch", "length", "hidden")
        return states, constrain(last, "batch", "hidden")


class RNN(nn.Module):
    """Layers of `LSTM` over a sequence, then one logit a class from the last state."""

    width: int
    """Of each layer's state."""
    classes: int
    """How many logits it puts out."""
    layers: int = 1
    dropout: float = 0.0
    """Share of values dropped between layers and before the logits."""

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None = None, train: bool = False) -> jax.Array:
        """Sequences [B, L, ...] (an image is a sequence of its rows) and lengths [B] -> logits [B, classes]."""
        x = x.reshape(*x.shape[:2], -1)  # [B, L, D]
        last = x[:, -1]
        for layer in range(self.layers):
            x, last = LSTM(self.width, name=f"lstm_{layer}")(x, lengths)  # [B, L, W], [B, W]
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        last = nn.Dropout(self.dropout, deterministic=not train)(last)
        last = constrain(last, "batch", None)
        logits = Linear((self.classes,), ("embed", "classes"), name="head")(last)
        return constrain(logits.astype(jnp.float32), "batch", None)
