"""The weights of the plain model: averages in place of parameters, adapters merged.

What training keeps besides a model's own variables is in two collections of the state's variables,
which the model never sees: `AVERAGE` and `FROZEN`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.adapt.lora import merge
from jaxbig.arrays.dtypes import upcast
from jaxbig.config.experiment import Experiment
from jaxbig.config.lora import LoRA

AVERAGE = "average"
"""The average of the parameters that are trained: a moving one, or that of the optimizer."""
FROZEN = "frozen"
"""The parameters that adapters leave as they are; each checkpoint refers to one copy of them."""
MASTERS = "opt_state/masters/"
"""The path of the float32 master weights in a state; the parameters' own paths follow it."""


def adapts(experiment: Experiment) -> bool:
    """Whether a run's state has more than the plain model's parameters and variables."""
    return bool(experiment.lora.rank) or has_average(experiment)


def has_average(experiment: Experiment) -> bool:
    """Whether a run's state has an average of its parameters, which evaluation uses."""
    return bool(experiment.ema) or experiment.optimizer.averages()


def of_model(variables: Any) -> Any:
    """The variables that are the model's own."""
    return {name: each for name, each in variables.items() if name not in (AVERAGE, FROZEN)}


def beside_model(variables: Any) -> Any:
    """The other variables."""
    return {name: each for name, each in variables.items() if name in (AVERAGE, FROZEN)}


def plain_parameters(experiment: Experiment, params: Any, variables: Any) -> Any:
    """The parameters that an evaluation uses, as the plain model has them."""
    if AVERAGE in variables:
        params = jax.tree.map(lambda p, mean: mean.astype(p.dtype), params, variables[AVERAGE])
    if FROZEN in variables:
        params = merge(params, variables[FROZEN], scale(experiment.lora))
    return params


def scale(lora: LoRA) -> float:
    """The factor of an adapter's product."""
    return lora.alpha / lora.rank


def averaged(decay: float, average: Any, params: Any, step: jax.Array) -> Any:
    """The moving average after a step that made these parameters.

    Args:
      decay: the share of the average that stays, in later steps.
      average: before the step, float32.
      params: float32.
      step: the number of steps before, int32.
    """
    made = step.astype(jnp.float32)
    share = jnp.minimum(decay, (1 + made) / (10 + made))
    return jax.tree.map(lambda mean, p: share * mean + (1 - share) * upcast(p), average, params)
