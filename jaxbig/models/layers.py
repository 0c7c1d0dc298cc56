"""Layers that every family uses: a linear map with named axes, normalization, attention.

Letters in shape comments: B batch, L length, D width, H heads, K width of a head, F hidden width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxbig.mesh import GATHERED

Axes = tuple[str | None, ...]


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: Axes) -> jax.Array:
    """Declares a parameter whose axes have logical names, and gathers it over `fsdp` for use.

    The gathering is said here because the partitioner, left to itself, may choose a wrong gradient: with
    `fsdp` and `tensor` both on an LSTM's kernel it was off by 19% at an exact loss (jax 0.10.2, CPU).
    """
    value = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return nn.with_logical_constraint(value, axes, rules=GATHERED)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to its logical axes."""
    return nn.with_logical_constraint(x, axes)


class Linear(nn.Module):
    """`x @ kernel + bias` over the last `inputs` axes of x, to the axes of `shape`.

    axes: the logical names of the kernel's axes, inputs first. Initialized as LeCun et al. (1998), variance
    1 / fan-in, times `scale`.
    """

    shape: tuple[int, ...]
    axes: Axes
    inputs: int = 1
    bias: bool = True
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *shape]."""
        kernel_shape = (*x.shape[x.ndim - self.inputs :], *self.shape)
        inward, outward = range(self.inputs), range(self.inputs, len(kernel_shape))
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "truncated_normal", inward, outward)
        kernel = parameter(self, "kernel", init, kernel_shape, self.axes)
        y = jnp.tensordot(x, kernel, axes=self.inputs)
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.shape, self.axes[self.inputs :])
            y = y + jnp.broadcast_to(bias, y.shape)
        return y


class RMSNorm(nn.Module):
    """Root mean square layer normalization (Zhang and Sennrich, 2019): `x / rms(x) * scale` over the last axis."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), (None,))
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.epsilon) * jnp.broadcast_to(scale, x.shape)


def rotary(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary positions (Su et al., 2021, eq. 34): turns pairs of [B, L, H, K] by angles that grow along L."""
    length, width = x.shape[1], x.shape[3]
    frequency = base ** (-jnp.arange(0, width, 2) / width)  # [K/2]
    angle = jnp.outer(jnp.arange(length), frequency)  # [L, K/2]
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]  # [1, L, 1, K/2]
    first, second = jnp.split(x, 2, axis=-1)  # [B, L, H, K/2] each
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., 2017, section 3.2.2) with rotary positions."""

    heads: int
    scale: float = 1.0
    """Of the output projection's initial values."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        width = x.shape[-1]
        head = width // self.heads
        joint = Linear((3, self.heads, head), ("embed", None, "heads", None), bias=False, name="qkv")(x)
        joint = constrain(joint, "batch", "length", None, "heads", None)  # [B, L, 3, H, K]
        query, key, value = joint[:, :, 0], joint[:, :, 1], joint[:, :, 2]  # [B, L, H, K] each
        y = jax.nn.dot_product_attention(rotary(query), rotary(key), value, is_causal=True)
        y = constrain(y, "batch", "length", "heads", None)
        out = Linear((width,), ("heads", None, "embed"), inputs=2, bias=False, scale=self.scale, name="out")
        return constrain(out(y), "batch", "length", None)
