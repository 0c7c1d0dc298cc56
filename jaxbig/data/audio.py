"""Sounds and their classes; what a model sees of a sound, its log-mel spectrogram, is made in the compiled step."""

import dataclasses

import jax
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Batch, Record, Spec
from jaxbig.data.core.examples import Example
from jaxbig.data.core.fields import MismatchError, array, finite, kind, present
from jaxbig.data.labeled import Labeled
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.log_mel import LogMel

FULL = {"int8": 2**7, "int16": 2**15, "int32": 2**31, "int64": 2**15}
"""The loudest that samples of a dtype can be; those of int64 are lists of Python, or TFDS's, and mean int16."""
MOST = 16.0
"""Floats beyond it are no samples of -1 to 1: a mix of several sounds, or a filter, makes some that are beyond 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds(Labeled):
    """Spectrograms `inputs` [B, frames, mels, 1] and their class `targets` [B]. A record has `audio`, samples of
    int8, uint8 (128 is silence), int16 or int32, or floats of -1 to 1, and `label`."""

    samples: PositiveInt = 16_000
    """How many samples a row has: what is longer is cut, what is shorter is followed by silence."""
    classes: PositiveInt
    spectrogram: LogMel = LogMel()
    feature: str = "audio"

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, self.samples), np.float32),
            "targets": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        wave = waveform(record, self.feature, "--data.feature")
        row = np.zeros(self.samples, np.float32)
        row[: len(wave)] = wave[: self.samples]
        return {"inputs": row, "targets": self.class_of(record), "mask": np.float32(1)}

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        return {
            **batch,
            "inputs": self.spectrogram(batch["inputs"])[..., None],
        }  # [B, frames, mels, 1]

    def made_up(self) -> "Sounds":
        """The same on made-up records."""
        return dataclasses.replace(
            self, records=Synthetic(waves=(self.feature,), labels=(("label", self.classes),))
        )


def waveform(record: Record, name: str, option: str = "") -> np.ndarray:
    """A sound of a record as float32 [samples] of -1 to 1; ValueError if it is none."""
    wave = array(present(record, name, option), name)
    if wave.dtype.kind not in "iuf" or (wave.dtype.kind == "u" and wave.dtype.itemsize > 1):
        dtypes = "int8, uint8, int16, int32 or floats"
        raise MismatchError(
            f"its {name!r} is {kind(wave)}: samples are {dtypes} (a sound's file is to be decoded before)"
        )
    if wave.ndim != 1 or not len(wave):
        mono = "; of several channels take the mean" if wave.ndim == 2 else ""
        raise MismatchError(f"its {name!r} has the shape {wave.shape}, not [samples]{mono}")
    if wave.dtype.kind == "u":
        return ((wave.astype(np.float64) - 128) / 128).astype(np.float32)
    full = FULL.get(wave.dtype.name, MOST)
    loudest = float(np.abs(finite(wave, name)).max())
    if loudest > full:
        fix = (
            "save it as int16 or int32"
            if wave.dtype.kind == "i"
            else "floats are of -1 to 1: divide them"
        )
        raise MismatchError(f"its {name!r} is {wave.dtype} up to {loudest:g}: {fix}")
    return (wave / full).astype(np.float32) if wave.dtype.kind == "i" else wave.astype(np.float32)
