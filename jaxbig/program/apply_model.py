"""Calls of an experiment's model in a compiled function, with products as its precision says."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxbig.config.experiment import Experiment
from jaxbig.errors import Refused
from jaxbig.models.layers.quantized import products_in


def make_apply(
    experiment: Experiment, function: Callable[..., Any], mutable: Any = False
) -> Callable[..., Any]:
    """Like `nn.apply(function, experiment.model, mutable)`, with products in `precision.compute`.

    Raises:
      Refused: when it is called, the model has no layer that could be quantized.
    """
    compute = experiment.precision.compute
    apply = nn.apply(function, experiment.model, mutable=mutable)

    def call(*arguments: Any, **named: Any) -> Any:
        with products_in(compute) as quantized:
            result = apply(*arguments, **named)
        if compute != "dtype" and not quantized:
            raise Refused(
                f"--precision.compute {compute}: {type(experiment.model).__name__} has no dense "
                f"layer (jaxbig.models.layers.basic.Linear), and no other is quantized: leave it "
                f"out."
            )
        return result

    return call
