"""`LAMB`: AdamW whose steps are relative to the size of each layer, for large batches."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.tree import path_name
from jaxbig.constraints import NonNegativeFloat
from jaxbig.optim.matrix_axes import Axes, layout
from jaxbig.optim.optimizers import AdamW


@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMB(AdamW):
    """LAMB (You et al., 2020): AdamW's step times |w| / |step|, for each matrix or vector w.

    Each has a factor of its own also where layers or experts are stacked in one array.
    """

    epsilon: NonNegativeFloat = 1e-6
    """Added to the root of the mean of squared gradients."""

    def direction(self) -> optax.GradientTransformation:
        return self.direction_along({})

    def direction_along(self, axes: Axes) -> optax.GradientTransformation:
        def relative(path: Any, step: jax.Array, w: jax.Array) -> jax.Array:
            own = layout(path_name(path), w.shape, axes).own
            length = norm(w, own)
            length_of_step = norm(step, own)
            known = (length > 0) & (length_of_step > 0)
            return step * jnp.where(known, length / jnp.where(known, length_of_step, 1), 1)

        trust = optax.stateless(
            lambda steps, params: jax.tree_util.tree_map_with_path(relative, steps, params)
        )
        return optax.chain(super().direction(), trust)


def norm(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The root of the sum of squares over axes, which stay with a size of 1."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(axes), keepdims=True))
