"""Evaluators, as `jaxbig.evaluators.KNearest`."""

from .k_nearest import KNearest as KNearest
from .linear_probe import LinearProbe as LinearProbe
from .mixture_parts import MixtureParts as MixtureParts
from .splits import OtherData as OtherData
from .splits import Split as Split
