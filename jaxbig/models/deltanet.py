"""Gated DeltaNet: a language model whose memory is a matrix, corrected by the delta rule.

Letters in shape comments: B batch, L length, D width of the input, H heads, K width of a key, V
width of a value, C positions of a chunk, N chunks.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import HIGHEST, upcast
from jaxbig.constraints import PositiveInt
from jaxbig.models.layers.basic import Linear, RMSNorm
from jaxbig.models.layers.parameters import constrain, parameter
from jaxbig.models.linear_recurrent import CausalConv, Continued, LinearRecurrentModel

product = functools.partial(jnp.matmul, precision=HIGHEST)


@jax.custom_vjp
def solve(system: jax.Array, sides: jax.Array) -> jax.Array:
    """x of (I + T) x = sides, T being what is below the diagonal of a system [..., C, C].

    It only multiplies: jaxlib 0.10's triangular solver waits forever where two systems are solved
    at once on a CPU of two cores.

    Args:
      system: [..., C, C]; its diagonal, and what is above it, is not read.
      sides: [..., C, S].

    Returns:
      [..., C, S].
    """
    return solve_forward(system, sides)[0]


def solve_forward(system: jax.Array, sides: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    inverse = unit_lower_inverse(system)
    solved = product(inverse, sides)
    return solved, (inverse, solved)


def solve_backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    inverse, solved = saved
    sides = product(jnp.swapaxes(inverse, -1, -2), gradient)
    return jnp.tril(-product(sides, jnp.swapaxes(solved, -1, -2)), -1), sides


solve.defvjp(solve_forward, solve_backward)


def unit_lower_inverse(system: jax.Array) -> jax.Array:
    """(I + T)^-1, T being what is below the diagonal, [..., C, C].

    The inverses of two neighboring blocks on the diagonal give that of the block of both:
    [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]]. The first blocks are single numbers.
    """
    size = system.shape[-1]
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=system.dtype), system.shape)
    block = 1
    while block < size:
        number = np.arange(size) // block
        pairs = (number[:, None] == number + 1) & (number % 2 == 0)  # the B of all pairs
        between = jnp.where(pairs, system, 0)
        inverse = inverse - product(inverse, product(between, inverse))
        block *= 2
    return inverse


def gated_delta(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array,
    state: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """The gated delta rule (Yang et al., 2024, "Gated Delta Networks", equation 10), by chunks:

        S_t = a_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T,    o_t = S_t^T q_t

    A chunk writes S_t = a_t S_(t-1) + k_t u_t^T. Its u solve one triangular system, whose
    right-hand side is linear in the state before the chunk. So all chunks are solved at once
    (their WY representation, section 3.3), and only products with the state remain for the scan.

    Args:
      queries: [B, L, H, K].
      keys: [B, L, H, K], of length 1.
      values: [B, L, H, V].
      beta: [B, L, H], 0 to 1: how much of a key's old value is replaced.
      log_decay: [B, L, H], log a, at most 0.
      state: [B, H, K, V], S before the first position.
      chunk: C; any gives the same numbers.

    Returns:
      o [B, L, H, V] and the last S [B, H, K, V].
    """
    batch, length, heads, width = values.shape

    def chunks(x: jax.Array) -> jax.Array:
        """[B, L, H, ...] -> [N, B, H, C, ...]; with 0 behind the end, which leaves S as it is."""
        x = jnp.pad(x, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), (1, 3), (0, 2))

    q, k, v, beta, log_decay = map(chunks, (queries, keys, values, beta, log_decay))
    total = jnp.cumsum(log_decay, axis=-1)  # [N, B, H, C]
    between = total[..., :, None] - total[..., None, :]
    # of what position i wrote until position t, 0 for a later i: [N, B, H, C, C]
    decay = jnp.exp(jnp.where(jnp.tri(chunk, dtype=bool), between, -jnp.inf))
    from_start = jnp.exp(total)[..., None]  # [N, B, H, C, 1]
    to_end = jnp.exp(total[..., -1:] - total)[..., None]
    beta = beta[..., None]
    transposed = jnp.swapaxes(k, -1, -2)  # [N, B, H, K, C]
    system = product(beta * k, transposed) * decay  # its diagonal is not read: that is of ones
    sides = jnp.concatenate([beta * v, beta * from_start * k], axis=-1)
    solved = solve(system, sides)

    def step(state: jax.Array, now: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, scores, written, erased, keys, kept = now
        u = written - product(erased, state)  # [B, H, C, V]
        return kept * state + product(keys, u), product(q, state) + product(scores, u)

    parts = (
        q * from_start,
        product(q, transposed) * decay,
        solved[..., :width],
        solved[..., width:],
        transposed * jnp.swapaxes(to_end, -1, -2),
        from_start[..., -1:, :],
    )
    state, outputs = jax.lax.scan(step, state, parts)
    outputs = jnp.moveaxis(outputs, (0, 2), (1, 3)).reshape(batch, -1, heads, width)
    return outputs[:, :length], state


class GatedDelta(nn.Module):
    """The gated delta rule as a layer (Yang et al., 2024, section 3.4): queries, keys and values
    through a short convolution and SiLU, the output normalized in each head and gated.

    The decay is Mamba 2's: a_t = exp(-exp(rate) softplus(W x_t + bias)). In float32.
    """

    heads: PositiveInt
    """H."""
    key_width: PositiveInt
    """K, of each head's queries and keys."""
    value_width: PositiveInt
    """V, of each head's values."""
    chunk: PositiveInt
    """C, positions that are solved at once."""

    @nn.compact
    def __call__(self, x: jax.Array, continued: Continued | None = None) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        batch, length, width = x.shape

        def linear(name: str, of_head: int) -> jax.Array:
            """[B, L, D] -> [B, L, H of_head]."""
            axes = ("embed", "hidden")
            return Linear((self.heads * of_head,), axes, bias=False, name=name)(x)

        def short(name: str, of_head: int) -> jax.Array:
            """[B, L, D] -> [B, L, H, of_head], float32; a device has whole rows."""
            y = CausalConv(name=f"{name}_convolution")(linear(name, of_head), continued)
            y = nn.silu(constrain(y, "batch", "length", "hidden"))
            y = upcast(y).reshape(batch, length, self.heads, of_head)
            return constrain(y, "batch", None, "heads", None)

        def of_heads(name: str) -> jax.Array:
            """[B, L, D] -> [B, L, H], float32."""
            y = Linear((self.heads,), ("embed", "heads"), bias=False, name=name)(x)
            return constrain(upcast(y), "batch", None, "heads")

        queries = normalized(short("query", self.key_width)) * self.key_width**-0.5
        keys = normalized(short("key", self.key_width))
        values = short("value", self.value_width)
        beta = nn.sigmoid(of_heads("beta"))
        one = (self.heads,), ("heads",), values.dtype
        rate = parameter(self, "rate", log_rates, *one)
        bias = parameter(self, "bias", small_steps, *one)
        log_decay = -jnp.exp(rate)[None, None] * nn.softplus(of_heads("decay") + bias[None, None])

        state = jnp.zeros((batch, self.heads, self.key_width, self.value_width), keys.dtype)
        state = constrain(state, "batch", "heads", None, None)
        chunk = min(self.chunk, length)
        if continued is None:
            y, _ = gated_delta(queries, keys, values, beta, log_decay, state, chunk)
        else:
            beta = continued.without_padding(beta)
            kept = self.variable("cache", "state", lambda: state)
            y, kept.value = gated_delta(queries, keys, values, beta, log_decay, kept.value, chunk)
        y = RMSNorm(name="norm")(constrain(y, "batch", None, "heads", None).astype(x.dtype))
        y = y.reshape(batch, length, -1) * nn.silu(linear("gate", self.value_width))
        y = constrain(y, "batch", "length", "hidden")
        return Linear((width,), ("hidden", "embed"), bias=False, name="out")(y)


def log_rates(key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> jax.Array:
    """Initial rate: log r, r uniform from 1 to 16."""
    return jnp.log(jax.random.uniform(key, shape, dtype or jnp.float32, 1, 16))


def small_steps(
    key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
) -> jax.Array:
    """Initial bias: its softplus is uniform from 0.001 to 0.1 in the logarithm."""
    ends = math.log(0.001), math.log(0.1)
    step = jnp.exp(jax.random.uniform(key, shape, dtype or jnp.float32, *ends))
    return step + jnp.log(-jnp.expm1(-step))


def normalized(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class DeltaNet(LinearRecurrentModel):
    """A language model of gated delta rules (Yang et al., 2024, "Gated Delta Networks")."""

    heads: PositiveInt = 4
    """H, each with a memory of its own."""
    key_width: PositiveInt = 48
    """K, of each head's queries and keys; its memory has K x V numbers."""
    value_width: PositiveInt = 96
    """V, of each head's values."""
    chunk: PositiveInt = 64
    """Positions that are solved at once; the numbers do not depend on it."""

    @nn.nowrap
    def mixing(self, block: int, x: jax.Array, continued: Continued | None) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        mixing = GatedDelta(
            self.heads, self.key_width, self.value_width, self.chunk, name=f"delta_{block}"
        )
        return mixing(x, continued)
