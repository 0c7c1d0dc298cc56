"""The field `lora` of an experiment: low-rank adapters of a trained model."""

import dataclasses
import re

from jaxbig.constraints import DropRate, NonNegativeInt, PositiveFloat
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters (Hu et al., 2022): a matrix W becomes W + alpha / rank * A B.

    Only A and B are trained, and have optimizer state; the model's own parameters are frozen, and
    saved once. B starts at zero, so the first step sees the model as it was.
    """

    rank: NonNegativeInt = 0
    """Columns of A and rows of B, usually 4 to 64; 0: no adapters, all parameters are trained."""
    alpha: PositiveFloat = 16.0
    """The adapters' factor times the rank."""
    dropout: DropRate = 0.0
    """The share of a matrix's input features that its adapter does not see; others at each step,
    the same for all examples."""
    pattern: str = "kernel$"
    """A regular expression for the paths of the matrices and convolutions that get adapters."""
    trained: str | None = None
    """A regular expression for the paths of parameters that are trained in full besides, such as
    `^head` of other classes."""

    def check_fields(self) -> None:
        for field in ("pattern", "trained"):
            pattern = getattr(self, field)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise Refused(f"{field} {pattern!r} is no regular expression: {error}.") from None
