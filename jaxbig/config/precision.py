"""The field `precision` of an experiment: dtypes of parameters and reductions, and loss scaling."""

import dataclasses
from typing import Literal, get_args

from jaxbig.constraints import NonNegativeFloat, PositiveInt
from jaxbig.errors import Refused

Parameters = Literal["float32", "bfloat16", "bfloat16_master"]
Sums = Literal["dtype", "float32"]
LOWEST = 2.0**-24
"""The least loss scale."""
HIGHEST = 2.0**24
"""The largest loss scale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtypes of a run, besides the model's own `dtype` of computation.

    A gradient has the dtype of its parameter; moments are float32.
    """

    parameters: Parameters = "float32"
    """The dtype of stored parameters. bfloat16: updates are rounded stochastically.
    bfloat16_master: the optimizer updates float32 master weights."""
    sums: Sums = "dtype"
    """The dtype in which products and sums, such as gradients, are reduced over devices: the
    model's, or float32."""
    loss_scale: NonNegativeFloat = 0.0
    """The initial loss scale of a float16 model, as 65536, so that small gradients are not lost
    (Micikevicius et al., 2018); 0: no scaling."""
    loss_scale_steps: PositiveInt = 2_000
    """Good steps in a row after which the loss scale is doubled. A step with a non-finite gradient
    is skipped and halves it."""

    def check(self, dtype: str) -> None:
        """Raises `Refused` where a model of this dtype cannot be trained with these settings."""
        for field, choices in (("parameters", get_args(Parameters)), ("sums", get_args(Sums))):
            if (value := getattr(self, field)) not in choices:
                raise Refused(
                    f"--precision.{field} {value!r}: it must be one of {', '.join(choices)}."
                )
        if dtype == "float16" and not self.loss_scale:
            raise Refused(
                "--model.dtype float16 loses small gradients: "
                "give --precision.loss-scale 65536, say."
            )
        if self.loss_scale and not LOWEST <= self.loss_scale <= HIGHEST:
            raise Refused(
                f"--precision.loss-scale {self.loss_scale:g}: "
                f"it must be 0, or {LOWEST:g} to {HIGHEST:g}."
            )
