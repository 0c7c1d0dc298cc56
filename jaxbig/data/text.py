"""Texts as token numbers: to be continued, filled in, told apart, or translated.

A record is a row, cut at `length`; or, where `packed`, whole texts are laid end to end in full rows when the data is
prepared, each a segment that sees itself alone.
"""

import abc
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Record, Records, Source, Spec
from jaxbig.data.core.examples import BadRecord, Example, Examples, RecordSource
from jaxbig.data.core.fields import as_bytes
from jaxbig.data.labeled import Labeled
from jaxbig.data.records.mixture import Mixture, OpenMixture
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.tokenize.packing import Packed, packed
from jaxbig.data.tokenize.tokenizers import BytePairs, Bytes, Tokenizer
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
AT_ONCE, EVERY, SAMPLE = 256, 10, 256
"""Records that are read at once where all are read; seconds between two lines on how far that is; training records
that are tried for their length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Examples):
    """What the data sets of text have in common."""

    length: PositiveInt
    """Tokens a row. Of a longer text the rest is left out, unless texts are packed."""
    tokenizer: Tokenizer = Bytes()
    """What makes numbers of a text."""
    learned_from: PositiveInt = 100_000
    """From how many training records a tokenizer that is learned learns: evenly spread, or as a mixture draws them."""
    keep: Literal["beginning", "end"] = "beginning"
    """Which part of a text is kept that is longer than a row."""

    cuts_to_length = True

    @property
    def vocab(self) -> int:
        """How many different tokens there are, the special ones among them."""
        return self.tokenizer.vocab

    @property
    @abc.abstractmethod
    def features(self) -> tuple[str, ...]:
        """Which of a record's features are text."""

    def prepare(self) -> str:
        records = self.records.prepare()
        identity = f"{records}; {self.prepare_tokenizer(records)}"
        self.report_cut_texts()
        return identity

    def prepare_tokenizer(self, records: str) -> str:
        """Makes the tokenizer ready; its identity. records: the identity of what it learns from if it has to."""
        settings = self.records, self.features, self.learned_from, self.skip_bad_records
        key = f"{records} {settings}"
        return self.tokenizer.prepare(self.texts, key)

    def kept(self) -> dict[str, bytes]:
        return self.tokenizer.kept()

    def texts(self) -> Iterator[bytes]:
        """The training texts that a tokenizer learns from; records that cannot be read are left out, or `Failed`."""
        records: Any = self.records.open("train")
        count = min(len(records), self.learned_from)
        if hasattr(records, "draw"):
            places = records.draw(0, np.arange(count)).tolist()
        else:
            places = [place * len(records) // count for place in range(count)]
        reading = self.reading(records)
        reading.check("train")  # if all lack their text it is not the first one's fault
        for _, texts in self.readable(reading, places):
            yield from texts

    def reading(self, records: Sequence[Record]) -> RecordSource:
        """Opened records, each read as its texts alone."""
        read = lambda record: {"texts": [as_bytes(record, feature) for feature in self.features]}  # noqa: E731
        return RecordSource(records, read, {}, self.skip_bad_records)

    def readable(
        self, reading: RecordSource, places: Sequence[int], all_bad: list[BadRecord] | None = None
    ) -> Iterator[tuple[int, list[bytes]]]:
        """The texts of those records with how many records were read until then, many at once. Those that cannot be
        read are counted and added to `all_bad`."""
        for start in range(0, len(places), AT_ONCE):
            bad: list[BadRecord] = []
            some = list(places[start : start + AT_ONCE])
            found = reading.examples(some, lambda index: None, bad)
            reading.leave_out(bad)
            if all_bad is not None:
                all_bad += bad
            yield start + len(some), [text for each in found if each for text in each["texts"]]

    def report_cut_texts(self) -> None:
        """Logs how many of some training texts are longer than a row, and so are cut."""
        records = self.records.open("train")
        count = min(len(records), SAMPLE)
        places, bad = [place * len(records) // count for place in range(count)], []
        found = self.reading(records).examples(
            places, lambda index: None, bad
        )  # what is bad is told when it is needed
        texts = [text for each in found if each for text in each["texts"]]
        longer = sum(len(tokens) + 1 > self.length for tokens in self.tokenizer.encode_many(texts))
        if longer:
            log.warning(
                "%d of %d texts that were tried are longer than --data.length %d and are cut; their %s is kept",
                *(longer, len(texts), self.length, self.keep),
            )

    def tokens(self, text: bytes) -> np.ndarray:
        """The text's token numbers and the end [n], cut at `length`."""
        tokens = np.append(self.tokenizer.encode(text), self.tokenizer.end).astype(np.int32)
        return tokens[: self.length] if self.keep == "beginning" else tokens[-self.length :]

    def filled(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [n] -> [L], with 0 after them."""
        return np.pad(tokens, (0, self.length - len(tokens)))

    def mask(self, count: int) -> np.ndarray:
        return (np.arange(self.length) < count).astype(np.float32)

    def shaped(self, **shapes: Any) -> Spec:
        """A spec; each shape without the batch. All are int32 but `mask`."""
        kinds = {name: np.float32 if name == "mask" else np.int32 for name in shapes}
        return {
            name: jax.ShapeDtypeStruct((self.batch, *shape), kinds[name])
            for name, shape in shapes.items()
        }

    def words(self, tokens: np.ndarray) -> list[str]:
        names = {number: name for name, number in self.tokenizer.numbers.items()}
        return [names.get(int(token)) or self.tokenizer.decode(token[None]) for token in tokens]

    def text(self, tokens: np.ndarray) -> str:
        special = np.flatnonzero(
            np.isin(tokens, list(self.tokenizer.numbers.values()))
        )  # they have no text
        parts = np.split(tokens, np.unique([*special, *(special + 1)]))
        return "".join(
            self.words(part)[0] if len(part) == 1 else self.tokenizer.decode(part) for part in parts
        )

    def made_up(self) -> "Text":
        """The same on made-up records, with a tokenizer that is learned from them."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, BytePairs):  # not from a file, which may be elsewhere too
            tokenizer = dataclasses.replace(tokenizer, file="")
        return dataclasses.replace(
            self, records=Synthetic(texts=self.features), tokenizer=tokenizer
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens(Text):
    """Texts to be continued: `targets` [B, L], and `inputs` [B, L] one token late, after an end.

    Packed, also `segments` [B, L], who sees whom (0: padding), and `positions` [B, L] in the text.
    """

    feature: str = "text"
    packed: bool = False
    """Lay texts end to end in full rows, when the data is prepared; one longer than a row goes on in the next. Parts of
    a mixture are packed apart, and their rows drawn by its weights."""

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)

    def spec(self) -> Spec:
        row = (self.length,)
        more = {"segments": row, "positions": row} if self.packed else {}
        return self.shaped(inputs=row, targets=row, **more, mask=row)

    def read(self, record: Record) -> Example:
        tokens = self.tokens(as_bytes(record, self.feature))
        targets = self.filled(tokens)
        inputs = np.append(np.int32(self.tokenizer.end), targets[:-1])
        return {"inputs": inputs, "targets": targets, "mask": self.mask(len(tokens))}

    def prepare(self) -> str:
        if not self.packed:
            return super().prepare()
        if self.keep != "beginning":
            raise Refused(
                f"packed texts are not cut, so --data.keep {self.keep} says nothing: leave out one of them."
            )
        if isinstance(self.records, Mixture):
            parts, identities = self.records.parts, self.records.identities()
            records = self.records.named(identities)
        else:
            records = self.records.prepare()
            parts, identities = (self.records,), [records]
        tokenizer = self.prepare_tokenizer(records)
        keys = [f"{identity}; {tokenizer}" for identity in identities]
        rows = {
            split: [
                self.packed_rows(part, split, key) for part, key in zip(parts, keys, strict=True)
            ]
            for split in ("train", "eval")
        }
        vars(self)["rows"] = rows  # for `source`, which need not look for files again
        said = (
            f"{split} {' and '.join(each.identity for each in of_parts)}"
            for split, of_parts in rows.items()
        )
        return f"{records}; {tokenizer}; packed: {', '.join(said)}"

    def packed_rows(self, records: Records, split: str, key: str) -> Packed:
        """The packed rows of records of a split; made now if they are not there. What cannot be read is counted then,
        and again each time that the rows are used."""
        bad: list[BadRecord] = []

        def documents() -> Iterator[np.ndarray]:
            reading, said = self.reading(records.open(split)), time.monotonic()
            reading.check(split)
            for count, texts in self.readable(reading, range(len(reading)), bad):
                for text, tokens in zip(texts, self.tokenizer.encode_many(texts), strict=True):
                    yield (
                        np.append(tokens, self.tokenizer.end) if text else tokens
                    )  # an empty one is counted
                if time.monotonic() > said + EVERY:
                    said = time.monotonic()
                    log.info("%d of %d texts of %s are packed", count, len(reading), split)

        key = f"{key}; {self.tokenizer.version} {split} {self.feature} {records}"
        rows = packed(key, documents, self.length, bad)
        if not bad:  # they were packed before: what was left out then must be allowed now too
            RecordSource(rows, self.of_row, {}, self.skip_bad_records).leave_out(rows.header.bad)
        return rows

    def source(self, split: str) -> Source:
        if not self.packed:
            return super().source(split)
        if "rows" not in vars(self):
            self.prepare()
        parts = vars(self)["rows"][split]
        mixed = isinstance(self.records, Mixture)
        records: Any = OpenMixture(parts, self.records.weights) if mixed else parts[0]  # type: ignore[attr-defined]
        return RecordSource(records, self.of_row, self.empty(), self.skip_bad_records)

    def of_row(self, row: Record) -> Example:
        """The example of a packed row."""
        targets, segments, positions = (
            row[name].astype(np.int32) for name in ("tokens", "segments", "positions")
        )
        first = np.append(True, segments[1:] != segments[:-1])  # of a text, or of a piece of it
        inputs = np.where(first, self.tokenizer.end, np.append(0, targets[:-1])).astype(np.int32)
        mask = (segments > 0).astype(np.float32)
        return {
            "inputs": inputs,
            "targets": targets,
            "segments": segments,
            "positions": positions,
            "mask": mask,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows(Text):
    """Texts to be filled in: `inputs` [B, L] as they are, to be masked, with `lengths` [B].

    The end of a text has `mask` 0: it always stands at the same place, so there is nothing to be found out.
    """

    feature: str = "text"
    tokenizer: Tokenizer = Bytes(specials=("<mask>",))

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)

    @property
    def mask_token(self) -> int:
        """What stands where a token is to be filled in."""
        return self.tokenizer.mask

    def spec(self) -> Spec:
        return self.shaped(inputs=(self.length,), lengths=(), mask=(self.length,))

    def read(self, record: Record) -> Example:
        tokens = self.tokens(as_bytes(record, self.feature))
        hidden = self.mask(len(tokens) - (tokens[-1] == self.tokenizer.end))
        return {"inputs": self.filled(tokens), "lengths": np.int32(len(tokens)), "mask": hidden}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences(Labeled, Text):
    """Texts `inputs` [B, L] with `lengths` [B], and their class `targets` [B]."""

    classes: PositiveInt
    feature: str = "text"
    label: str = "label"

    @property
    def label_field(self) -> str:
        return self.label

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)

    def spec(self) -> Spec:
        return self.shaped(inputs=(self.length,), lengths=(), targets=(), mask=())

    def read(self, record: Record) -> Example:
        tokens = self.tokens(as_bytes(record, self.feature))
        return {
            "inputs": self.filled(tokens),
            "lengths": np.int32(len(tokens)),
            "targets": self.class_of(record, "--data.label"),
            "mask": np.float32(1),
        }

    def made_up(self) -> "Sentences":
        records = Synthetic(texts=self.features, labels=((self.label, self.classes),))
        return dataclasses.replace(super().made_up(), records=records)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Text):
    """Texts `inputs` [B, L] with `lengths` [B], and what they become, `targets` [B, L], closed by `end`."""

    source_feature: str
    target_feature: str
    tokenizer: Tokenizer = Bytes(specials=("<start>", "<end>"))

    @property
    def features(self) -> tuple[str, ...]:
        return (self.source_feature, self.target_feature)

    @property
    def start(self) -> int:
        """What stands before a target's first token."""
        return self.tokenizer.start

    @property
    def end(self) -> int:
        return self.tokenizer.end

    def spec(self) -> Spec:
        return self.shaped(
            inputs=(self.length,), lengths=(), targets=(self.length,), mask=(self.length,)
        )

    def read(self, record: Record) -> Example:
        inputs = self.tokens(as_bytes(record, self.source_feature, "--data.source-feature"))
        targets = self.tokens(as_bytes(record, self.target_feature, "--data.target-feature"))
        targets[-1] = self.end  # in place of what was cut
        return {
            "inputs": self.filled(inputs),
            "lengths": np.int32(len(inputs)),
            "targets": self.filled(targets),
            "mask": self.mask(len(targets)),
        }
