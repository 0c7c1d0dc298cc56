"""The numbers a run stores and adds up in, and what an update needs where these have few bits: rounding at random,
float32 master copies, a scale for the loss.
"""

import dataclasses
from typing import Literal, get_args

from jaxbig.constraints import NonNegativeFloat, PositiveInt
from jaxbig.errors import Refused

Parameters = Literal["float32", "bfloat16", "bfloat16_master"]
Sums = Literal["dtype", "float32"]
LOWEST, HIGHEST = 2.0**-24, 2.0**24
"""Between these the scale of a loss stays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtypes of a run, besides the model's own `dtype`, in which it computes."""

    parameters: Parameters = "float32"
    """How they are stored. bfloat16: each update is rounded at random, up or down, so that on average nothing of it is
    lost. bfloat16_master: float32 copies, which are updated, lie with the optimizer's state, and the parameters are
    these rounded. A gradient has the dtype of its parameter; an optimizer's moments are float32."""
    sums: Sums = "dtype"
    """In which dtype the products and sums of a training step are added up over devices, gradients above all, before
    they are rounded to their own: the model's, or float32."""
    loss_scale: NonNegativeFloat = 0.0
    """What the loss is multiplied by at first, for a model that computes in float16, so that small gradients are not
    lost (Micikevicius et al., 2018), as 65536. A step whose gradient is not finite is skipped and the scale halved. 0:
    no scale."""
    loss_scale_steps: PositiveInt = 2_000
    """After how many steps without that it is doubled."""

    def check(self, dtype: str) -> None:
        """`Refused` where a model of that dtype cannot be trained so."""
        for field, choices in (("parameters", get_args(Parameters)), ("sums", get_args(Sums))):
            if (value := getattr(self, field)) not in choices:
                raise Refused(
                    f"--precision.{field} {value!r}: it must be one of {', '.join(choices)}."
                )
        if dtype == "float16" and not self.loss_scale:
            raise Refused(
                "--model.dtype float16 loses small gradients: give --precision.loss-scale 65536, say."
            )
        if self.loss_scale and not LOWEST <= self.loss_scale <= HIGHEST:
            raise Refused(
                f"--precision.loss-scale {self.loss_scale:g}: it must be 0, or {LOWEST:g} to {HIGHEST:g}."
            )
