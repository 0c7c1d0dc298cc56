"""Convolution, batch normalization and group normalization: layers of all image nets.

Letters in shape comments: B batch, Y and X height and width, C channels.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxbig.arrays.batch_mask import real_rows
from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import FractionBelowOne, NonNegativeFloat, NonNegativeInt, PositiveInt
from jaxbig.distributed.logical_axes import platform
from jaxbig.errors import Refused
from jaxbig.models.layers.basic import standardize
from jaxbig.models.layers.parameters import parameter

Padding = Literal["same", "valid"]


class Convolution(nn.Module):
    """A convolution and its bias, initialized as He et al. (2015) by default."""

    channels: PositiveInt
    """Number of output channels."""
    kernel: PositiveInt = 3
    """Side of the square kernel, in pixels."""
    stride: PositiveInt = 1
    """Pixels between two places of the kernel."""
    padding: Padding | NonNegativeInt = "same"
    """Zero padding: enough to keep the size, none, or a number of pixels on each side."""
    groups: PositiveInt = 1
    """Channel groups; an output channel sees only the input channels of its group."""
    bias: bool = True
    """Add a learned bias."""
    standardized: bool = False
    """Weight standardization (Qiao et al., 2019): kernels of mean 0 and variance 1 per output."""
    initial: Initializer = nn.initializers.he_normal()
    """Initializer of the kernel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, Y, X, C] -> [B, Y', X', channels]; with padding "same" Y' = ceil(Y / stride), and X'
        likewise."""
        self._check(x.shape)
        pad = (
            self.padding.upper()
            if isinstance(self.padding, str)
            else [(self.padding, self.padding)] * 2
        )
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.channels)
        axes = (None, None, None, "channels")
        kernel: Any = parameter(self, "kernel", self.initial, shape, axes)
        if self.standardized:  # in float32, as every statistic
            kernel = standardize(kernel, 1e-10, (0, 1, 2))
        convolve = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(self.stride, self.stride),
            padding=pad,
            feature_group_count=self.groups,
        )
        y = (turned(convolve) if self.groups == 1 else by_rows(usual(convolve)))(
            x, kernel.astype(x.dtype)
        )
        if self.bias:
            bias = parameter(
                self, "bias", nn.initializers.zeros, (self.channels,), ("channels",), x.dtype
            )
            y = y + jnp.broadcast_to(bias, y.shape)
        return y

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            raise Refused(
                f"a convolution on an array of {len(shape)} axes: it needs images [B, Y, X, C], "
                f"before Dense."
            )
        (rows, columns, channels) = shape[1:]
        side = self.kernel
        if self.padding == "same" and side % 2 == 0:
            raise Refused(
                f"kernel={side} is even, so padding='same' cannot center it: make it odd, or "
                f"padding='valid'."
            )
        around = 0 if isinstance(self.padding, str) else 2 * self.padding
        if self.padding != "same" and min(rows, columns) + around < side:
            raise Refused(
                f"kernel={side} on an image of {rows}x{columns}: use larger images, or shrink them "
                f"less before."
            )
        if channels % self.groups or self.channels % self.groups:
            raise Refused(
                f"groups={self.groups} does not divide {channels} channels in and "
                f"{self.channels} out."
            )


def usual(convolve: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Images [B, Y, X, C] and kernels [Y, X, C, C'] -> [B, Y, X, C']."""
    return functools.partial(convolve, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def turned(convolve: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Like `usual`, with a faster kernel gradient on a CPU: a convolution with B and C swapped.

    Inside a loop (accumulated or fixed-order gradients) XLA's CPU compiler does not swap them
    itself and is thirty times slower (jax 0.10.2); the numbers are equal.
    """
    if platform() != "cpu":
        return usual(convolve)
    as_it_is = usual(convolve)
    with_turned = functools.partial(convolve, dimension_numbers=("CHWN", "IHWO", "HWNC"))

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
        return as_it_is(x, kernel), (x, kernel)

    def backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, kernel = saved
        (dx,) = jax.linear_transpose(lambda x: as_it_is(x, kernel), x)(gradient)
        alone = functools.partial(with_turned, x.transpose(3, 1, 2, 0))  # [C, Y, X, B]
        (d_kernel,) = jax.linear_transpose(alone, kernel.transpose(2, 0, 1, 3))(
            gradient.transpose(1, 2, 0, 3)
        )
        return dx, d_kernel.transpose(1, 2, 0, 3)

    function = jax.custom_vjp(as_it_is)
    function.defvjp(forward, backward)
    return function


def by_rows(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function(x, kernel)` under shard_map: each device's examples, the replicated kernel.

    For grouped convolutions: on a mesh that splits both the batch and `tensor`, the partitioner
    gives the right output but a kernel gradient `tensor` times too large (jax 0.10.2, CPU).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not nn.get_logical_axis_rules():
        return function
    rows = nn.logical_to_mesh_axes(("batch",))
    return jax.shard_map(function, in_specs=(rows, jax.sharding.PartitionSpec()), out_specs=rows)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy, 2015), per channel.

    `(x - mean) / sqrt(variance + epsilon) * scale + bias`. Training uses the statistics of the
    global batch and updates running ones in `batch_stats`; evaluation uses the running ones. The
    running variance is the unbiased one (n - 1), as in PyTorch. Masked examples count in no
    statistic (`batch_mask.py`).
    """

    momentum: FractionBelowOne = 0.9
    """Decay of the running statistics (0.9 here is 0.1 in PyTorch)."""
    epsilon: NonNegativeFloat = 1e-5
    """Added to the variance."""
    zero: bool = False
    """Start with scale 0 instead of 1."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[..., C] -> [..., C]. In float32: a variance in half precision is noise."""
        running: dict[str, nn.Variable[Any]] = {}
        for name, start in (("mean", jnp.zeros), ("var", jnp.ones)):
            init: Any = nn.with_logical_partitioning(start, ("channels",))
            running[name] = self.variable("batch_stats", name, init, x.shape[-1:])
        # [C] each
        mean = running["mean"].value
        variance = running["var"].value
        y = upcast(x)
        if train:
            count: Any = x.size // x.shape[-1]
            if count < 2:
                raise Refused(
                    "BatchNorm in training on 1 value a channel: use a larger batch, larger "
                    "images or GroupNorm."
                )
            real = real_rows(x.shape[0])
            mean = average(y, real)
            # the variance's gradient by its mean is zero, and is not computed
            at_rest = jnp.broadcast_to(jax.lax.stop_gradient(mean), y.shape)
            variance = average(jnp.square(y - at_rest), real)
            if not self.is_initializing():
                count, some = (count, True) if real is None else (of_rows(real, y), jnp.any(real))
                unbiased = variance * count / jnp.maximum(count - 1, 1)
                for name, now in (("mean", mean), ("var", unbiased)):
                    after = self.momentum * running[name].value + (1 - self.momentum) * now
                    running[name].value = jnp.where(some, after, running[name].value)
        y = y - jnp.broadcast_to(mean, y.shape)
        factor = jax.lax.rsqrt(variance + self.epsilon)
        return scaled(self, y, self.zero, factor).astype(x.dtype)


def average(y: jax.Array, real: jax.Array | None) -> jax.Array:
    """Per-channel mean [C] of y [B, ..., C] over the real examples [B]; 0 if there are none."""
    axes = tuple(range(y.ndim - 1))
    if real is None:
        return jnp.mean(y, axes)
    kept = jnp.where(real.reshape(-1, *(1,) * (y.ndim - 1)), y, 0)
    return jnp.sum(kept, axes) / jnp.maximum(of_rows(real, y), 1)


def of_rows(real: jax.Array, y: jax.Array) -> jax.Array:
    """Number of values per channel in the real examples [B] of y [B, ..., C]."""
    return jnp.sum(real.astype(y.dtype)) * (y[0].size // y.shape[-1])


class GroupNorm(nn.Module):
    """Group normalization (Wu and He, 2018): each example's channels in groups, each group to mean
    0 and variance 1."""

    groups: PositiveInt = 32
    """Number of groups, a divisor of the channels."""
    epsilon: NonNegativeFloat = 1e-5
    """Added to the variance."""
    zero: bool = False
    """Start with scale 0 instead of 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] -> [B, ..., C]. In float32, as BatchNorm."""
        if self.groups < 1 or x.shape[-1] % self.groups:
            raise Refused(
                f"groups={self.groups} does not divide {x.shape[-1]} channels: GroupNorm needs "
                f"equal groups."
            )
        y = upcast(x).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        y = y - jnp.mean(y, axis=(1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 3), keepdims=True) + self.epsilon)
        return scaled(self, y.reshape(x.shape), self.zero).astype(x.dtype)


def scaled(
    module: nn.Module, y: jax.Array, zero: bool, factor: jax.Array | None = None
) -> jax.Array:
    """`y * factor * scale + bias`, a channel: scale and bias are parameters of the module; y [...,
    C], factor [C]. The factors are multiplied first, so that y is multiplied once."""
    init = nn.initializers.zeros if zero else nn.initializers.ones
    scale = parameter(module, "scale", init, y.shape[-1:], ("channels",))
    bias = parameter(module, "bias", nn.initializers.zeros, y.shape[-1:], ("channels",))
    if factor is not None:
        scale = scale * factor
    return y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
