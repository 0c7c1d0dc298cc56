"""The field `precision` of an experiment: dtypes of parameters, products and sums; loss scaling."""

import dataclasses
import importlib.util
from typing import Literal, get_args

from jaxbig.constraints import NonNegativeFloat, PositiveInt
from jaxbig.errors import Refused

Parameters = Literal["float32", "bfloat16", "bfloat16_master"]
Compute = Literal["dtype", "float8", "int8"]
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
    compute: Compute = "dtype"
    """The dtype in which dense layers (attention's projections, MLPs) multiply in training and
    evaluation: the model's, or 8 bits by Qwix, scaled by rows and columns. float8: e4m3 forward,
    e5m2 gradients."""
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
        fields = {"parameters": Parameters, "compute": Compute, "sums": Sums}
        for field, choices in ((name, get_args(kind)) for name, kind in fields.items()):
            if (value := getattr(self, field)) not in choices:
                raise Refused(
                    f"--precision.{field} {value!r}: it must be one of {', '.join(choices)}."
                )
        if self.compute != "dtype" and importlib.util.find_spec("qwix") is None:
            raise Refused(
                f"--precision.compute {self.compute} is by Qwix, which is not installed: "
                f"pip install 'jaxbig[quantized]'."
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
