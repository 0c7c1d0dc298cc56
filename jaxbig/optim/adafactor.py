"""`Adafactor`: second moments of a matrix from the means of its rows and columns."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.tree import path_name
from jaxbig.constraints import AtLeastOne, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from jaxbig.optim.matrix_axes import Axes, layout, matrix_shape
from jaxbig.optim.optimizers import Optimizer

SMALLEST = 1e-3
"""The least root mean square of a parameter that a step is relative to."""


class FactoredState(NamedTuple):
    """Means of squared gradients; a matrix has `rows` and `columns`, all else has `full`."""

    count: Any
    rows: Any
    columns: Any
    full: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern, 2018): for large models, as it keeps hardly any state.

    Rows and columns follow from a parameter's logical axes. Layers and experts that are stacked in
    one array, also their clipping and scale, are treated each by itself.
    """

    decay: Fraction = 0.8
    """The means decay by 1 - step ** -decay."""
    clip_threshold: AtLeastOne = 1.0
    """The largest root mean square of a parameter's update, before the learning rate."""
    relative: bool = True
    """Times the root mean square of the parameter, or 0.001 if that is more, so that a learning
    rate is the share of a parameter that changes, such as 0.01."""
    factored_from: PositiveInt = 128
    """The least rows and columns of a matrix for which their means are kept; a smaller one keeps
    the mean of each number."""
    epsilon: PositiveFloat = 1e-30
    """Added to squared gradients."""
    weight_decay: NonNegativeFloat = 0.0
    """Each step takes `rate * weight_decay * w` off each chosen parameter w."""

    def direction(self) -> optax.GradientTransformation:
        return self.direction_along({})

    def direction_along(self, axes: Axes) -> optax.GradientTransformation:
        def init(params: Any) -> FactoredState:
            def zeros(name: str) -> Any:
                return jax.tree_util.tree_map_with_path(
                    lambda path, p: self.zeros(name, path_name(path), p, axes), params
                )

            return FactoredState(jnp.int32(0), zeros("rows"), zeros("columns"), zeros("full"))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, FactoredState]:
            leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
            moments = [structure.flatten_up_to(each) for each in state[1:]]
            decay = 1 - (state.count + 1.0) ** -self.decay
            found = [
                self.step(path_name(path), gradient, means, parameter, decay=decay, axes=axes)
                for (path, gradient), parameter, *means in zip(
                    leaves, structure.flatten_up_to(params), *moments, strict=True
                )
            ]
            steps, *moments = (structure.unflatten(each) for each in zip(*found, strict=True))
            return steps, FactoredState(optax.safe_increment(state.count), *moments)

        return optax.chain(
            optax.GradientTransformation(init, update),
            optax.add_decayed_weights(self.weight_decay, self.penalized()),
        )

    def zeros(self, name: str, path: str, parameter: jax.Array, axes: Axes) -> Any:
        """The first value of one of the means of a parameter."""
        shape = parameter.shape
        found = layout(path, shape, axes)
        if self.is_factored(path, shape, axes) == (name == "full"):
            return optax.MaskedNode()
        mean_over = {"rows": found.columns, "columns": found.rows, "full": ()}[name]
        kept = [1 if at in mean_over else size for at, size in enumerate(shape)]
        return jnp.zeros(kept, parameter.dtype)

    def is_factored(self, path: str, shape: Sequence[int], axes: Axes) -> bool:
        """Whether a parameter is made of large enough matrices."""
        found = layout(path, shape, axes)
        _, *sides = matrix_shape(shape, found)
        return bool(found.rows) and min(sides) >= self.factored_from

    def rule(self, path: str, shape: Sequence[int], axes: Axes) -> str:
        count, rows, columns = matrix_shape(shape, layout(path, shape, axes))
        of = f" {count} x ({rows} + {columns})" if self.is_factored(path, shape, axes) else ""
        return f"Adafactor{of}"

    def step(
        self,
        path: str,
        gradient: jax.Array,
        means: Sequence[Any],
        parameter: jax.Array,
        *,
        decay: jax.Array,
        axes: Axes,
    ) -> tuple[Any, Any, Any, Any]:
        """The update of a parameter (algorithms 4 and 5 of the paper), and its new means."""
        found = layout(path, gradient.shape, axes)
        square = jnp.square(gradient) + self.epsilon
        rows, columns, full = means
        if isinstance(full, optax.MaskedNode):
            rows = decay * rows + (1 - decay) * square.mean(found.columns, keepdims=True)
            columns = decay * columns + (1 - decay) * square.mean(found.rows, keepdims=True)
            share = rows / rows.mean(found.rows, keepdims=True)
            step = gradient * jax.lax.rsqrt(share) * jax.lax.rsqrt(columns)
        else:
            full = decay * full + (1 - decay) * square
            step = gradient * jax.lax.rsqrt(full)
        step = step / jnp.maximum(1, rms(step, found.own) / self.clip_threshold)
        if self.relative:
            step = step * jnp.maximum(rms(parameter, found.own), SMALLEST)
        return step, rows, columns, full


def rms(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The root mean square over axes, which stay with a size of 1."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(axes), keepdims=True))
