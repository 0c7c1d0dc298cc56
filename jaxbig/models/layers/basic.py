"""Layers that every family uses: parameters and linear maps with named axes, normalization, dropout.

A model casts what comes in to its `dtype`; each layer computes in the dtype of its input, from float32 parameters.

Letters in shape comments: B batch, L length, D width.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxbig.arrays.dtypes import Dtype, accumulation_dtype, upcast
from jaxbig.constraints import NonNegativeFloat, PositiveInt, Range
from jaxbig.distributed.logical_axes import rules_without_fsdp, split
from jaxbig.errors import Refused

Axes = tuple[str | None, ...]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,  # as GPT-2 has it
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    axes: Axes,
    dtype: Any = None,
) -> jax.Array:
    """Declares a parameter whose axes have logical names; gives it in `dtype` (None: exact), gathered over `fsdp`.

    The gathering is said here because the partitioner, left to itself, may choose a wrong gradient: with
    `fsdp` and `tensor` both on an LSTM's kernel it was off by 19% at an exact loss (jax 0.10.2, CPU).
    """
    value = stored(module, name, init, shape, axes)
    return gather(value, axes, dtype or accumulation_dtype(value.dtype))


def stored(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], axes: Axes
) -> jax.Array:
    """Declares a parameter as `parameter` does, and gives it as it is stored: for `in_pieces`."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)  # type: ignore[return-value]


def gather(value: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
    """A stored parameter, or a piece of one, made ready for use."""
    # in pieces once more: so it is cast before it is gathered, and a gradient is put in pieces before it is added up
    return nn.with_logical_constraint(
        constrain(value.astype(dtype), *axes), axes, rules=rules_without_fsdp()
    )


def in_pieces(
    count: int,
    axis: str,
    work: Callable[..., jax.Array],
    x: jax.Array,
    kernels: Sequence[tuple[jax.Array, Axes]],
    gather: Callable[[jax.Array, Axes, Any], jax.Array] = gather,
) -> jax.Array:
    """The sum of `work(x, *kernels)` over `count` equal pieces of that axis of stored parameters: one piece after
    another is gathered, and its work done anew in the backward pass, so that memory holds one at a time.

    Sums, those of the gradient of x too, are in float32. count 0: all at once.
    """
    if not count:
        return work(x, *(gather(kernel, axes, x.dtype) for kernel, axes in kernels))
    summed, every = upcast(x), [axes for _, axes in kernels]

    def piece(now: list[jax.Array]) -> jax.Array:
        whole = [gather(kernel, axes, x.dtype) for kernel, axes in zip(now, every, strict=True)]
        return upcast(work(summed.astype(x.dtype), *whole))

    pieces = [split(kernel, axes.index(axis), axis, count) for kernel, axes in kernels]
    start = jnp.zeros(jax.eval_shape(piece, [each[0] for each in pieces]).shape, summed.dtype)
    # within shard_map it is known over which axes of the mesh a value varies
    varying = set[str]().union(
        *(jax.typeof(each).manual_axis_type.varying for each in (summed, *pieces))
    )
    start = jax.lax.pcast(start, tuple(varying), to="varying")
    total, _ = jax.lax.scan(
        jax.checkpoint(lambda total, now: (total + piece(now), None)), start, pieces
    )
    return total.astype(x.dtype)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to its logical axes."""
    return nn.with_logical_constraint(x, axes)


def choose(field: str, value: str, choices: Any) -> Any:
    """`value`, which is one of a Literal's or a table's; `Refused` names the field and what it may be."""
    names = list(choices) if isinstance(choices, dict | tuple) else get_args(choices)
    if value not in names:
        raise Refused(f"{field} {value!r}: it must be one of {', '.join(map(str, names))}.")
    return choices[value] if isinstance(choices, dict) else value


def cast(x: jax.Array, dtype: str) -> jax.Array:
    """The input of a model in the dtype it computes in; `Refused` names the dtypes there are."""
    if jax.dtypes.canonicalize_dtype(choose("dtype", dtype, Dtype)) != dtype:
        raise Refused("dtype float64: jax makes it float32 unless JAX_ENABLE_X64=1 is set.")
    return x.astype(dtype)


def drop(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Sets a share of the values to zero in training (Srivastava et al., 2014), keyed by the layer that calls it."""
    return nn.Dropout(rate, deterministic=not train)(x)


class DropPath(nn.Module):
    """Leaves out a residual branch for a share of the examples in training (Huang et al., 2016)."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
        """[B, ...] -> [B, ...]; the rate may differ from layer to layer of a scan."""
        if not train or (isinstance(rate, int | float) and rate == 0):
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return x * (keep / (1 - rate)).astype(x.dtype)


def drop_path(x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
    """The same as a function, for a compact method."""
    return DropPath()(x, rate, train)


def linear_init(scale: float, inputs: int, outputs: int) -> Initializer:
    """Initial values of a kernel with so many axes that are summed over, then so many others."""
    inward, outward = range(inputs), range(inputs, inputs + outputs)
    if scale == 0:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal", inward, outward)


class Stored(nn.Module):
    """The kernel, and the bias or None, of a `Linear` of the same name, as they are stored: for `in_pieces`."""

    shape: tuple[PositiveInt, PositiveInt]
    axes: Axes
    bias: bool = True
    scale: float = 1.0

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        kernel = stored(self, "kernel", linear_init(self.scale, 1, 1), self.shape, self.axes)
        zeros = nn.initializers.zeros
        return kernel, stored(
            self, "bias", zeros, self.shape[1:], self.axes[1:]
        ) if self.bias else None


class Linear(nn.Module):
    """`x @ kernel + bias` over the last `inputs` axes of x, to the axes of `shape`.

    axes: the logical names of the kernel's axes, inputs first. Initialized as LeCun et al. (1998), variance
    1 / fan-in, times `scale`.
    """

    shape: tuple[PositiveInt, ...]
    axes: Axes
    inputs: PositiveInt = 1
    bias: bool = True
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *shape]."""
        kernel_shape = (*x.shape[x.ndim - self.inputs :], *self.shape)
        init = linear_init(self.scale, self.inputs, len(self.shape))
        kernel = parameter(self, "kernel", init, kernel_shape, self.axes, x.dtype)
        y = jnp.tensordot(x, kernel, axes=self.inputs)
        if self.bias:
            bias = parameter(
                self, "bias", nn.initializers.zeros, self.shape, self.axes[self.inputs :], x.dtype
            )
            y = y + jnp.broadcast_to(bias, y.shape)
        return y


class Embedding(nn.Module):
    """A table of `count` vectors: looked up by token, or by position."""

    count: PositiveInt
    width: PositiveInt
    std: Annotated[float, Range(float, ge=1e-6)] = 1.0
    """Of its initial values."""
    axis: str | None = "vocab"
    """The logical name of its first axis."""
    second: str | None = "embed"

    def setup(self) -> None:
        init = nn.with_logical_partitioning(
            nn.initializers.normal(self.std), (self.axis, self.second)
        )
        self.table: Any = self.param("embedding", init, (self.count, self.width))

    def __call__(self, numbers: jax.Array) -> jax.Array:
        """[...] -> [..., D]."""
        if not jnp.issubdtype(numbers.dtype, jnp.integer):
            raise Refused(
                f"inputs are {numbers.dtype} of shape {numbers.shape} where tokens are looked up: give the "
                f"model no vocab, or the data tokens."
            )
        if self.axis is None or numbers.ndim != 2:
            return jnp.take(self.whole(), numbers, axis=0)
        # over `fsdp` each device looks up its piece of every row's vectors, so that a big table is never gathered
        table = constrain(self.table, self.axis, self.second)
        x = jnp.take(table, constrain(numbers, "copy", "length"), axis=0)  # [B, L, D]
        return constrain(constrain(x, "copy", "length", self.second), "batch", "length", None)

    def whole(self) -> jax.Array:
        """[count, D]."""
        return nn.with_logical_constraint(
            self.table, (self.axis, self.second), rules=rules_without_fsdp()
        )

    def output(self) -> jax.Array:
        """The matrix [D, count] that makes logits, as it is stored: gathered where it is used."""
        return self.table.T


def to_logits(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, L, D] and a matrix [D, V] -> logits over the vocabulary [B, L, V], float32."""
    whole = constrain(constrain(kernel.astype(x.dtype), "embed", "vocab"), None, "vocab")
    logits = jnp.tensordot(x, whole, axes=1)
    return constrain(upcast(logits), "batch", "length", "vocab")


def within(lengths: jax.Array, length: int) -> jax.Array:
    """Which of `length` places are inside rows of those lengths [B]: [B, L], true or false."""
    return jnp.arange(length)[None] < lengths[:, None]


class RMSNorm(nn.Module):
    """Root mean square layer normalization (Zhang and Sennrich, 2019): `x / rms(x) * scale` over the last axis."""

    epsilon: NonNegativeFloat = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]. In float32: the mean of squares overflows and rounds in less."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), (None,))
        y = upcast(x)
        mean_square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        return (
            y * jax.lax.rsqrt(mean_square + self.epsilon) * jnp.broadcast_to(scale, x.shape)
        ).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalization (Ba et al., 2016): `(x - mean) / sqrt(variance + epsilon) * scale + bias`, last axis."""

    epsilon: NonNegativeFloat = 1e-6
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]. In float32, as RMSNorm."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), (None,))
        y = upcast(x)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        y = y * jnp.broadcast_to(scale, x.shape)
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],), (None,))
            y = y + jnp.broadcast_to(bias, x.shape)
        return y.astype(x.dtype)
