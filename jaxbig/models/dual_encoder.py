"""The dual encoder: a tower for each half of a pair, whose vectors are near where halves belong.

Letters in shape comments: B batch, D width of the vectors.
"""

import math
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import PositiveFloat, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.models.base import Model, model_class
from jaxbig.models.layers.basic import Linear
from jaxbig.models.layers.parameters import constrain, parameter

HIGHEST_SCALE = 100.0
"""The most that a learned temperature multiplies cosines with (Radford et al., 2021, section 2.5).
"""


class DualEncoder(Model):
    """Two towers (Radford et al., 2021, CLIP), or one for both halves (Chen et al., 2020, SimCLR).

    A tower is any model that gives numbers of each example, [B, D], such as an image or text
    classifier: its head is the projection. Vectors have the length temperature^-0.5, so that the
    product of two is their cosine over the temperature.
    """

    tower: nn.Module
    """Of `inputs`."""
    other_tower: nn.Module | None = None
    """Of `other`; None: the same tower, with the same parameters."""
    projection: tuple[PositiveInt, ...] = ()
    """Widths of linear layers after each tower, with a ReLU before each; SimCLR has one."""
    temperature: PositiveFloat = 0.07
    """Divides cosines; the first one where it is learned."""
    learned_temperature: bool = True
    """Learn the temperature."""

    def check_fields(self) -> None:
        if self.other_tower is not None and self.other_tower is self.tower:
            raise Refused("other_tower is tower itself: leave it out, and both share parameters.")
        if self.learned_temperature and self.temperature < 1 / HIGHEST_SCALE:
            raise Refused(
                f"temperature {self.temperature}: a learned one is {1 / HIGHEST_SCALE} or more."
            )

    def setup(self) -> None:
        self.projections = self.layers("projection")
        self.other_projections = self.other_tower and self.layers("other_projection")
        if self.learned_temperature:
            first = nn.initializers.constant(-math.log(self.temperature))
            self.log_scale = parameter(self, "log_scale", first, (), ())

    @nn.nowrap
    def layers(self, name: str) -> list[Linear]:
        """The linear layers after a tower."""
        return [
            Linear((width,), ("embed", None), name=f"{name}_{layer}")
            for layer, width in enumerate(self.projection)
        ]

    def __call__(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Inputs [B, ...], lengths [B] of texts -> vectors [B, D], float32."""
        validate(self)
        return self.vectors(self.tower, self.projections, inputs, lengths, train)

    def other(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """The same of the other halves."""
        if self.other_tower is None:
            return self(inputs, lengths, train)
        return self.vectors(self.other_tower, self.other_projections, inputs, lengths, train)

    @nn.nowrap
    def vectors(
        self, tower: Any, layers: Any, inputs: jax.Array, lengths: jax.Array | None, train: bool
    ) -> jax.Array:
        """Vectors [B, D] of one tower."""
        x = tower(inputs, **_side(lengths), train=train)
        if x.ndim != 2:
            raise Refused(
                f"{type(tower).__name__} gives {list(x.shape)}, and a tower must give [batch, "
                f"numbers]: set its classes, or its pooling."
            )
        for layer in layers:
            x = constrain(layer(nn.relu(constrain(x, "batch", None))), "batch", None)
        x = upcast(x)
        x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True) + 1e-12)
        if not self.learned_temperature:
            return x * self.temperature**-0.5
        above = jnp.maximum(self.log_scale - math.log(HIGHEST_SCALE), 0)
        return x * jnp.exp((self.log_scale - jax.lax.stop_gradient(above)) / 2)

    @nn.nowrap
    def features(
        self, inputs: jax.Array, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """The features of the tower of `inputs`, before its head, [B, F]."""
        return model_class(self.tower).features(self.tower, inputs, **_side(lengths), train=train)

    @nn.nowrap
    def of_towers(self, change: Any) -> Self | None:
        """A copy with changed towers; None if one cannot be changed."""
        towers = {name: getattr(self, name) for name in ("tower", "other_tower")}
        changed = {name: change(model_class(each), each) for name, each in towers.items() if each}
        return None if None in changed.values() else self.clone(**changed)

    @nn.nowrap
    def narrower(self) -> Self | None:
        return self.of_towers(lambda of, tower: of.narrower(tower))

    @nn.nowrap
    def shallower(self, depth: int) -> Self:
        return self.of_towers(lambda of, tower: of.shallower(tower, depth)) or self

    @nn.nowrap
    def with_dtype(self, dtype: str) -> Self | None:
        return self.of_towers(lambda of, tower: of.with_dtype(tower, dtype))


def _side(lengths: jax.Array | None) -> dict[str, jax.Array]:
    return {} if lengths is None else {"lengths": lengths}
