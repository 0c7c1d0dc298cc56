"""Optimizers and learning-rate schedules, as `jaxbig.optim.AdamW`."""

from .optax_optimizer import Optax as Optax
from .optimizers import SGD as SGD
from .optimizers import Adam as Adam
from .optimizers import AdamW as AdamW
from .optimizers import Optimizer as Optimizer
from .schedules import Constant as Constant
from .schedules import Exponential as Exponential
from .schedules import Schedule as Schedule
from .schedules import WarmupCosine as WarmupCosine
from .schedules import WarmupInverseRoot as WarmupInverseRoot
from .schedules import WarmupLinear as WarmupLinear
