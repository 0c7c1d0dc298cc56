"""Sounds and their classes; what a model sees of a sound, its log-mel spectrogram, is made in the compiled step."""

import dataclasses

import jax
import numpy as np

from jaxbig.data.base import Batch, Record, Spec
from jaxbig.data.examples import Example, Examples, class_of
from jaxbig.data.logmel import LogMel
from jaxbig.data.made_up import MadeUp

LOUDEST = 2**15
"""What int16 samples are divided by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds(Examples):
    """Spectrograms `inputs` [B, frames, mels, 1] and their class `targets` [B]. A record has `audio`, int16 samples or
    floats of -1 to 1, and `label`."""

    samples: int = 16_000
    """How many samples a row has: what is longer is cut, what is shorter is followed by silence."""
    classes: int
    spectrogram: LogMel = LogMel()
    feature: str = "audio"

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, self.samples), np.float32),
            "targets": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        wave = np.asarray(record[self.feature])
        if wave.ndim != 1 or not len(wave):
            raise ValueError(f"its {self.feature!r} has the shape {wave.shape}, not [samples]")
        if np.issubdtype(wave.dtype, np.integer):
            wave = wave / LOUDEST
        row = np.zeros(self.samples, np.float32)
        row[: len(wave)] = wave[: self.samples]
        return {"inputs": row, "targets": class_of(record, "label", self.classes), "mask": np.float32(1)}

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        return {**batch, "inputs": self.spectrogram(batch["inputs"])[..., None]}  # [B, frames, mels, 1]

    def made_up(self) -> "Sounds":
        """The same on made-up records."""
        return dataclasses.replace(self, records=MadeUp(waves=(self.feature,), labels=(("label", self.classes),)))
