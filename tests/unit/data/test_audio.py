"""Sounds of every dtype are read as the same samples, or refused with a reason."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxbig.data.audio import Sounds, waveform
from jaxbig.data.records.synthetic import Synthetic

SAMPLES = 1_600
WAVE = 0.9 * np.sin(2 * np.pi * 440 * np.arange(SAMPLES) / 16_000)
DATA = Sounds(records=Synthetic(), classes=2, batch=1, samples=SAMPLES)
# each with its largest rounding error
STORED: dict[str, tuple[np.ndarray, float]] = {
    "float16": (WAVE.astype(np.float16), 2**-11),
    "float32": (WAVE.astype(np.float32), 1e-7),
    "float64": (WAVE, 1e-7),
    "big-endian float32": (WAVE.astype(">f4"), 1e-7),
    "int8": (np.round(WAVE * 2**7).astype(np.int8), 2**-8),
    "uint8": (np.round(WAVE * 2**7 + 128).astype(np.uint8), 2**-8),
    "int16": (np.round(WAVE * 2**15).astype(np.int16), 2**-16),
    "big-endian int16": (np.round(WAVE * 2**15).astype(">i2"), 2**-16),
    "int32": (np.round(WAVE * 2**31).astype(np.int32), 1e-7),
    "int64 of int16": (np.round(WAVE * 2**15).astype(np.int64), 2**-16),
}


def spectrogram(wave: np.ndarray) -> np.ndarray:
    row = DATA.read({"audio": wave, "label": 1})
    batch: Any = {"inputs": row["inputs"][None]}
    return np.exp(
        np.asarray(DATA.transform(batch, jax.random.split(jax.random.key(0), 1), True)["inputs"])
    )


@pytest.mark.parametrize("name", STORED)
def test_sound_of_each_dtype_is_the_same_wave_and_spectrogram(name: str) -> None:
    wave, apart = STORED[name]
    assert np.abs(waveform({"audio": wave}, "audio") - WAVE).max() <= apart
    expected = spectrogram(WAVE)
    assert np.abs(spectrogram(wave) - expected).max() <= 8 * apart * expected.max() + 1e-6


def test_int16_samples_are_divided_by_32768_to_the_bit() -> None:
    found = waveform({"audio": np.array([-(2**15), 1, 2**15 - 1], np.int16)}, "audio")
    assert found.tolist() == [-1, 2**-15, 1 - 2**-15] and found.dtype == np.float32


def test_list_means_int16_or_floats() -> None:
    assert waveform({"audio": [16_384, 0]}, "audio").tolist() == [0.5, 0]
    assert waveform({"audio": [0.5, 0.0]}, "audio").tolist() == [0.5, 0]


def test_sound_louder_than_1_is_unchanged() -> None:
    assert waveform({"audio": np.array([3.0, -1.5])}, "audio").tolist() == [3, -1.5]


BAD: dict[str, tuple[Any, str]] = {
    "NaN": (np.where(np.arange(SAMPLES) == 7, np.nan, WAVE), r"not finite: nan \(number 7\)"),
    "infinite": (np.array([0, np.inf]), "not finite"),
    "floats of int16": (
        (WAVE * 2**15).astype(np.float32),
        r"float32 up to 294\d\d.*: scale floats to -1 to 1",
    ),
    "int64 of int32": ((WAVE * 2**31).astype(np.int64), "int64 up to .*save it as int16 or int32"),
    "uint16": (np.zeros(9, np.uint16), "uint16: samples are int8, uint8, int16, int32 or floats"),
    "uint32": (np.zeros(9, np.uint32), "uint32"),
    "bool": (np.zeros(9, bool), "bool"),
    "complex": (np.zeros(9, complex), "complex128"),
    "a file": (b"RIFF....WAVE", "decode audio files first"),
    "a name": ("a.wav", "<U5"),
    "date": (np.zeros(9, "M8[s]"), "datetime64"),
    "objects": (np.array([0, None], object), "object"),
    "null": (None, "null"),
    "stereo": (
        np.zeros((9, 2), np.int16),
        r"shape \(9, 2\), not \[samples\]; average the channels",
    ),
    "empty": (np.zeros(0, np.int16), r"shape \(0,\)"),
    "one number": (np.int16(3), r"shape \(\)"),
    "ragged": ([[1], [1, 2]], "no array"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_sound_is_refused_with_its_dtype_or_shape(name: str) -> None:
    wave, words = BAD[name]
    with pytest.raises(ValueError, match=f"its 'audio' .*{words}"):
        DATA.read({"audio": wave, "label": 1})
