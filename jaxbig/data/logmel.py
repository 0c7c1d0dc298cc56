"""Log-mel spectrograms inside the compiled step.

Legend: B batch, N samples of a waveform, F frames, W samples of a frame, M mel bands.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMel:
    """log(max(sum_k H_mk |X_k|^2, floor)) of overlapping frames of a waveform.

    X is the FFT of a frame times a periodic Hann window, filled up with zeros to a power of two; H are triangles of
    height 1 between neighbours of `mels` + 2 points that are evenly spaced in mel, 2595 log10(1 + f / 700), and
    straight in mel too (HTK; Young et al., 2006, section 5.4). Frames lie whole within the waveform: what is left
    at its end makes none.
    """

    rate: int = 16000
    """Samples a second."""
    window: int = 400
    """Samples of a frame."""
    hop: int = 160
    """Samples from a frame's beginning to the next one's."""
    mels: int = 80
    """Bands."""
    lowest: float = 20.0
    """Where the first band begins, in Hz."""
    highest: float = 8000.0
    """Where the last band ends, in Hz; at most half the rate."""
    floor: float = 1e-6
    """Power below it counts as this, for waveforms of -1 to 1; float32 leaves about 1e-10 beside a loud tone."""

    def frames(self, samples: int) -> int:
        """How many frames so many samples make."""
        return max(0, (samples - self.window) // self.hop + 1)

    def __call__(self, waveform: jax.Array) -> jax.Array:
        """float32 [B, N] -> [B, F, M]."""
        frames = self.frames(waveform.shape[1])
        if not frames:
            raise Refused(f"{waveform.shape[1]} samples make no frame of {self.window}: give longer clips.")
        # periodic, as spectra have it
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        places = jnp.arange(frames)[:, None] * self.hop + jnp.arange(self.window)[None, :]  # [F, W]
        framed = waveform[:, places] * jnp.asarray(hann, jnp.float32)[None, None]  # [B, F, W]
        spectrum = jnp.fft.rfft(framed, self.points())
        power = spectrum.real**2 + spectrum.imag**2
        # highest: accelerators else round to 8 bits or so
        bands = jnp.einsum("bfk,km->bfm", power, self.filters(), precision=jax.lax.Precision.HIGHEST)
        return jnp.log(jnp.maximum(bands, self.floor))

    def points(self) -> int:
        """Of the FFT: the next power of two."""
        return 1 << (self.window - 1).bit_length()

    def filters(self) -> np.ndarray:
        """How much each frequency of the FFT counts in each band, float32 [points / 2 + 1, M]."""
        if not 0 <= self.lowest < self.highest <= self.rate / 2:
            raise Refused(
                f"mel bands from {self.lowest:g} to {self.highest:g} Hz of {self.rate} samples a second: they must "
                f"rise, within 0 to {self.rate / 2:g} Hz."
            )
        first, last = mel(np.array([self.lowest, self.highest]))
        edges = np.linspace(first, last, self.mels + 2)
        places = mel(np.fft.rfftfreq(self.points(), 1 / self.rate))[:, None]
        width = edges[1] - edges[0]
        filters = np.maximum(0, 1 - np.abs(places - edges[1:-1]) / width)
        empty = int((filters.max(0) == 0).sum())
        if empty:
            raise Refused(
                f"{empty} of {self.mels} mel bands are narrower than the {self.rate / self.points():g} Hz between "
                f"frequencies: give fewer mels or a longer window."
            )
        return filters.astype(np.float32)


def mel(frequency: np.ndarray) -> np.ndarray:
    """Hz to mel (O'Shaughnessy, 1987; as HTK has it)."""
    return 2595 * np.log10(1 + frequency / 700)
