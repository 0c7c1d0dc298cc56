"""Generated data set of written dates and their ISO 8601 form; prepared once in TFDS's folder.

A small task for sequence-to-sequence models, for looking at attention. Dates are from 1970 to 2029.
Each text has exactly one meaning: `5.9.1998` starts with the day, `5/9/1998` with the month, and
`1998-5-9` with the year; a year of two digits is from 1970 to 2029.
"""

import dataclasses
import datetime
from typing import Any, ClassVar

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Data, Rows, Source, Spec
from jaxbig.data.core.fields import as_bytes
from jaxbig.data.pipeline.sampler import epoch_order
from jaxbig.data.records.tfds_builder import Builder, Record, columns, identity, prepared
from jaxbig.data.tokenize.tokenizers import Tokenizer

PADDING, START, END = range(3)
ALPHABET = " ',-./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
VOCAB = -(-(END + 1 + len(ALPHABET)) // 8) * 8  # a multiple of 8, to shard over a mesh
LENGTH = 40  # of a written date
TRAIN = 10_000  # examples
HELD_OUT = 1_000
FIRST = datetime.date(1970, 1, 1)
DAYS = 21_915  # to the end of 2029

MONTHS = ("January", "February", "March", "April", "May", "June", "July",
          "August", "September", "October", "November", "December")  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FORMATS = (
    "{d} {month} {year}", "{month} {d}, {year}", "{month} {d} {year}", "{nth} {month} {year}",
    "{month} {nth}, {year}", "{nth} of {month} {year}", "the {nth} of {month}, {year}",
    "{month} the {nth}, {year}", "{d} {mon} {year}", "{mon} {d}, {year}", "{d}-{mon}-{year}",
    "{dd}-{mon}-{yy}", "{mon} {nth} {year}", "{d} {mon}. {year}", "{weekday}, {d} {month} {year}",
    "{weekday}, {month} {d}, {year}", "{day}, {d} {mon} {year}", "{day} {mon} {d} {year}",
    "{weekday} the {nth} of {month} {year}", "{weekday}, {dd}.{mm}.{yy}", "{dd}.{mm}.{year}",
    "{d}.{m}.{year}", "{d}.{m}.{yy}", "{d}. {month} {year}", "{mm}/{dd}/{year}", "{m}/{d}/{year}",
    "{m}/{d}/{yy}", "{year}-{mm}-{dd}", "{year}-{m}-{d}", "{year} {month} {d}",
    "{year}, {mon} {dd}", "{d} {month} '{yy}", "{mon} {d} '{yy}", "{year}{mm}{dd}",
)  # fmt: skip
CASES = (str, str.lower, str.upper)


def written(day: datetime.date, form: str) -> str:
    """The day in one of `FORMATS`."""
    suffix = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    month = MONTHS[day.month - 1]
    weekday = WEEKDAYS[day.weekday()]
    return form.format(
        d=day.day,
        dd=f"{day.day:02}",
        nth=f"{day.day}{suffix}",
        m=day.month,
        mm=f"{day.month:02}",
        month=month,
        mon=month[:3],
        weekday=weekday,
        day=weekday[:3],
        year=day.year,
        yy=f"{day.year % 100:02}",
    )


def encode(text: str) -> np.ndarray:
    """Tokens [len(text)] of the characters of a text; those not in `ALPHABET` are dropped."""
    return np.array(
        [END + 1 + ALPHABET.index(letter) for letter in text if letter in ALPHABET], np.int32
    )


def decode(tokens: np.ndarray) -> str:
    """The text of tokens [L] up to the first `END`, without padding and `START`."""
    tokens = np.asarray(tokens)
    ends = np.flatnonzero(tokens == END)
    return "".join(
        ALPHABET[token - END - 1]
        for token in tokens[: ends[0] if len(ends) else None]
        if END < token <= END + len(ALPHABET)
    )


class Letters(Tokenizer):
    """A token for each letter of `ALPHABET`; other letters are dropped."""

    @property
    def vocab(self) -> int:
        return VOCAB

    @property
    def special_tokens(self) -> dict[str, int]:
        return {"<pad>": PADDING, "<start>": START, "<end>": END}

    def encode(self, text: str | bytes) -> np.ndarray:
        return encode(text if isinstance(text, str) else text.decode(errors="replace"))

    def text(self, tokens: list[int]) -> str:
        return decode(np.array([token for token in tokens if token <= END + len(ALPHABET)]))


class JaxbigDates(Builder):
    """Days in a random format, in normal, lower or upper case; no day occurs twice."""

    def features(self) -> dict[str, Any]:
        return {"written": tfds.features.Text(), "iso": tfds.features.Text()}

    def records(self) -> dict[str, list[Record]]:
        days = [
            FIRST + datetime.timedelta(days=int(i))
            for i in epoch_order(0, 0, DAYS)[: TRAIN + HELD_OUT]
        ]
        raw = np.random.Philox(key=np.array([0, 1], np.uint64)).random_raw(len(days))
        forms = (raw >> np.uint64(32)) % np.uint64(len(FORMATS))
        cases = raw % np.uint64(len(CASES))
        texts = [
            CASES[case](written(day, FORMATS[form]))
            for day, form, case in zip(days, forms, cases, strict=True)
        ]
        made = [
            {"written": text, "iso": day.isoformat()} for text, day in zip(texts, days, strict=True)
        ]
        return {"train": made[:TRAIN], "eval": made[TRAIN:]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dates(Data):
    """Written dates `inputs` [B, 40] with `lengths` [B]; ISO dates and an end `targets` [B, 11]."""

    tokenizer: ClassVar[Tokenizer] = Letters()
    vocab = VOCAB
    start = START
    end = END
    reads_texts = True
    endings = None

    def record_of_file(self, content: bytes) -> Record:
        return {"written": content}

    def record_of_text(self, text: str) -> Record:
        return {"written": text}

    def read_unlabeled(self, record: Record) -> Rows:
        """The example of a date as it is written."""
        if "inputs" in record:
            return super().read_unlabeled(record)
        text = as_bytes(record, "written").decode(errors="replace").strip()
        tokens = encode(text)
        if len(tokens) < len(text) or not text:
            unknown = sorted({letter for letter in text if letter not in ALPHABET})
            raise ValueError(f"it has {unknown[0]!r}, which no date has" if text else "it is empty")
        if len(tokens) > LENGTH:
            raise ValueError(f"it has {len(tokens)} characters, and a date {LENGTH} at most")
        inputs = np.pad(tokens, (0, LENGTH - len(tokens)))
        return super().read_unlabeled({"inputs": inputs, "lengths": np.int32(len(tokens))})

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, LENGTH), np.int32),
            "lengths": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "targets": jax.ShapeDtypeStruct((self.batch, 11), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch, 11), np.float32),
        }

    def words(self, tokens: np.ndarray) -> list[str]:
        special = {0: "", START: "start", END: "end"}
        return [
            special[int(t)] if t in special else ALPHABET[int(t) - END - 1].replace(" ", "_")
            for t in tokens
        ]

    def text(self, tokens: np.ndarray) -> str:
        return decode(tokens)

    def prepare(self) -> str:
        return identity(prepared(JaxbigDates))

    def source(self, split: str) -> Source:
        read = columns(prepared(JaxbigDates), split)
        inputs = [encode(text.decode()) for text in read["written"]]
        targets = np.stack([np.append(encode(text.decode()), END) for text in read["iso"]]).astype(
            np.int32
        )
        lengths = np.array([len(text) for text in inputs], np.int32)
        padded = np.stack([np.pad(text, (0, LENGTH - len(text))) for text in inputs])
        source = ArraySource(inputs=padded, lengths=lengths, targets=targets)
        source.arrays["mask"] = np.ones(
            targets.shape, np.float32
        )  # of each token, not each example
        return source
