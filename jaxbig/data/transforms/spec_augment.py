"""SpecAugment: masks bands and spans of frames of a spectrogram.

Legend: F frames, M mel bands, N masks.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxbig.constraints import Fraction, NonNegativeInt


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Masks of random width at random places (Park et al., 2019, section 2, without time warping).

    What is masked is 0, the mean of a normalized spectrogram. The paper's LD has two masks of each
    kind, 27 bands and 100 frames wide at most.
    """

    frequency_masks: NonNegativeInt = 0
    """How many masks of bands."""
    frequency_width: NonNegativeInt = 27
    """Most bands of a mask."""
    time_masks: NonNegativeInt = 0
    """How many masks of frames."""
    time_width: NonNegativeInt = 100
    """Most frames of a mask."""
    time_share: Fraction = 1.0
    """Most frames of a mask, as a share of those of the example."""

    def __call__(self, x: jax.Array, length: jax.Array, key: jax.Array) -> jax.Array:
        """Masks an example: spectrogram [F, M], its frames [], a key -> [F, M]."""
        of_frames, of_bands = jax.random.split(key)
        frames, bands = x.shape
        widest = jnp.minimum(self.time_width, (self.time_share * length).astype(jnp.int32))
        masked = spans(of_frames, frames, self.time_masks, widest, length)[:, None]
        most = jnp.minimum(self.frequency_width, bands)
        masked |= spans(of_bands, bands, self.frequency_masks, most, jnp.int32(bands))[None]
        return jnp.where(masked, 0, x)


def spans(key: jax.Array, size: int, count: int, widest: jax.Array, end: jax.Array) -> jax.Array:
    """Which of `size` places are in one of `count` random spans, bool [size]: each is 0 to `widest`
    places wide, anywhere before `end`."""
    of_widths, of_starts = jax.random.split(key)
    widths = jax.random.randint(of_widths, (count,), 0, widest + 1)
    starts = jax.random.randint(of_starts, (count,), 0, end - widths + 1)
    places = jnp.arange(size)[:, None]
    inside = (places >= starts[None]) & (places < (starts + widths)[None])  # [size, count]
    return jnp.any(inside, axis=1)
