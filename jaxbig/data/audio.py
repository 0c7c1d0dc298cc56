"""Data set of sounds with classes, from any records: log-mel spectrograms.

The spectrogram (log_mel.py) is computed in the compiled step.
"""

import dataclasses

import jax
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Batch, Record, Spec
from jaxbig.data.core.examples import Example
from jaxbig.data.core.fields import MismatchError, array, finite, kind, present
from jaxbig.data.labeled import Labeled
from jaxbig.data.records.audio_folder import ENDINGS, decode_sound
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.log_mel import LogMel

FULL_SCALE = {"int8": 2**7, "int16": 2**15, "int32": 2**31, "int64": 2**15}
"""Largest sample of a dtype; int64 comes from Python lists or TFDS, and means 16 bits."""
MAX_FLOAT = 16.0
"""Largest float sample: mixing or filtering may exceed 1, but more than this is another scale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds(Labeled):
    """Sounds with one class each.

    A batch has the spectrograms `inputs` [B, frames, mels, 1] and the classes `targets` [B]. A
    record has `audio`, samples of int8, uint8 (128 is silence), int16, int32 or floats in [-1, 1],
    and `label`.
    """

    samples: PositiveInt = 16_000
    """Samples an example: longer sounds are cut, shorter ones padded with silence."""
    spectrogram: LogMel = LogMel()
    """How the spectrogram is computed."""
    feature: str = "audio"
    """The record's field with the samples."""

    endings = ENDINGS

    def record_of_file(self, content: bytes) -> Record:
        rate = getattr(self.records, "sample_rate", self.spectrogram.sample_rate)
        return {self.feature: decode_sound(content, rate)}

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
        spectrogram = self.spectrogram(batch["inputs"])[..., None]  # [B, frames, mels, 1]
        return {**batch, "inputs": spectrogram}

    def synthetic(self) -> "Sounds":
        """The same data set with synthetic records."""
        records = Synthetic(waves=(self.feature,), labels=(("label", self.classes),))
        return dataclasses.replace(self, records=records)


def waveform(record: Record, name: str, option: str = "") -> np.ndarray:
    """Reads the samples of a record.

    Args:
      record: with the samples in the field `name`.
      name: of the field.
      option: the command-line option that sets `name`, for errors.

    Returns:
      float32 [samples] in [-1, 1].

    Raises:
      ValueError: the field is missing or is not a sound.
    """
    wave = array(present(record, name, option), name)
    if wave.dtype.kind not in "iuf" or (wave.dtype.kind == "u" and wave.dtype.itemsize > 1):
        dtypes = "int8, uint8, int16, int32 or floats"
        raise MismatchError(
            f"its {name!r} is {kind(wave)}: samples are {dtypes} (decode audio files first)"
        )
    if wave.ndim != 1 or not len(wave):
        mono = "; average the channels" if wave.ndim == 2 else ""
        raise MismatchError(f"its {name!r} has the shape {wave.shape}, not [samples]{mono}")
    if wave.dtype.kind == "u":
        return ((wave.astype(np.float64) - 128) / 128).astype(np.float32)
    is_integer = wave.dtype.kind == "i"
    full_scale = FULL_SCALE.get(wave.dtype.name, MAX_FLOAT)
    largest = float(np.abs(finite(wave, name)).max())
    if largest > full_scale:
        fix = "save it as int16 or int32" if is_integer else "scale floats to -1 to 1"
        raise MismatchError(f"its {name!r} is {wave.dtype} up to {largest:g}: {fix}")
    return (wave / full_scale).astype(np.float32) if is_integer else wave.astype(np.float32)
