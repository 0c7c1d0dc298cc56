"""Log-mel spectrograms inside the compiled step.

Legend: B batch, N samples of a waveform, F frames, W samples of a frame, M mel bands.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import NonNegativeFloat, PositiveInt, Range, check_ascending
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMel:
    """log(max(sum_k H_mk |X_k|^2, floor)) of overlapping frames of a waveform.

    X is the Fourier transform of a frame times a periodic Hann window, filled up with zeros to a power of two; H are
    triangles of height 1 between neighbours of `mels` + 2 points that are evenly spaced in mel,
    2595 log10(1 + f / 700), and straight in mel too (HTK; Young et al., 2006, section 5.4). Frames lie whole within
    the waveform: what is left at its end makes none.
    """

    sample_rate: PositiveInt = 16_000
    """Samples a second."""
    window: PositiveInt = 400
    """Samples of a frame."""
    hop: PositiveInt = 160
    """Samples from a frame's beginning to the next one's."""
    mels: PositiveInt = 80
    """Bands."""
    lowest: NonNegativeFloat = 20.0
    """Where the first band begins, in Hz."""
    highest: NonNegativeFloat = 8000.0
    """Where the last band ends, in Hz; at most half the rate."""
    floor: Annotated[float, Range(float, ge=1e-30)] = 1e-6
    """Power below it counts as this, for waveforms of -1 to 1; float32 leaves about 1e-10 beside a loud tone."""

    def check_fields(self) -> None:
        check_ascending(self, low="lowest", high="highest")

    def frames(self, samples: int) -> int:
        """How many frames so many samples make."""
        return max(0, (samples - self.window) // self.hop + 1)

    def __call__(self, waveform: jax.Array) -> jax.Array:
        """float32 [B, N] -> [B, F, M]."""
        frames = self.frames(waveform.shape[1])
        if not frames:
            raise Refused(
                f"{waveform.shape[1]} samples make no frame of {self.window}: give longer clips."
            )
        places = jnp.arange(frames)[:, None] * self.hop + jnp.arange(self.window)[None, :]  # [F, W]
        parts = product(
            "bfw,wck->bfck", waveform[:, places], self.transform()
        )  # real and imaginary
        bands = product("bfk,km->bfm", (parts**2).sum(2), self.filters())
        return jnp.log(jnp.maximum(bands, self.floor))

    def transform(self) -> np.ndarray:
        """The window and the Fourier transform as one matrix, float32 [W, 2, points / 2 + 1]: XLA would gather a
        batch that is split over devices for its FFT, and this costs little beside a model."""
        place = np.arange(self.window)[:, None]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * place / self.window)  # periodic, as spectra have it
        angle = (
            2 * np.pi * (place * np.arange(self.points() // 2 + 1) % self.points()) / self.points()
        )
        return np.stack([hann * np.cos(angle), -hann * np.sin(angle)], 1).astype(np.float32)

    def points(self) -> int:
        """Of the transform: the next power of two."""
        return 1 << (self.window - 1).bit_length()

    def filters(self) -> np.ndarray:
        """How much each frequency of the transform counts in each band, float32 [points / 2 + 1, M]."""
        if not 0 <= self.lowest < self.highest <= self.sample_rate / 2:
            raise Refused(
                f"mel bands from {self.lowest:g} to {self.highest:g} Hz of {self.sample_rate} samples a second: they "
                f"must rise, within 0 to {self.sample_rate / 2:g} Hz."
            )
        first, last = mel(np.array([self.lowest, self.highest]))
        edges = np.linspace(first, last, self.mels + 2)
        places = mel(np.fft.rfftfreq(self.points(), 1 / self.sample_rate))[:, None]
        width = edges[1] - edges[0]
        filters = np.maximum(0, 1 - np.abs(places - edges[1:-1]) / width)
        empty = int((filters.max(0) == 0).sum())
        if empty:
            raise Refused(
                f"{empty} of {self.mels} mel bands are narrower than the {self.sample_rate / self.points():g} Hz "
                f"between frequencies: give fewer mels or a longer window."
            )
        return filters.astype(np.float32)


def product(letters: str, first: jax.Array, second: np.ndarray) -> jax.Array:
    """An einsum as exact as float32 is: accelerators else round to 8 bits or so."""
    return jnp.einsum(letters, first, second, precision=jax.lax.Precision.HIGHEST)


def mel(frequency: np.ndarray) -> np.ndarray:
    """Hz to mel (O'Shaughnessy, 1987; as HTK has it)."""
    return 2595 * np.log10(1 + frequency / 700)
