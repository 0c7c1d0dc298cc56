"""Basic layers: linear layers, embeddings, normalization, activations, dropout.

A model casts its input to its `dtype`. Each layer computes in the dtype of its input and keeps
float32 parameters.

Letters in shape comments: B batch, L length, D width.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import Dtype, upcast
from jaxbig.constraints import NonNegativeFloat, PositiveInt, Range, choose
from jaxbig.distributed.logical_axes import rules_without_fsdp
from jaxbig.errors import Refused
from jaxbig.models.layers.parameters import Axes, constrain, linear_init, parameter
from jaxbig.models.layers.quantized import dense_product

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]
Norm = Literal["layer", "rms", "rms_plus_one"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,  # as GPT-2 has it
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}


def cast(x: jax.Array, dtype: str) -> jax.Array:
    """Casts the input of a model to the dtype it computes in; raises if the dtype is unknown."""
    if jax.dtypes.canonicalize_dtype(choose("dtype", dtype, Dtype)) != dtype:
        raise Refused("dtype float64: jax makes it float32 unless JAX_ENABLE_X64=1 is set.")
    return x.astype(dtype)


def drop(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Dropout (Srivastava et al., 2014); its key is that of the calling layer."""
    return nn.Dropout(rate, deterministic=not train)(x)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for random examples (Huang et al., 2016)."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
        """[B, ...] -> [B, ...]; the rate may be an array, one a layer of a scan."""
        if not train or (isinstance(rate, int | float) and rate == 0):
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        return x * (keep / (1 - rate)).astype(x.dtype)


def drop_path(x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
    """`DropPath` as a function, for use in a compact method."""
    return DropPath()(x, rate, train)


class Linear(nn.Module):
    """`x @ kernel + bias`, contracting the last `inputs` axes of x.

    The kernel starts with variance `scale`^2 / fan-in (LeCun et al., 1998).
    """

    shape: tuple[PositiveInt, ...]
    """Of the output, without the leading axes."""
    axes: Axes
    """Logical names of the kernel's axes, input axes first."""
    inputs: PositiveInt = 1
    """Number of input axes."""
    bias: bool = True
    """Add a learned bias."""
    scale: float = 1.0
    """Scale of the initial kernel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *shape]."""
        kernel_shape = (*x.shape[x.ndim - self.inputs :], *self.shape)
        init = linear_init(self.scale, self.inputs, len(self.shape))
        kernel = parameter(self, "kernel", init, kernel_shape, self.axes, x.dtype)
        to_logits = {"classes", "vocab"} & {*self.axes}  # which are not quantized
        multiply = jnp.tensordot if to_logits else dense_product
        y = multiply(x, kernel, self.inputs)
        if self.bias:
            bias = parameter(
                self, "bias", nn.initializers.zeros, self.shape, self.axes[self.inputs :], x.dtype
            )
            y = y + jnp.broadcast_to(bias, y.shape)
        return y


class Embedding(nn.Module):
    """A table of `count` vectors, indexed by token or by position."""

    count: PositiveInt
    """Number of vectors."""
    width: PositiveInt
    """Length of each vector."""
    std: Annotated[float, Range(float, ge=1e-6)] = 1.0
    """Standard deviation of the initial values."""
    axis: str | None = "vocab"
    """Logical name of the first axis."""
    second: str | None = "embed"
    """Logical name of the second axis."""

    def setup(self) -> None:
        init = nn.with_logical_partitioning(
            nn.initializers.normal(self.std), (self.axis, self.second)
        )
        self.table: Any = self.param("embedding", init, (self.count, self.width))

    def __call__(self, numbers: jax.Array) -> jax.Array:
        """Integers [...] -> vectors [..., D]."""
        if not jnp.issubdtype(numbers.dtype, jnp.integer):
            raise Refused(
                f"inputs are {numbers.dtype} of shape {numbers.shape} where tokens are looked up: "
                f"give the model no vocab, or the data tokens."
            )
        if self.axis is None or numbers.ndim != 2:
            return jnp.take(self.whole(), numbers, axis=0)
        # over `fsdp` each device looks up its shard of every vector: the table is not all-gathered
        table = constrain(self.table, self.axis, self.second)
        x = jnp.take(table, constrain(numbers, "copy", "length"), axis=0)  # [B, L, D]
        return constrain(constrain(x, "copy", "length", self.second), "batch", "length", None)

    def whole(self) -> jax.Array:
        """The table [count, D], all-gathered over `fsdp`."""
        return nn.with_logical_constraint(
            self.table, (self.axis, self.second), rules=rules_without_fsdp()
        )

    def output(self) -> jax.Array:
        """The output matrix [D, count], as stored; all-gathered where it is used."""
        return self.table.T


def to_logits(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Hidden states [B, L, D] and an output matrix [D, V] -> logits [B, L, V], float32."""
    whole = constrain(constrain(kernel.astype(x.dtype), "embed", "vocab"), None, "vocab")
    logits = jnp.tensordot(x, whole, axes=1)
    return constrain(upcast(logits), "batch", "length", "vocab")


def length_mask(lengths: jax.Array, length: int) -> jax.Array:
    """Lengths [B] -> bool [B, L]: True at positions within each row's length."""
    return jnp.arange(length)[None] < lengths[:, None]


class RMSNorm(nn.Module):
    """RMS normalization over the last axis: `x / rms(x) * scale` (Zhang and Sennrich, 2019)."""

    epsilon: NonNegativeFloat = 1e-6
    """Added to the mean square."""
    plus_one: bool = False
    """Multiply by 1 + scale, where scale starts at 0 (Gemma)."""
    learned: bool = True
    """Multiply by a learned scale."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]. The mean of squares is in float32: it overflows and rounds in half.
        The scale is multiplied in the dtype of x, as Llama does, but 1 + scale in float32, as Gemma
        does."""
        y = upcast(x)
        mean_square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(mean_square + self.epsilon)
        if not self.learned:
            return y.astype(x.dtype)
        init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale = parameter(self, "scale", init, (x.shape[-1],), (None,))
        if self.plus_one:
            scale = 1 + scale
        if not self.plus_one:
            y = y.astype(x.dtype)
            scale = scale.astype(x.dtype)
        return (y * jnp.broadcast_to(scale, x.shape)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis (Ba et al., 2016).

    `(x - mean) / sqrt(variance + epsilon) * scale + bias`.
    """

    epsilon: NonNegativeFloat = 1e-6
    """Added to the variance."""
    bias: bool = True
    """Add a learned bias."""
    learned: bool = True
    """Multiply by a learned scale, and add the bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]. In float32, like `RMSNorm`."""
        y: Any = standardize(upcast(x), self.epsilon)
        if not self.learned:
            return y.astype(x.dtype)
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],), (None,))
        y = y * jnp.broadcast_to(scale, x.shape)
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],), (None,))
            y = y + jnp.broadcast_to(bias, x.shape)
        return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def standardize(x: jax.Array, epsilon: float, axes: tuple[int, ...] = (-1,)) -> jax.Array:
    """`(x - mean) / sqrt(variance + epsilon)` over some axes.

    Its derivative is written out: from the one that JAX finds, XLA makes more passes over memory,
    and rounds it as the rest of the program has it, which differs between numbers of devices.
    """
    return standardize_forward(x, epsilon, axes)[0]


def standardize_forward(
    x: jax.Array, epsilon: float, axes: tuple[int, ...]
) -> tuple[jax.Array, Any]:
    mean = jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(x - jnp.broadcast_to(mean, x.shape)), axis=axes, keepdims=True)
    factor = jax.lax.rsqrt(variance + epsilon)
    return (x - mean) * factor, (x, mean, factor)


def standardize_backward(
    epsilon: float, axes: tuple[int, ...], saved: Any, gradient: jax.Array
) -> tuple[jax.Array]:
    x, mean, factor = saved
    y = (x - mean) * factor
    along = jnp.mean(gradient * y, axis=axes, keepdims=True)
    return (factor * (gradient - jnp.mean(gradient, axis=axes, keepdims=True) - y * along),)


standardize.defvjp(standardize_forward, standardize_backward)


def normalization(
    kind: str, epsilon: float, bias: bool, name: str, *, learned: bool = True
) -> nn.Module:
    """The normalization layer of a kind of `Norm`; a bias is LayerNorm's alone."""
    if choose("norm", kind, Norm) == "layer":
        return LayerNorm(epsilon, bias, learned, name=name)
    return RMSNorm(epsilon, kind == "rms_plus_one", learned, name=name)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`, within -cap and cap (Gemma 2); x itself where cap is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)
