"""Records from a folder of sound files, with one folder per class."""

import dataclasses
import io
from typing import Any

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File
from jaxbig.data.records.image_folder import ClassFolder, OpenClassFolder
from jaxbig.errors import Refused

ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".opus")


class OpenSounds(OpenClassFolder):
    def read(self, file: File, start: int, size: int) -> Record:
        with open(file.path, "rb") as sound:
            wave = decode_sound(sound.read(), self.records.sample_rate)
        return {"audio": wave, "label": self.label(file)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioFolder(ClassFolder):
    """Sounds by class, FOLDER/CLASS/SOUND.

    Records are {"audio": samples float32 [n] of -1 to 1, "label": number of the class}. Several
    channels become their mean. FOLDER/train and FOLDER/val (or eval, validation, test), if they
    exist, are the splits and hold the classes. Otherwise the hash of a file's name, CLASS/SOUND,
    decides. Names that start with a dot are ignored. Needs the extra `audio`.
    """

    sample_rate: PositiveInt = 16_000
    """Samples a second that sounds are resampled to."""

    opened = OpenSounds
    endings = ENDINGS
    of = "sound"


def decode_sound(data: bytes, sample_rate: int) -> np.ndarray:
    """Decodes a sound file to samples float32 [n] of -1 to 1; raises ValueError if it cannot."""
    soundfile = soundfile_library()
    try:
        wave, rate = soundfile.read(
            io.BytesIO(data), dtype="float32", always_2d=True
        )  # [n, channels]
    except soundfile.LibsndfileError as error:
        raise ValueError(f"it is no sound that can be read: {error}") from error
    if not len(wave):
        raise ValueError("it has no sample")
    return resampled(wave.mean(axis=1), rate, sample_rate)


def resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples [n] at another rate, [ceil(n * wanted / rate)].

    It is a polyphase filter that removes frequencies that the lower rate cannot represent.
    """
    if rate == wanted:
        return wave
    from scipy.signal import resample_poly  # here: slow to import, and not every data set needs it

    return resample_poly(wave.astype(np.float64), wanted, rate).astype(np.float32)


def soundfile_library() -> Any:
    """The library that decodes sounds; raises `Refused` if it is not installed."""
    try:
        import soundfile  # here: an extra
    except (ImportError, OSError) as error:
        raise Refused(
            f"sound files need the extra audio: pip install 'jaxbig[audio]' ({error})."
        ) from None
    return soundfile
