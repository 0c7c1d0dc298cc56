"""Evaluators, as `jaxbig.evaluators.KNearest`."""

from .answers import Answers as Answers
from .generation import Generation as Generation
from .k_nearest import KNearest as KNearest
from .linear_probe import LinearProbe as LinearProbe
from .lm_eval_model import lm_eval_model as lm_eval_model
from .matching import Matching as Matching
from .mixture_parts import MixtureParts as MixtureParts
from .samples import Samples as Samples
from .splits import OtherData as OtherData
from .splits import Split as Split
