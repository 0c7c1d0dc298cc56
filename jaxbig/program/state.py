"""The whole of what training changes, and the digest that says two runs are the same run."""

from typing import Any

from flax import struct


@struct.dataclass
class TrainState:
    """Every mutable thing of a run; all leaves are arrays.

    step: how many updates were made, int32 scalar. params: the model's parameters.
    variables: its other collections (`batch_stats`, recurrent carries, ...). opt_state: optax's state.
    """

    step: Any
    params: Any
    variables: Any
    opt_state: Any


def without_optimizer(state: Any) -> Any:
    """A state, or what describes one, with all that an evaluation needs and no more."""
    return state.replace(step=None, opt_state=None)
