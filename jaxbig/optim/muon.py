"""`Muon`: momentum whose matrices are made orthogonal; Adam for all else."""

import dataclasses
import math
import re
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.tree import path_name
from jaxbig.constraints import FractionBelowOne, PositiveFloat, PositiveInt
from jaxbig.errors import Refused
from jaxbig.optim.matrix_axes import Axes, layout, matrix_shape
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.whole_matrices import on_whole_matrices

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's iteration: singular values of 0.01 and more come to 0.7 to 1.2 in five."""
SMALLEST = 1e-7
"""Added to a matrix's norm, by which it is divided."""
BY_ADAM = r"(embedding|(^|/)(head|classifier|depthwise|convolution)/kernel)$"
"""The default of `Muon.adam`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon (Jordan et al., 2024): steps along the nearest orthogonal matrix to the momentum.

    Rows and columns follow from a parameter's logical axes: each layer, expert and gate has a
    matrix of its own, as have keys and values; the heads of a projection are one. Vectors, and what
    `adam` matches, are updated by AdamW with the same rate and decay (Liu et al., 2025).
    """

    momentum: FractionBelowOne = 0.95
    """Decay of the sum of gradients."""
    nesterov: bool = True
    """Nesterov's momentum: the gradient counts as if taken one step ahead."""
    iterations: PositiveInt = 5
    """Newton-Schulz iterations, which make a matrix nearly orthogonal."""
    rms: PositiveFloat = 0.2
    """Root mean square of a matrix's update before the learning rate; 0.2 is near that of Adam in a
    long run (Liu et al., 2025); a short one may need a higher learning rate."""
    adam: str = BY_ADAM
    """Pattern of the matrices that Adam updates, besides all vectors: embeddings, the last layer,
    convolutions of each channel alone."""

    def check_fields(self) -> None:
        try:
            re.compile(self.adam)
        except re.error as error:
            raise Refused(f"adam {self.adam!r} is no regular expression: {error}.") from None

    def direction(self) -> optax.GradientTransformation:
        return self.direction_along({})

    def direction_along(self, axes: Axes) -> optax.GradientTransformation:
        def orthogonal(updates: Any, params: Any) -> Any:
            return on_whole_matrices(self.orthogonal, updates, axes)

        def rules(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: (
                    "muon" if self.is_muon(path_name(path), leaf.shape, axes) else "adam"
                ),
                params,
            )

        momentum = optax.trace(self.momentum, self.nesterov)
        directions: dict[Hashable, optax.GradientTransformation] = {
            "muon": optax.chain(momentum, optax.stateless(orthogonal)),
            "adam": optax.scale_by_adam(self.b1, self.b2, self.epsilon),
        }
        return optax.chain(
            optax.partition(directions, rules),
            optax.add_decayed_weights(self.weight_decay, self.penalized()),
        )

    def is_muon(self, path: str, shape: Sequence[int], axes: Axes) -> bool:
        """Whether a parameter is made of matrices that Muon updates."""
        return bool(layout(path, shape, axes).rows) and not re.search(self.adam, path)

    def rule(self, path: str, shape: Sequence[int], axes: Axes) -> str:
        if not self.is_muon(path, shape, axes):
            return "AdamW"
        count, rows, columns = matrix_shape(shape, layout(path, shape, axes))
        return f"Muon {count} x ({rows} x {columns})"

    def orthogonal(self, x: jax.Array) -> jax.Array:
        """Matrices [N, rows, columns] of nearly equal singular values, with `rms`."""
        _, rows, columns = x.shape
        x = jnp.swapaxes(x, 1, 2) if rows > columns else x  # the smaller product
        a, b, c = COEFFICIENTS

        def iterate(_: Any, x: jax.Array) -> jax.Array:
            gram = x @ jnp.swapaxes(x, 1, 2)
            return a * x + (b * gram + c * gram @ gram) @ x

        with jax.named_scope("newton_schulz"):
            x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + SMALLEST)
            x = jax.lax.fori_loop(0, self.iterations, iterate, x)
        x = jnp.swapaxes(x, 1, 2) if rows > columns else x
        return self.rms * math.sqrt(max(rows, columns)) * x
