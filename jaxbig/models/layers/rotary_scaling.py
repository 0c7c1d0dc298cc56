"""How rotary positions are changed so that a model reads longer texts than it was trained on."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxbig.constraints import AtLeastOne, PositiveFloat, PositiveInt
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """The frequencies as they are; the base class of the others."""

    def scale(self, frequency: jax.Array) -> jax.Array:
        """Frequencies [K/2], in radians a position -> [K/2]."""
        return frequency


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling(RotaryScaling):
    """All positions are divided by a factor (Chen et al., 2023, position interpolation)."""

    factor: AtLeastOne
    """How many times longer the texts are."""

    def scale(self, frequency: jax.Array) -> jax.Array:
        return frequency / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RotaryScaling):
    """Slow frequencies are divided by a factor, fast ones stay (Llama 3.1).

    Those in between are interpolated: a frequency is slow if its wave is longer than
    `original_length / low_frequency_factor`, and fast if shorter than
    `original_length / high_frequency_factor`.
    """

    factor: AtLeastOne
    """Divisor of the slow frequencies."""
    low_frequency_factor: PositiveFloat = 1.0
    """Waves in the original length below which a frequency is slow."""
    high_frequency_factor: PositiveFloat = 4.0
    """Waves in the original length above which a frequency is fast."""
    original_length: PositiveInt = 8192
    """Length of the texts that the model was trained on before."""

    def check_fields(self) -> None:
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise Refused(
                f"low_frequency_factor {self.low_frequency_factor}: it must be below its "
                f"high_frequency_factor, {self.high_frequency_factor}."
            )

    def scale(self, frequency: jax.Array) -> jax.Array:
        waves = self.original_length * frequency / (2 * math.pi)
        between = self.high_frequency_factor - self.low_frequency_factor
        share = jnp.clip((waves - self.low_frequency_factor) / between, 0, 1)  # 1 where fast
        return (1 - share) * frequency / self.factor + share * frequency
