"""Records of Morse code as sound, made from texts: at any speed and pitch, with noise and fading.

Texts are common words of telegraphy and random groups of letters and digits. A record is made when
it is read, from its split and number alone, and is the same on every machine: what is random comes
from a counter-based generator's bits.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxbig.constraints import NonNegativeFloat, PositiveInt, Probability
from jaxbig.data.core.content_digest import digest_records
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.record_random import Numbers

RATE = 2_000  # samples a second
SAMPLES = 9_600  # at most
LETTERS = 8  # of a text at most
CODES = {
    "A": ".-", "B": "-...", "C": "-.-.", "D": "-..", "E": ".", "F": "..-.", "G": "--.",
    "H": "....", "I": "..", "J": ".---", "K": "-.-", "L": ".-..", "M": "--", "N": "-.",
    "O": "---", "P": ".--.", "Q": "--.-", "R": ".-.", "S": "...", "T": "-", "U": "..-",
    "V": "...-", "W": ".--", "X": "-..-", "Y": "-.--", "Z": "--..", "0": "-----",
    "1": ".----", "2": "..---", "3": "...--", "4": "....-", "5": ".....", "6": "-....",
    "7": "--...", "8": "---..", "9": "----.",
}  # fmt: skip
ALPHABET = " " + "".join(CODES)
WORDS = (
    "THE", "AND", "FOR", "YOU", "ARE", "NAME", "HERE", "RST", "QTH", "QSL", "QRM", "QRZ",
    "QSO", "TNX", "FER", "CALL", "GOOD", "DAY", "OLD", "MAN", "WX", "RIG", "ANT", "PWR",
    "WATTS", "RAIN", "SUN", "COLD", "WARM", "TEMP", "HPE", "CUAGN", "BEST", "DX", "CQ",
    "DE", "TEST", "KEY", "SHIP", "SOS", "PORT", "STAR", "NORTH", "SOUTH", "EAST", "WEST",
    "WIND", "SEA", "ICE", "HELP", "COME", "AT", "ONCE", "WE", "HAVE", "TIME", "LOST",
    "LIGHT", "NIGHT", "HOME", "WORK", "RADIO",
)  # fmt: skip
SPLITS = {"train": 0, "eval": 1}
SIGNS = {" ": " ", **CODES}


def keyed(text: str) -> np.ndarray:
    """Whether the key is down in each unit of time, bool [units]: a dot is one unit, a dash three,
    and one, three and seven are between signs, letters and words (ITU-R M.1677-1)."""
    signs = "   ".join(" ".join(SIGNS[letter]) for letter in text)
    return np.array([*signs.replace("-", "...")]) == "."


def some_text(numbers: Numbers) -> str:
    """Words and groups, as many as fit, of 1 to `LETTERS` letters and spaces."""
    most = 1 + numbers.integer(LETTERS)
    text = ""
    while True:
        part = WORDS[numbers.integer(len(WORDS))]
        if not numbers.integer(3):
            letters = range(1 + numbers.integer(5))
            part = "".join(ALPHABET[1 + numbers.integer(len(CODES))] for _ in letters)
        longer = f"{text} {part}".strip()
        if len(longer) <= most:
            text = longer
        elif text:
            return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Morse(Records):
    """Sounds of Morse code, `audio` int16 of 2,000 samples a second, and what they say, `text`.

    A unit of time is 40 to 70 ms (30 to 17 words a minute), less where a text would not fit in
    `SAMPLES`; the pitch is 300 to 900 Hz. All texts are of the same words and random groups, so
    some of those held out are said in training too, by other sounds.
    """

    train_examples: PositiveInt = 20_000
    """Number of training records."""
    eval_examples: PositiveInt = 500
    """Number of records held out."""
    noise: NonNegativeFloat = 1.0
    """Most white noise: its standard deviation over the amplitude of the tone."""
    fading: Probability = 0.9
    """How much of the tone fading takes away at most."""

    sample_rate = RATE

    def prepare(self) -> str:
        few = [OpenMorse(self, split, 16) for split in SPLITS]
        return f"{self}, first records: {', '.join(map(digest_records, few))}"

    def open(self, split: str) -> Sequence[Record]:
        count = {"train": self.train_examples, "eval": self.eval_examples}[split]
        return OpenMorse(self, split, count)


class OpenMorse(Sequence[Record]):
    """The records of a split."""

    def __init__(self, morse: Morse, split: str, size: int):
        self.morse = morse
        self.split = split
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        numbers = Numbers(SPLITS[self.split], range(self.size)[index])
        text = some_text(numbers)
        return {"text": text.encode(), "audio": self.sound(text, numbers)}

    def sound(self, text: str, numbers: Numbers) -> np.ndarray:
        """The text as int16 [samples]."""
        units = keyed(text)
        unit = RATE * numbers.uniform(0.04, 0.07)  # samples
        before, after = (int(RATE * numbers.uniform(0.1, 0.4)) for _ in range(2))
        unit = min(unit, (SAMPLES - before - after) / len(units))
        down = units[(np.arange(int(len(units) * unit)) / unit).astype(int)]
        down = np.pad(down.astype(float), (before, after))
        down = np.convolve(down, np.hanning(11) / np.hanning(11).sum(), "same")  # 5 ms: no clicks
        turns = np.arange(len(down)) / RATE
        tone = np.sin(2 * np.pi * (numbers.uniform(300, 900) * turns + numbers.uniform(0, 1)))
        waves = np.cos(2 * np.pi * (numbers.uniform(0.1, 0.6) * turns + numbers.uniform(0, 1)))
        strength = 1 - numbers.uniform(0, self.morse.fading) * (1 - waves) / 2
        heard = strength * down * tone
        heard += numbers.uniform(0.05, 1) * self.morse.noise * numbers.noise(len(down))
        return np.round(4_000 * heard).clip(-(2**15), 2**15 - 1).astype(np.int16)
