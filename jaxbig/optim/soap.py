"""`SOAP`: Adam in the eigenbasis of each matrix's gradients."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.tree import path_name
from jaxbig.constraints import FractionBelowOne, PositiveInt
from jaxbig.optim.matrix_axes import Axes, layout, matrix_shape
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.whole_matrices import from_stack, to_stack

HIGHEST = jax.lax.Precision.HIGHEST
Pair = tuple[Any, Any]
"""What each side of a stack of matrices has, [N, rows, rows] and [N, columns, columns]; a side
without is an `optax.MaskedNode`."""


class SOAPState(NamedTuple):
    """count: updates made, and one more: the first gradient only finds the first bases. mean,
    square: Adam's, `square` in the basis. covariances, bases: a `Pair` for each parameter."""

    count: Any
    mean: Any
    square: Any
    covariances: Any
    bases: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SOAP(AdamW):
    """SOAP (Vyas et al., 2025): AdamW in a slowly changing eigenbasis of the gradients.

    Each layer, expert and gate has matrices, and bases, of its own; vectors have Adam's update. The
    first step only finds the bases. They take much memory, and each device has all of them.
    """

    b1: FractionBelowOne = 0.95
    """Decay of the mean of gradients."""
    b2: FractionBelowOne = 0.95
    """Decay of the mean of squared gradients, in the basis."""
    basis_decay: FractionBelowOne = 0.95
    """Decay of the covariances whose eigenvectors are the basis."""
    basis_every: PositiveInt = 10
    """Steps between two changes of the basis."""
    largest: PositiveInt = 10_000
    """The most rows or columns of a side that has a basis."""

    def direction(self) -> optax.GradientTransformation:
        return self.direction_along({})

    def direction_along(self, axes: Axes) -> optax.GradientTransformation:
        def init(params: Any) -> SOAPState:
            mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
            pairs = jax.tree_util.tree_map_with_path(
                lambda path, p: self.zeros(path_name(path), p, axes), params
            )
            bases = jax.tree.map(jnp.zeros_like, pairs)
            return SOAPState(jnp.int32(0), mean, square, pairs, bases)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SOAPState]:
            leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
            found = [
                self.step(path_name(path), gradient, moments, count=state.count, axes=axes)
                for (path, gradient), *moments in zip(
                    leaves, *map(structure.flatten_up_to, state[1:]), strict=True
                )
            ]
            steps, *moments = (structure.unflatten(each) for each in zip(*found, strict=True))
            return steps, SOAPState(optax.safe_increment(state.count), *moments)

        return optax.chain(
            optax.GradientTransformation(init, update),
            optax.add_decayed_weights(self.weight_decay, self.penalized()),
        )

    def zeros(self, path: str, parameter: jax.Array, axes: Axes) -> Pair:
        """The first covariances of a parameter."""
        found = layout(path, parameter.shape, axes)
        count, *sides = matrix_shape(parameter.shape, found)
        left, right = (
            jnp.zeros((count, side, side), parameter.dtype)
            if found.rows and side <= self.largest
            else optax.MaskedNode()
            for side in sides
        )
        return left, right

    def step(
        self, path: str, gradient: jax.Array, moments: Any, *, count: jax.Array, axes: Axes
    ) -> tuple[Any, ...]:
        """The update of a parameter (algorithm 3 of the paper), and its new moments."""
        found = layout(path, gradient.shape, axes)
        mean, square, covariances, bases = moments
        g = to_stack(gradient, found)
        m = self.b1 * to_stack(mean, found) + (1 - self.b1) * g
        v = self.b2 * to_stack(square, found) + (1 - self.b2) * jnp.square(turned(g, bases))
        made = jnp.maximum(count, 1)
        m_hat = turned(m, bases) / (1 - self.b1**made)
        v_hat = v / (1 - self.b2**made)
        step = turned_back(m_hat / (jnp.sqrt(v_hat) + self.epsilon), bases)
        products = (
            jnp.matmul(g, g.swapaxes(1, 2), precision=HIGHEST),
            jnp.matmul(g.swapaxes(1, 2), g, precision=HIGHEST),
        )
        newer = tuple(
            each
            if isinstance(each, optax.MaskedNode)
            else self.basis_decay * each + (1 - self.basis_decay) * product
            for each, product in zip(covariances, products, strict=True)
        )
        after = [from_stack(each, gradient.shape, found) for each in (step, m, v)]
        first = count == 0
        step, mean, square = (
            jnp.where(first, before, each)
            for before, each in zip((jnp.zeros_like(mean), mean, square), after, strict=True)
        )
        return step, mean, square, newer, self.next_bases(newer, bases, count)

    def next_bases(self, covariances: Any, bases: Any, count: jax.Array) -> Any:
        """The eigenvectors of the first covariances; then one power iteration now and then."""
        which = jnp.where(count == 0, 1, jnp.where(count % self.basis_every == 0, 2, 0))
        branches = (lambda _, basis: basis, lambda c, _: eigenvectors(c), power_iteration)
        return tuple(
            basis
            if isinstance(basis, optax.MaskedNode)
            else jax.lax.switch(which, branches, covariance, basis)
            for covariance, basis in zip(covariances, bases, strict=True)
        )


def power_iteration(covariance: jax.Array, basis: jax.Array) -> jax.Array:
    """A basis [N, K, K] nearer to the eigenvectors (algorithm 4 of the paper)."""
    product = jnp.matmul(covariance, basis, precision=HIGHEST)
    return of_each(lambda matrix: jnp.linalg.qr(matrix)[0], product)


def eigenvectors(covariance: jax.Array) -> jax.Array:
    """The eigenvectors of matrices [N, K, K]."""
    return of_each(lambda matrix: jnp.linalg.eigh(matrix)[1], covariance)


def of_each(function: Callable[[jax.Array], jax.Array], stack: jax.Array) -> jax.Array:
    """The function of each matrix of [N, K, K]. On a CPU one after the other: two calls of LAPACK
    for stacks can wait for each other without end there (jaxlib 0.10)."""
    in_a_loop = functools.partial(jax.lax.map, function)
    return jax.lax.platform_dependent(stack, cpu=in_a_loop, default=function)


def turned(x: jax.Array, bases: Pair) -> jax.Array:
    """Matrices [N, rows, columns] in their bases."""
    left, right = bases
    if not isinstance(left, optax.MaskedNode):
        x = jnp.matmul(left.swapaxes(1, 2), x, precision=HIGHEST)
    return x if isinstance(right, optax.MaskedNode) else jnp.matmul(x, right, precision=HIGHEST)


def turned_back(x: jax.Array, bases: Pair) -> jax.Array:
    """The inverse of `turned`."""
    left, right = bases
    if not isinstance(left, optax.MaskedNode):
        x = jnp.matmul(left, x, precision=HIGHEST)
    if isinstance(right, optax.MaskedNode):
        return x
    return jnp.matmul(x, right.swapaxes(1, 2), precision=HIGHEST)
