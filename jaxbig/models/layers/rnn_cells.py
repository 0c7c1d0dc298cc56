"""Recurrent layers, scanned over time: the Elman RNN, the LSTM and the GRU.

All products by a layer's weights that need no earlier state are one matrix product outside the
scan: W x_t going forward, and the gradient of U going backward, where automatic differentiation
would add it up step by step.

Letters in shape comments: B batch, L length, D width of the input, W width of the state, G gates.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import accumulation_dtype
from jaxbig.constraints import PositiveInt, choose
from jaxbig.models.layers.basic import Linear, length_mask
from jaxbig.models.layers.parameters import constrain, parameter

Carry = tuple[jax.Array, ...]
"""What a layer remembers: its state [B, W] first, then (LSTM) its cell [B, W]."""
CellName = Literal["lstm", "gru", "elman", "elman_relu"]


class Equations(NamedTuple):
    """A recurrent layer's equations: `carry_t = advance(join(W x_t, U h_(t-1) + b),
    carry_(t-1))`."""

    gates: int
    """G, how many vectors [W] the products W x_t and U h_(t-1) give."""
    carries: int
    join: Callable[[jax.Array, jax.Array], jax.Array]
    """Two products [..., G, W] -> what `advance` takes; linear."""
    split: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    """The transpose of `join`: from its gradient to those of the two products."""
    advance: Callable[[jax.Array, Carry], Carry]


def squash(gates: jax.Array, scales: tuple[float, ...]) -> jax.Array:
    """Of gates [..., G, W] the sigmoid where the scale is 1/2, tanh where it is 1: sigmoid(x) = (1
    + tanh(x/2)) / 2.

    One function of the whole block: on a CPU the gates one by one took five times as long.
    """
    scale = jnp.broadcast_to(jnp.array(scales, gates.dtype)[:, None], gates.shape)
    return jnp.tanh(gates * scale) * scale + (1 - scale)


def split_gates(gates: jax.Array) -> list[jax.Array]:
    """[..., G, W] -> G of [..., W]; its gradient is one concatenation, where that of indices is a
    sum of G."""
    axis = gates.ndim - 2
    return [
        jnp.squeeze(part, axis) for part in jax.lax.split(gates, (1,) * gates.shape[axis], axis)
    ]


def lstm(gates: jax.Array, carry: Carry) -> Carry:
    """Long short-term memory (Hochreiter and Schmidhuber, 1997; gates as Gers et al., 2000):

    i, f, g, o = W x_t + U h_(t-1) + b
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g),    h_t = sigmoid(o) tanh(c_t)
    """
    i, f, g, o = split_gates(squash(gates, (0.5, 0.5, 1.0, 0.5)))
    cell = f * carry[1] + i * g
    return o * jnp.tanh(cell), cell


def gru(gates: jax.Array, carry: Carry) -> Carry:
    """Gated recurrent unit (Cho et al., 2014), its reset gate after the product, as cuDNN and
    PyTorch have it:

    r, z, n = W x_t + b',    r', z', n' = U h_(t-1) + b
    h_t = (1 - u) tanh(n + sigmoid(r + r') n') + u h_(t-1),    u = sigmoid(z + z')
    """
    both, apart = jax.lax.split(gates, (2, 2), axis=gates.ndim - 2)
    (r, u) = split_gates(squash(both, (0.5, 0.5)))
    (from_input, from_state) = split_gates(apart)
    n = jnp.tanh(from_input + r * from_state)
    return (n + u * (carry[0] - n),)


def gru_join(inputs: jax.Array, product: jax.Array) -> jax.Array:
    """r and z see the sum of both; of n the reset gate takes from the second alone, so they are
    kept apart."""
    both = inputs[..., :2, :] + product[..., :2, :]
    return jnp.concatenate([both, inputs[..., 2:, :], product[..., 2:, :]], axis=-2)


def gru_split(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient[..., :3, :], jnp.concatenate(
        [gradient[..., :2, :], gradient[..., 3:, :]], axis=-2
    )


def add(inputs: jax.Array, product: jax.Array) -> jax.Array:
    return inputs + product


def both(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, gradient


def elman(gates: jax.Array, carry: Carry) -> Carry:
    """Elman (1990): h_t = tanh(W x_t + U h_(t-1) + b)."""
    return (jnp.tanh(gates[..., 0, :]),)


def elman_relu(gates: jax.Array, carry: Carry) -> Carry:
    return (nn.relu(gates[..., 0, :]),)


EQUATIONS = {
    "lstm": Equations(4, 2, add, both, lstm),
    "gru": Equations(3, 1, gru_join, gru_split, gru),
    "elman": Equations(1, 1, add, both, elman),
    "elman_relu": Equations(1, 1, add, both, elman_relu),
}


def constrain_carry(carry: Carry) -> Carry:
    return tuple(constrain(part, "batch", "hidden") for part in carry)


def select(alive: jax.Array | None, new: Carry, old: Carry) -> Carry:
    """`new` in rows that are alive [B, 1], `old` in the others; all are where it is None."""
    return (
        new
        if alive is None
        else tuple(jnp.where(alive, a, b) for a, b in zip(new, old, strict=True))
    )


def cell_step(
    cell: Equations, kernel: jax.Array, bias: jax.Array, inputs: jax.Array, carry: Carry
) -> Any:
    """One step: W x_t [B, G, W] and the carry before -> what `cell.join` gives, and the carry
    after.

    The products are in the dtype of the inputs; the carry, which adds up over all steps, and the
    functions between are in float32 at least.
    """
    product = jnp.tensordot(carry[0].astype(inputs.dtype), kernel, axes=1)
    gates = cell.join(inputs, product + jnp.broadcast_to(bias, product.shape))
    return gates, constrain_carry(cell.advance(gates.astype(carry[0].dtype), carry))


def shifted(parts: jax.Array, first: jax.Array, reverse: bool) -> jax.Array:
    """What was carried after each step [L, B, W] -> what was carried before it."""
    return jnp.concatenate([parts[1:], first[None]] if reverse else [first[None], parts[:-1]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan(
    cell: Equations,
    reverse: bool,
    kernel: jax.Array,
    bias: jax.Array,
    inputs: jax.Array,
    start: Carry,
    alive: jax.Array | None,
) -> tuple[jax.Array, Carry]:
    """A layer over time: U [W, G, W], b [G, W], all W x_t [L, B, G, W], the first carry, and where
    rows are alive [L, B, 1] -> all states [L, B, W] and the last carry. Its derivative is for
    reverse mode alone.
    """
    return scan_forward(cell, reverse, kernel, bias, inputs, start, alive)[0]


def scan_forward(
    cell: Equations, reverse: bool, kernel: Any, bias: Any, inputs: Any, start: Carry, alive: Any
) -> tuple[tuple[jax.Array, Carry], Any]:
    def step(carry: Carry, xs: Any) -> tuple[Carry, Any]:
        inputs, alive = xs
        gates, new = cell_step(cell, kernel, bias, inputs, carry)
        new = select(alive, new, carry)
        return new, (gates, new)

    last, (gates, carries) = jax.lax.scan(step, start, (inputs, alive), reverse=reverse)
    return (carries[0], last), (kernel, start, alive, gates, carries)


def scan_backward(cell: Equations, reverse: bool, saved: Any, gradient: Any) -> Any:
    """The scan takes back the carry's gradient alone; that of U is one product of all steps, after
    it."""
    kernel, start, alive, gates, carries = saved
    d_states, d_last = gradient
    before = tuple(
        shifted(part, first, reverse) for part, first in zip(carries, start, strict=True)
    )

    def step(carry: Carry, xs: Any) -> tuple[Carry, jax.Array]:
        d_state, gates, before, alive = xs
        carry = (carry[0] + d_state, *carry[1:])
        zeros = tuple(jnp.zeros_like(part) for part in carry)
        _, back = jax.vjp(cell.advance, gates.astype(d_state.dtype), before)
        d_gates, d_before = back(select(alive, carry, zeros))
        d_gates = d_gates.astype(gates.dtype)
        d_hidden = jnp.tensordot(cell.split(d_gates)[1], kernel, axes=((1, 2), (1, 2)))
        d_before = (d_before[0] + d_hidden.astype(d_state.dtype), *d_before[1:])
        if alive is not None:
            d_before = tuple(
                a + b for a, b in zip(d_before, select(alive, zeros, carry), strict=True)
            )
        return constrain_carry(d_before), d_gates

    steps = (d_states, gates, before, alive)
    d_start, d_gates = jax.lax.scan(step, d_last, steps, reverse=not reverse)
    d_inputs, d_product = cell.split(d_gates)  # [L, B, G, W]
    d_kernel = jnp.tensordot(
        before[0].astype(kernel.dtype), d_product, axes=((0, 1), (0, 1))
    )  # [W, G, W]
    return d_kernel, jnp.sum(d_product, axis=(0, 1)), d_inputs, d_start, None


scan.defvjp(scan_forward, scan_backward)


def forget_one(
    key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
) -> jax.Array:
    """Initial biases [4, W]: 1 for the forget gate, 0 for the others."""
    return jnp.zeros(shape, dtype or jnp.float32).at[1].set(1.0)


class Layer(nn.Module):
    """One recurrent layer over whole sequences; the equations are those of the function `cell`
    names.

    An LSTM's forget gate begins open, with a bias of 1 (Jozefowicz et al., 2015).
    """

    width: PositiveInt
    """Of the state."""
    cell: CellName = "lstm"
    """The recurrent cell: LSTM, GRU, or Elman's with tanh or ReLU."""

    @nn.compact
    def products(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[L, B, D] -> all W x_t [L, B, G, W], U [W, G, W] and b [G, W], for the caller's scan."""
        cell = choose("cell", self.cell, EQUATIONS)
        shape = (self.width, cell.gates, self.width)
        axes = ("embed", None, "hidden")
        within = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", 0, (1, 2)
        )  # +- 1 / sqrt(W), as PyTorch
        kernel = parameter(self, "recurrent", within, shape, axes, x.dtype)
        zeros = forget_one if self.cell == "lstm" else nn.initializers.zeros
        bias = parameter(self, "bias", zeros, shape[1:], axes[1:], x.dtype)
        return Linear(shape[1:], axes, bias=self.cell == "gru", name="input")(x), kernel, bias

    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        start: Carry | None = None,
        reverse: bool = False,
    ) -> tuple[jax.Array, Carry]:
        """[B, L, D], lengths [B] and the first carry (zeros) -> each h_t [B, L, W] and the last
        carry, parts [B, W].

        Beyond a row's length the carry stands still, so padding, whatever it holds, changes
        nothing. In reverse a row is read from its last token to its first; states stay in the order
        of the tokens.
        """
        batch, length, _ = x.shape
        cell = choose("cell", self.cell, EQUATIONS)
        alive = None
        if lengths is not None:
            inside = length_mask(lengths, length)[..., None]  # [B, L, 1]
            x = jnp.where(inside, x, 0)  # before the product: 0 * NaN would be NaN in gradients
            alive = jnp.swapaxes(inside, 0, 1)
        inputs, kernel, bias = self.products(jnp.swapaxes(x, 0, 1))
        zeros = jnp.zeros((batch, self.width), accumulation_dtype(x.dtype))
        start = constrain_carry((zeros,) * cell.carries if start is None else start)
        of_layer: Any = scan(cell, reverse, kernel, bias, inputs, start, alive)
        states, last = of_layer
        states = constrain(jnp.swapaxes(states, 0, 1).astype(x.dtype), "batch", "length", "hidden")
        return states, constrain_carry(last)


LSTM = functools.partial(Layer, cell="lstm")
GRU = functools.partial(Layer, cell="gru")
Elman = functools.partial(Layer, cell="elman")
