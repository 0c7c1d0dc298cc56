"""Optimizers: typed wrappers over optax, each with `build(steps)`.

What is decayed or penalized is chosen by a pattern over parameter paths (`block_0/up/kernel`), not
by rank.
"""

import abc
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from jaxbig.arrays.tree import path_name
from jaxbig.constraints import Fraction, FractionBelowOne, NonNegativeFloat, PositiveFloat
from jaxbig.errors import Refused
from jaxbig.optim.layer_decay import decay_by_layer
from jaxbig.optim.matrix_axes import Axes
from jaxbig.optim.schedules import Exponential, Schedule


def chosen(field: str, pattern: str, needed: bool = True) -> Any:
    """A function from parameters to a tree of True where the pattern matches the parameter's path
    somewhere; it is `Refused`, where one is needed, that none does."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise Refused(
            f"--optimizer.{field} {pattern!r} is no regular expression: {error}."
        ) from None

    def mask(params: Any) -> Any:
        found = jax.tree_util.tree_map_with_path(
            lambda path, _: bool(compiled.search(path_name(path))), params
        )
        if needed and not any(jax.tree.leaves(found)):
            raise Refused(
                f"--optimizer.{field} {pattern!r} matches no parameter; `jaxbig show` lists their "
                f"paths."
            )
        return found

    return mask


def scaled(mask: Any, factor: float) -> optax.GradientTransformation:
    """The updates of masked parameters times a factor."""
    return optax.masked(optax.scale(factor), mask)


DECAYED = (
    r"(kernel|recurrent|embedding|context|attention/(query|score)"
    r"|recurrence/(gates|input|output))$"
)
"""The default of `Optimizer.decayed`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """What all optimizers share: penalties, clipping, then `direction` times the learning rate.

    A pattern is a regular expression that is searched in a parameter's path, as
    `block_0/up/kernel`. By default every matrix decays, and no bias, scale, or other vector.
    """

    learning_rate: Schedule
    """Its schedule."""
    clip_norm: NonNegativeFloat | None = None
    """Clips the gradient to this global norm; None: no clipping."""
    clip_value: PositiveFloat | None = None
    """Clips each number of the gradient to between this and its negative, before `clip_norm`; None:
    no clipping."""
    l1: NonNegativeFloat = 0.0
    """Adds `l1 * |w|` for each chosen parameter w to the loss."""
    l2: NonNegativeFloat = 0.0
    """Adds `l2 / 2 * w^2` for each chosen parameter w to the loss."""
    decayed: str = DECAYED
    """Pattern of the parameters that l1, l2 and weight decay apply to."""
    frozen: str | None = None
    """Regular expression over the paths of parameters that are not trained."""
    rate_factors: tuple[tuple[str, float], ...] = ()
    """Regular expressions over parameter paths, each with a factor of the learning rate."""
    layer_decay: Fraction = 1.0
    """Layer-wise decay: each layer's learning rate is this times that of the layer above it, as
    0.75 when a trained model is fine-tuned; 1: all have the same."""

    @abc.abstractmethod
    def direction(self) -> optax.GradientTransformation:
        """From the gradient to the update, before the learning rate."""

    def direction_along(self, axes: Axes) -> optax.GradientTransformation:
        """The same where it depends on the parameters' logical axes; `direction` by default."""
        return self.direction()

    def rule(self, path: str, shape: Sequence[int], axes: Axes) -> str:
        """What updates a parameter, as `jaxbig show` prints it."""
        return type(self).__name__

    def penalized(self) -> Any:
        """The mask of `decayed`; among those that are not frozen there may be none."""
        return chosen("decayed", self.decayed, needed=self.frozen is None)

    def around(
        self, transformation: optax.GradientTransformation, steps: int
    ) -> optax.GradientTransformation:
        """The transformation, with rates and all, in another, as one that averages its steps."""
        return transformation

    def averages(self) -> bool:
        """Whether evaluation uses `average` in place of the parameters."""
        return False

    def average(self, params: Any, opt_state: Any) -> Any:
        """What evaluation uses after a step: the parameters, or an average of them."""
        return params

    def begin_at(self, weights: dict[str, jax.Array], opt_state: Any) -> Any:
        """A first state of a run that starts from trained weights, by path, if it depends on them.

        Weights that are not given keep their initial values.
        """
        return opt_state

    def updates(self, steps: int, axes: Axes) -> list[optax.GradientTransformation]:
        """From the gradient to the update, in a run of `steps` steps."""
        rate = self.learning_rate.build(steps)
        return [self.direction_along(axes), optax.scale_by_learning_rate(rate)]

    def rising(self, start: float, end: float) -> Self:
        """A copy whose learning rate rises exponentially over the steps of a run."""
        return dataclasses.replace(self, learning_rate=Exponential(start, end))

    def build(self, steps: int, axes: Axes | None = None) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps.

        Args:
          steps: the length of the run, which the schedule follows.
          axes: the logical axes of the model's parameters, trained or not; without them all axes
            of a parameter but the last are the rows of a matrix.
        """
        mask = self.penalized()
        with_penalties = optax.stateless(
            lambda grads, params: jax.tree.map(
                lambda g, w: g + self.l1 * jnp.sign(w) + self.l2 * w, grads, params
            )
        )
        parts = [optax.masked(with_penalties, mask)] if self.l1 or self.l2 else []
        parts += [] if self.clip_value is None else [optax.clip(self.clip_value)]
        parts += [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        parts += self.updates(steps, axes or {})
        parts += [
            scaled(chosen("rate-factors", pattern, self.frozen is None), factor)
            for pattern, factor in self.rate_factors
        ]
        parts += [] if self.layer_decay == 1 else [decay_by_layer(self.layer_decay, axes or {})]
        whole = self.around(optax.chain(*parts), steps)
        if self.frozen is None:
            return whole
        # frozen ones have no moments, and the clipping does not count them
        frozen = chosen("frozen", self.frozen)

        def trained(params: Any) -> Any:
            return jax.tree.map(lambda is_frozen: not is_frozen, frozen(params))

        return optax.chain(optax.masked(whole, trained), optax.masked(optax.set_to_zero(), frozen))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013)."""

    momentum: FractionBelowOne = 0.9
    """Decay of the sum of gradients; 0: none."""
    nesterov: bool = False
    """Nesterov's momentum: the gradient counts as if taken one step ahead."""

    def direction(self) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015)."""

    b1: FractionBelowOne = 0.9
    """Decay of the mean of gradients."""
    b2: FractionBelowOne = 0.999
    """Decay of the mean of squared gradients."""
    epsilon: NonNegativeFloat = 1e-8
    """Added to the root of the mean of squared gradients."""

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    weight_decay: NonNegativeFloat = 0.01
    """Each step takes `rate * weight_decay * w` off each chosen parameter w."""

    def direction(self) -> optax.GradientTransformation:
        return optax.chain(
            super().direction(), optax.add_decayed_weights(self.weight_decay, self.penalized())
        )
