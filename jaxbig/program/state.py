"""The state of a training run: step, parameters, variables of the model, optimizer state."""

from typing import Any

from flax import struct


@struct.dataclass
class TrainState:
    """All that training changes; every leaf is an array.

    step: the number of steps made, int32 scalar. params: the model's parameters. variables: its
    other collections (`batch_stats`, recurrent carries, ...). opt_state: the optimizer's state.
    """

    step: Any
    params: Any
    variables: Any
    opt_state: Any


def without_optimizer(state: Any) -> Any:
    """The part of a state, or of its shapes or shardings, that an evaluation needs."""
    return state.replace(step=None, opt_state=None)
