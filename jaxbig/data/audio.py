"""Data sets of sounds with classes or with texts, from any records: log-mel spectrograms.

The spectrogram (log_mel.py) is computed in the compiled step.

Legend: B batch, F frames, M mel bands, T letters.
"""

import dataclasses
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Batch, Data, Record, Spec
from jaxbig.data.core.examples import Example, Examples
from jaxbig.data.core.fields import MismatchError, array, as_bytes, finite, kind, present
from jaxbig.data.labeled import Labeled
from jaxbig.data.records.audio_folder import ENDINGS, decode_sound
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.log_mel import LogMel
from jaxbig.data.transforms.spec_augment import SpecAugment
from jaxbig.errors import Refused

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcripts(Examples):
    """Sounds with the texts that are heard in them.

    A batch has the spectrograms `inputs` [B, F, M, 1], of which the first `lengths` [B] frames are
    sound, and the letters `targets` [B, T] with their `mask` [B, T]: 1 is the first of `alphabet`,
    and 0 the blank of CTC. Each band has mean 0 and variance 1 over the frames of an example, and
    padding is 0. A record has `audio`, samples as those of `Sounds`, and `text`.
    """

    samples: PositiveInt
    """Most samples of an example: shorter sounds are padded, longer ones are refused."""
    letters: PositiveInt
    """Most letters of a text: T."""
    alphabet: str = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    """The letters of texts, which are read in upper case."""
    spectrogram: LogMel = LogMel()
    """How the spectrogram is computed."""
    normalize: Literal["band", "example"] = "band"
    """Over what the mean is 0 and the variance 1: each band of an example, or all of an example."""
    masks: SpecAugment = SpecAugment()
    """Which bands and frames are masked in training; none by default."""
    feature: str = "audio"
    """The record's field with the samples."""
    text_feature: str = "text"
    """The record's field with the text."""

    endings = ENDINGS

    def check_fields(self) -> None:
        if len({*self.alphabet.upper()}) < len(self.alphabet):
            raise Refused(
                f"alphabet {self.alphabet!r} has a letter twice: texts are in upper case."
            )
        if self.alphabet != self.alphabet.upper():
            raise Refused(f"alphabet {self.alphabet!r}: give its letters in upper case.")

    @property
    def classes(self) -> int:
        """How many tokens there are, the blank among them."""
        return 1 + len(self.alphabet)

    @property
    def names(self) -> tuple[str, ...]:
        """The tokens by name."""
        return ("blank", *self.alphabet)

    @property
    def space(self) -> int | None:
        """The token between words, if the alphabet has one."""
        return 1 + self.alphabet.index(" ") if " " in self.alphabet else None

    def record_of_file(self, content: bytes) -> Record:
        rate = getattr(self.records, "sample_rate", self.spectrogram.sample_rate)
        return {self.feature: decode_sound(content, rate)}

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, self.samples), np.float32),
            "lengths": jax.ShapeDtypeStruct((self.batch,), np.int32),  # samples; later frames
            "targets": jax.ShapeDtypeStruct((self.batch, self.letters), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch, self.letters), np.float32),
        }

    def read(self, record: Record) -> Example:
        written = as_bytes(record, self.text_feature, "--data.text-feature")
        text = written.decode(errors="replace").strip().upper()
        if not text:
            raise MismatchError("its text is empty")
        if unknown := sorted({*text} - {*self.alphabet}):
            raise MismatchError(f"its text has {unknown[0]!r}, which --data.alphabet has not")
        if len(text) > self.letters:
            raise MismatchError(
                f"its text has {len(text)} letters, and --data.letters is {self.letters}"
            )
        targets = np.zeros(self.letters, np.int32)
        targets[: len(text)] = [1 + self.alphabet.index(letter) for letter in text]
        mask = (np.arange(self.letters) < len(text)).astype(np.float32)
        return {**self.audio_fields(record), "targets": targets, "mask": mask}

    def read_unlabeled(self, record: Record) -> Example:
        given = record if "inputs" in record else self.audio_fields(record)
        return Data.read_unlabeled(self, given)

    def audio_fields(self, record: Record) -> Example:
        """The fields `inputs` and `lengths` of a record."""
        wave = waveform(record, self.feature, "--data.feature")
        if len(wave) > self.samples:
            raise MismatchError(
                f"its {self.feature!r} has {len(wave)} samples, and --data.samples is "
                f"{self.samples}"
            )
        padded = np.pad(wave, (0, self.samples - len(wave)))
        return {"inputs": padded, "lengths": np.int32(len(wave))}

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        mel = self.spectrogram
        x = mel(batch["inputs"])  # [B, F, M]
        lengths = jnp.maximum(0, (batch["lengths"] - mel.window) // mel.hop + 1)
        inside = (jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None]  # [B, F, 1]
        over = {"band": 1, "example": (1, 2)}[self.normalize]
        inside = jnp.broadcast_to(inside, x.shape)
        x = x - x.mean(over, keepdims=True, where=inside)
        x = jnp.where(inside, x, 0)
        x = x * jax.lax.rsqrt(x.var(over, keepdims=True, where=inside) + 1e-5)
        if train:
            x = jax.vmap(self.masks)(x, lengths, keys)
        return {**batch, "inputs": x[..., None], "lengths": lengths}

    def text(self, tokens: np.ndarray) -> str:
        return "".join(self.alphabet[int(token) - 1] for token in tokens if token > 0)

    def synthetic(self) -> "Transcripts":
        """The same data set with synthetic records, of which some are too short for their text."""
        records = Synthetic(waves=(self.feature,), texts=(self.text_feature,), words=4)
        return dataclasses.replace(self, records=records, samples=16_000, letters=32)

    def shorter(self, length: int) -> Self:
        """A copy with few letters, and eight frames for each of `length`."""
        mel = self.spectrogram
        samples = min(self.samples, mel.window + mel.hop * (8 * length - 1))
        return dataclasses.replace(self, samples=samples, letters=min(self.letters, length // 4))


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
