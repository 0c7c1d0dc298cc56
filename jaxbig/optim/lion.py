"""`Lion`: the sign of the momentum, with half of Adam's memory."""

import dataclasses

import optax

from jaxbig.constraints import FractionBelowOne, NonNegativeFloat
from jaxbig.optim.optimizers import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion (Chen et al., 2023): every number moves by the learning rate, up or down.

    Its learning rate is 3 to 10 times lower than Adam's, and its weight decay as much higher.
    """

    b1: FractionBelowOne = 0.9
    """Share of the momentum in the update."""
    b2: FractionBelowOne = 0.99
    """Decay of the momentum."""
    weight_decay: NonNegativeFloat = 0.0
    """Each step takes `rate * weight_decay * w` off each chosen parameter w."""

    def direction(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_lion(self.b1, self.b2),
            optax.add_decayed_weights(self.weight_decay, self.penalized()),
        )
