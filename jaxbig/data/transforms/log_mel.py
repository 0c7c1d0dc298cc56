"""Log-mel spectrograms of waveforms, computed inside the compiled step.

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

    X is the Fourier transform of a frame times a periodic Hann window, zero-padded to a power of
    two. H are triangular filters of height 1, linear in mel, 2595 log10(1 + f / 700), between
    adjacent ones of `mels` + 2 points evenly spaced in mel (HTK; Young et al., 2006, section 5.4).
    Frames are not padded: an incomplete one at the end of the waveform is dropped.
    """

    sample_rate: PositiveInt = 16_000
    """Samples per second."""
    window: PositiveInt = 400
    """Length of a frame, in samples."""
    hop: PositiveInt = 160
    """Distance between the starts of two frames, in samples."""
    mels: PositiveInt = 80
    """Number of mel bands."""
    lowest: NonNegativeFloat = 20.0
    """Lower edge of the first band, in Hz."""
    highest: NonNegativeFloat = 8000.0
    """Upper edge of the last band, in Hz; at most half the sample rate."""
    floor: Annotated[float, Range(float, ge=1e-30)] = 1e-6
    """Smallest power, for waveforms in [-1, 1]; float32 noise beside a loud tone is about 1e-10."""

    def check_fields(self) -> None:
        check_ascending(self, low="lowest", high="highest")

    def frames(self, samples: int) -> int:
        """Number of frames of a waveform of `samples`."""
        return max(0, (samples - self.window) // self.hop + 1)

    def __call__(self, waveform: jax.Array) -> jax.Array:
        """Computes the spectrogram: waveforms, float32 [B, N] -> [B, F, M]."""
        frames = self.frames(waveform.shape[1])
        if not frames:
            raise Refused(
                f"{waveform.shape[1]} samples make no frame of {self.window}: give longer clips."
            )
        starts = jnp.arange(frames) * self.hop
        positions = starts[:, None] + jnp.arange(self.window)[None, :]  # [F, W]
        spectrum = einsum("bfw,wck->bfck", waveform[:, positions], self.fourier_matrix())
        bands = einsum("bfk,km->bfm", (spectrum**2).sum(2), self.filters())
        return jnp.log(jnp.maximum(bands, self.floor))

    def fourier_matrix(self) -> np.ndarray:
        """The window and the Fourier transform as one matrix, float32 [W, 2, points / 2 + 1].

        Real and imaginary parts are along axis 1. For an FFT XLA would all-gather a sharded batch;
        the matrix product costs little compared with a model.
        """
        position = np.arange(self.window)[:, None]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * position / self.window)  # periodic, as for spectra
        turns = position * np.arange(self.points() // 2 + 1) % self.points()
        angle = 2 * np.pi * turns / self.points()
        return np.stack([hann * np.cos(angle), -hann * np.sin(angle)], 1).astype(np.float32)

    def points(self) -> int:
        """Length of the Fourier transform: the next power of two."""
        return 1 << (self.window - 1).bit_length()

    def filters(self) -> np.ndarray:
        """The mel filters: weights from frequencies to bands, float32 [points / 2 + 1, M]."""
        if not 0 <= self.lowest < self.highest <= self.sample_rate / 2:
            raise Refused(
                f"mel bands from {self.lowest:g} to {self.highest:g} Hz of {self.sample_rate} "
                f"samples a second: they must rise, within 0 to {self.sample_rate / 2:g} Hz."
            )
        first, last = mel(np.array([self.lowest, self.highest]))
        edges = np.linspace(first, last, self.mels + 2)
        frequencies = mel(np.fft.rfftfreq(self.points(), 1 / self.sample_rate))[:, None]
        width = edges[1] - edges[0]
        filters = np.maximum(0, 1 - np.abs(frequencies - edges[1:-1]) / width)
        empty = int((filters.max(0) == 0).sum())
        if empty:
            raise Refused(
                f"{empty} of {self.mels} mel bands are narrower than the "
                f"{self.sample_rate / self.points():g} Hz between frequencies: set fewer mels or a "
                f"longer window."
            )
        return filters.astype(np.float32)


def einsum(letters: str, first: jax.Array, second: np.ndarray) -> jax.Array:
    """An einsum in full float32: by default accelerators multiply in bfloat16, about 8 bits."""
    return jnp.einsum(letters, first, second, precision=jax.lax.Precision.HIGHEST)


def mel(frequency: np.ndarray) -> np.ndarray:
    """Converts Hz to mel (O'Shaughnessy, 1987; as in HTK)."""
    return 2595 * np.log10(1 + frequency / 700)
