"""Parameters with named axes: declared, sharded over `fsdp`, all-gathered whole or in chunks."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxbig.arrays.dtypes import accumulation_dtype, upcast
from jaxbig.constraints import PositiveInt
from jaxbig.distributed.logical_axes import rules_without_fsdp, split

Axes = tuple[str | None, ...]


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    axes: Axes,
    dtype: Any = None,
) -> jax.Array:
    """Declares a parameter with logical axes and all-gathers it over `fsdp`.

    The all-gather is explicit because the partitioner may otherwise choose a wrong gradient: with
    `fsdp` and `tensor` both on an LSTM's kernel it was off by 19% although the loss was exact (jax
    0.10.2, CPU).

    Args:
      module: the module that owns the parameter.
      name: its name in the parameter tree.
      init: its initializer.
      shape: its shape.
      axes: the logical name of each axis, or None.
      dtype: the dtype of the result; None: float32 or wider.

    Returns:
      The parameter, of `shape`.
    """
    value = sharded_parameter(module, name, init, shape, axes)
    return all_gather_parameter(value, axes, dtype or accumulation_dtype(value.dtype))


def sharded_parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: Axes
) -> jax.Array:
    """Like `parameter`, but returns it as stored, sharded over `fsdp`; used with `chunked_sum`."""
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return value


def all_gather_parameter(value: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
    """Casts a sharded parameter, or a chunk of one, to `dtype` and all-gathers it over `fsdp`."""
    # Constrain to the stored sharding first: cast before the all-gather, reduce-scatter the
    # gradient.
    return nn.with_logical_constraint(
        constrain(value.astype(dtype), *axes), axes, rules=rules_without_fsdp()
    )


def chunked_sum(
    count: int,
    axis: str,
    function: Callable[..., jax.Array],
    x: jax.Array,
    kernels: Sequence[tuple[jax.Array, Axes]],
    gather: Callable[[jax.Array, Axes, Any], jax.Array] = all_gather_parameter,
) -> jax.Array:
    """Sums `function(x, *kernels)` over equal chunks of one axis of sharded parameters.

    All-gathers one chunk at a time and recomputes it in the backward pass, so that only one chunk
    is in memory. The sum, and that of the gradient of x, are in float32.

    Args:
      count: the number of chunks; 0: everything at once.
      axis: the logical name of the axis that is split; each kernel has it.
      function: takes x and a chunk of each kernel; its results are summed.
      x: the input; any shape.
      kernels: parameters as stored, each with its logical axes.
      gather: all-gathers a chunk of a kernel: (kernel, axes, dtype) -> kernel.

    Returns:
      The sum, in the dtype of x.
    """
    if not count:
        return function(x, *(gather(kernel, axes, x.dtype) for kernel, axes in kernels))
    wide_x = upcast(x)
    all_axes = [axes for _, axes in kernels]

    def one_chunk(chunk: list[jax.Array]) -> jax.Array:
        gathered = [
            gather(kernel, axes, x.dtype) for kernel, axes in zip(chunk, all_axes, strict=True)
        ]
        return upcast(function(wide_x.astype(x.dtype), *gathered))

    @jax.checkpoint
    def add_chunk(total: jax.Array, chunk: list[jax.Array]) -> tuple[jax.Array, None]:
        return total + one_chunk(chunk), None

    chunks = [split(kernel, axes.index(axis), axis, count) for kernel, axes in kernels]
    shape = jax.eval_shape(one_chunk, [kernel[0] for kernel in chunks]).shape
    start = jnp.zeros(shape, wide_x.dtype)
    # inside shard_map a carry must say over which axes of the mesh it varies
    varying = set[str]().union(
        *(jax.typeof(value).manual_axis_type.varying for value in (wide_x, *chunks))
    )
    start = jax.lax.pcast(start, tuple(varying), to="varying")
    total, _ = jax.lax.scan(add_chunk, start, chunks)
    return total.astype(x.dtype)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation to the sharding of its logical axes."""
    return nn.with_logical_constraint(x, axes)


def linear_init(scale: float, inputs: int, outputs: int) -> Initializer:
    """LeCun's initializer, times `scale`, for `inputs` input axes followed by `outputs` others."""
    inward = range(inputs)
    outward = range(inputs, inputs + outputs)
    if scale == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal", inward, outward)


class ShardedParameters(nn.Module):
    """Kernel and bias (or None) of a `Linear` of the same name, as stored; for `chunked_sum`."""

    shape: tuple[PositiveInt, ...]
    """Of the kernel."""
    axes: Axes
    """Logical names of the kernel's axes, the one input axis first."""
    bias: bool = True
    """Whether there is one."""
    scale: float = 1.0
    """Scale of the initial kernel."""

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        init = linear_init(self.scale, 1, len(self.shape) - 1)
        kernel = sharded_parameter(self, "kernel", init, self.shape, self.axes)
        if not self.bias:
            return kernel, None
        zeros = nn.initializers.zeros
        return kernel, sharded_parameter(self, "bias", zeros, self.shape[1:], self.axes[1:])
