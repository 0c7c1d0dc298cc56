"""`ScheduleFree`: an average of AdamW's steps in place of a falling learning rate."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ScheduleFreeState, schedule_free

from jaxbig.arrays.tree import path_name
from jaxbig.constraints import NonNegativeFloat
from jaxbig.errors import Refused
from jaxbig.optim.optimizers import AdamW


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFree(AdamW):
    """Schedule-free AdamW (Defazio et al., 2024), for a run whose length is not known.

    Gradients are taken between the steps' end and their average, which evaluation, prediction and
    export use. Its learning rate only warms up, as `WarmupStableDecay` with a decay of 0.
    """

    power: NonNegativeFloat = 2.0
    """A step's weight in the average is this power of the highest learning rate so far."""

    def check_fields(self) -> None:
        if not self.b1:
            raise Refused(
                "b1 0.0: it is the share of the average in the point where gradients are taken: "
                "it must be above 0, as 0.9."
            )

    def direction(self) -> optax.GradientTransformation:
        # `b1` is not Adam's: the average stands for its momentum
        moments = optax.scale_by_rms(self.b2, self.epsilon, eps_in_sqrt=False, bias_correction=True)
        return optax.chain(moments, optax.add_decayed_weights(self.weight_decay, self.penalized()))

    def around(
        self, transformation: optax.GradientTransformation, steps: int
    ) -> optax.GradientTransformation:
        rate = self.learning_rate.build(steps)
        return schedule_free(transformation, rate, b1=self.b1, weight_lr_power=self.power)

    def averages(self) -> bool:
        return True

    def average(self, params: Any, opt_state: Any) -> Any:
        """The average of the steps; `params` are the point where the next gradient is taken."""
        [state] = states_in(opt_state)

        def mean(y: jax.Array, z: Any) -> jax.Array:
            return y if isinstance(z, optax.MaskedNode) else (y - (1 - self.b1) * z) / self.b1

        return jax.tree.map(mean, params, state.z)

    def begin_at(self, weights: dict[str, jax.Array], opt_state: Any) -> Any:
        def place(path: Any, fresh: jax.Array) -> jax.Array:
            given = weights.get(path_name(path))
            # a copy: a step may use the memory of a parameter and of this
            return fresh if given is None else jnp.array(given, fresh.dtype)

        def begin(state: Any) -> Any:
            if not is_schedule_free(state):
                return state
            return state._replace(z=jax.tree_util.tree_map_with_path(place, state.z))

        return jax.tree.map(begin, opt_state, is_leaf=is_schedule_free)


def states_in(opt_state: Any) -> list[ScheduleFreeState]:
    """The states of schedule-free transformations in an optimizer's state: one or none."""
    leaves = jax.tree.leaves(opt_state, is_leaf=is_schedule_free)
    return [leaf for leaf in leaves if is_schedule_free(leaf)]


def is_schedule_free(state: Any) -> bool:
    return isinstance(state, ScheduleFreeState)
