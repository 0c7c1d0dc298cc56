"""Data sets of text, from any records: language modeling, classification, translation.

Masking is the objective's (objectives/masked_token.py).

A record is one example, cut to `length` tokens. With `packed`, texts are packed into full rows when
the data is prepared; each text is a segment that attends only to itself.

Legend: B batch, L length in tokens, n tokens of one text.
"""

import abc
import dataclasses
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

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
READ_AT_ONCE = 256
"""Records that are read at once when all are read."""
PROGRESS_INTERVAL_S = 10
"""Seconds between two log lines on the progress of packing."""
LENGTH_SAMPLE = 256
"""Training records whose length is checked before a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Examples):
    """Base class of the text data sets."""

    length: PositiveInt
    """Tokens an example. Longer texts are cut, unless they are packed."""
    tokenizer: Tokenizer = Bytes()
    """Converts text to tokens."""
    learned_from: PositiveInt = 100_000
    """Number of training records from which a tokenizer is learned: evenly spread, or as drawn by a
    mixture."""
    keep: Literal["beginning", "end"] = "beginning"
    """Which part to keep of a text longer than `length`."""

    cuts_to_length = True
    reads_texts = True
    endings = None

    def record_of_file(self, content: bytes) -> Record:
        return {self.features[0]: content}

    def record_of_text(self, text: str) -> Record:
        return {self.features[0]: text}

    @property
    def vocab(self) -> int:
        """Number of different tokens, special ones included."""
        return self.tokenizer.vocab

    @property
    @abc.abstractmethod
    def features(self) -> tuple[str, ...]:
        """Names of the record's fields with text."""

    def prepare(self) -> str:
        records = self.records.prepare()
        identity = f"{records}; {self.prepare_tokenizer(records)}"
        self.report_cut_texts()
        return identity

    def prepare_tokenizer(self, records: str) -> str:
        """Prepares the tokenizer and returns its identity.

        Args:
          records: identity of the records, from which it may be learned.
        """
        settings = (self.records, self.features, self.learned_from, self.skip_bad_records)
        return self.tokenizer.prepare(self.texts, f"{records} {settings}")

    def kept(self) -> dict[str, bytes]:
        return self.tokenizer.kept()

    def with_kept(self, folder: Path) -> Self:
        data = super().with_kept(folder)
        vars(data)["tokenizer"] = self.tokenizer.with_kept(folder)
        return data

    def texts(self) -> Iterator[bytes]:
        """The training texts from which a tokenizer is learned; may raise `Failed`, as training."""
        records: Any = self.records.open("train")
        count = min(len(records), self.learned_from)
        if hasattr(records, "draw"):
            indices = records.draw(0, np.arange(count)).tolist()
        else:
            indices = [number * len(records) // count for number in range(count)]
        reading = self.reading(records)
        reading.check("train")  # reports that all lack their text, rather than the first
        for _, texts in self.read_texts(reading, indices):
            yield from texts

    def reading(self, records: Sequence[Record]) -> RecordSource:
        """A source over opened records that reads only their texts."""
        return RecordSource(records, self.texts_of, {}, self.skip_bad_records)

    def texts_of(self, record: Record) -> Example:
        return {"texts": [as_bytes(record, feature) for feature in self.features]}

    def read_texts(
        self, reading: RecordSource, indices: Sequence[int], all_bad: list[BadRecord] | None = None
    ) -> Iterator[tuple[int, list[bytes]]]:
        """Reads the texts of records, many at once.

        Args:
          reading: a source as of `reading`; it counts the records that cannot be read.
          indices: of the records.
          all_bad: receives the records that cannot be read.

        Yields:
          How many records have been read, and the texts of the last ones.
        """
        for start in range(0, len(indices), READ_AT_ONCE):
            bad: list[BadRecord] = []
            some = list(indices[start : start + READ_AT_ONCE])
            examples = reading.examples(some, lambda index: None, bad)
            reading.leave_out(bad)
            if all_bad is not None:
                all_bad += bad
            yield start + len(some), all_texts(examples)

    def limits(self) -> tuple[tuple[str, int], ...]:
        """For each of `features` the option that limits it, and its tokens at most."""
        return (("--data.length", self.length),) * len(self.features)

    def report_cut_texts(self) -> None:
        """Warns if some of a sample of training texts are longer than allowed, and so are cut."""
        records = self.records.open("train")
        count = min(len(records), LENGTH_SAMPLE)
        indices = [number * len(records) // count for number in range(count)]
        ignored: list[BadRecord] = []  # reported when a run needs them
        examples = self.reading(records).examples(indices, lambda index: None, ignored)
        limits = self.limits()
        for option, length in dict.fromkeys(limits):
            places = [place for place, limit in enumerate(limits) if limit == (option, length)]
            texts = [each["texts"][place] for each in examples if each for place in places]
            longer = sum(len(tokens) + 1 > length for tokens in self.tokenizer.encode_many(texts))
            if longer:
                log.warning(
                    "%d of %d sampled texts are longer than %s %d and are cut; their %s is kept",
                    longer,
                    len(texts),
                    option,
                    length,
                    self.keep,
                )

    def tokens(self, text: bytes) -> np.ndarray:
        """The tokens of a text with the end token, int32 [n], cut to `length`."""
        return self.ended(self.tokenizer.encode(text))

    def ended(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens with the end token, int32 [n], cut to `length`."""
        return self.shortened(np.append(tokens, self.tokenizer.end).astype(np.int32), self.length)

    def shortened(self, tokens: np.ndarray, length: int) -> np.ndarray:
        """The tokens [n], cut to `length`."""
        return tokens[:length] if self.keep == "beginning" else tokens[-length:]

    def padded(self, tokens: np.ndarray, length: int = 0) -> np.ndarray:
        """Pads tokens [n] with 0 to [length], by default [L]."""
        return np.pad(tokens, (0, (length or self.length) - len(tokens)))

    def mask(self, count: int, length: int = 0) -> np.ndarray:
        """float32 [length], by default [L]: 1 for the first `count` positions."""
        return (np.arange(length or self.length) < count).astype(np.float32)

    def batch_spec(self, **shapes: Any) -> Spec:
        """A spec of fields by shape, without the batch dimension; int32, but `mask` float32."""
        return {
            name: jax.ShapeDtypeStruct(
                (self.batch, *shape), np.float32 if name == "mask" else np.int32
            )
            for name, shape in shapes.items()
        }

    def words(self, tokens: np.ndarray) -> list[str]:
        names = {number: name for name, number in self.tokenizer.special_tokens.items()}
        return [names.get(int(token)) or self.tokenizer.decode(token[None]) for token in tokens]

    def text(self, tokens: np.ndarray) -> str:
        is_special = np.isin(tokens, list(self.tokenizer.special_tokens.values()))
        special = np.flatnonzero(is_special)  # they have no text: show their names
        parts = np.split(tokens, np.unique([*special, *(special + 1)]))
        return "".join(
            self.words(part)[0] if len(part) == 1 else self.tokenizer.decode(part) for part in parts
        )

    def synthetic(self) -> "Text":
        """The same data set with synthetic records and a tokenizer learned from them."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, BytePairs):  # its file may be missing as well
            tokenizer = dataclasses.replace(tokenizer, file="")
        return dataclasses.replace(
            self, records=Synthetic(texts=self.features), tokenizer=tokenizer
        )


def all_texts(examples: list[Example]) -> list[bytes]:
    """The texts of examples as of `Text.texts_of`; those of bad records are empty."""
    return [text for example in examples if example for text in example["texts"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneText(Text):
    """Base class of the data sets whose records have one text each."""

    feature: str = "text"
    """The record's field with the text."""

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens(OneText):
    """Texts for language modeling.

    A batch has `targets` [B, L], and `inputs` [B, L]: the targets shifted right by one token, the
    first being the end token. If packed, also `segments` [B, L], the number of the text (0:
    padding), and `positions` [B, L], the position in the text.
    """

    packed: bool = False
    """Pack texts into full rows when the data is prepared; a longer text continues in other rows.
    Parts of a mixture are packed separately, and their rows are drawn by its weights."""

    def spec(self) -> Spec:
        row = (self.length,)
        more = {"segments": row, "positions": row} if self.packed else {}
        return self.batch_spec(inputs=row, targets=row, **more, mask=row)

    def read(self, record: Record) -> Example:
        tokens = self.tokens(as_bytes(record, self.feature))
        targets = self.padded(tokens)
        inputs = np.append(np.int32(self.tokenizer.end), targets[:-1])
        return {"inputs": inputs, "targets": targets, "mask": self.mask(len(tokens))}

    def read_unlabeled(self, record: Record) -> Example:
        example = self.read(record)
        if not self.packed:
            return example
        real = (example["mask"] > 0).astype(np.int32)
        return {**example, "segments": real, "positions": np.arange(self.length) * real}

    def prepare(self) -> str:
        if not self.packed:
            return super().prepare()
        if self.keep != "beginning":
            raise Refused(
                f"packed texts are not cut, so --data.keep {self.keep} has no effect: set only one "
                f"of the two."
            )
        if isinstance(self.records, Mixture):
            parts = self.records.parts
            identities = self.records.identities()
            records = self.records.named(identities)
        else:
            records = self.records.prepare()
            parts = (self.records,)
            identities = [records]
        tokenizer = self.prepare_tokenizer(records)
        keys = [f"{identity}; {tokenizer}" for identity in identities]
        vars(self)["keys"] = list(zip(parts, keys, strict=True))
        rows = {split: self.packed_parts(split) for split in ("train", "eval")}
        vars(self)["rows"] = rows  # `source` need not search for files again
        packed_splits = (
            f"{split} {' and '.join(part.identity for part in of_parts)}"
            for split, of_parts in rows.items()
        )
        return f"{records}; {tokenizer}; packed: {', '.join(packed_splits)}"

    def packed_parts(self, split: str) -> list[Packed]:
        """The packed rows of a split, of each part of the records."""
        return [self.packed_rows(part, split, key) for part, key in vars(self)["keys"]]

    def packed_rows(self, records: Records, split: str, key: str) -> Packed:
        """The packed rows of a split, packed now unless cached.

        Unreadable records are counted when the texts are packed and each time the rows are used.
        """
        bad: list[BadRecord] = []
        documents = functools.partial(self.tokenized_documents, records, split, bad)
        key = f"{key}; {self.tokenizer.version} {split} {self.feature} {records}"
        rows = packed(key, documents, self.length, bad)
        if not bad:  # they may be cached: the records skipped then must be allowed now too
            RecordSource(rows, self.example_of_row, {}, self.skip_bad_records).leave_out(
                rows.header.bad
            )
        return rows

    def tokenized_documents(
        self, records: Records, split: str, bad: list[BadRecord]
    ) -> Iterator[np.ndarray]:
        """Yields the tokens [n] of each text of a split, with the end token; logs the progress.

        An empty text has no token. Records that cannot be read are added to `bad`.
        """
        logged = time.monotonic()
        reading = self.reading(records.open(split))
        reading.check(split)
        for count, texts in self.read_texts(reading, range(len(reading)), bad):
            for text, tokens in zip(texts, self.tokenizer.encode_many(texts), strict=True):
                yield np.append(tokens, self.tokenizer.end) if text else tokens
            if time.monotonic() > logged + PROGRESS_INTERVAL_S:
                logged = time.monotonic()
                log.info("%d of %d texts of %s are packed", count, len(reading), split)

    def source(self, split: str) -> Source:
        if not self.packed:
            return super().source(split)
        if "rows" not in vars(self):
            self.prepare()
        rows: dict[str, list[Packed]] = vars(self)["rows"]
        parts = rows[split] if split in rows else self.packed_parts(split)
        records: Any = parts[0]
        if isinstance(self.records, Mixture):
            records = OpenMixture(parts, self.records.weights, self.records.later)
        return RecordSource(records, self.example_of_row, self.empty(), self.skip_bad_records)

    def example_of_row(self, row: Record) -> Example:
        """Makes the example of a packed row."""
        targets = row["tokens"].astype(np.int32)
        segments = row["segments"].astype(np.int32)
        is_first = np.append(True, segments[1:] != segments[:-1])  # of a text, or of a piece of it
        inputs = np.where(is_first, self.tokenizer.end, np.append(0, targets[:-1]))
        return {
            "inputs": inputs.astype(np.int32),
            "targets": targets,
            "segments": segments,
            "positions": row["positions"].astype(np.int32),
            "mask": (segments > 0).astype(np.float32),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows(OneText):
    """Texts for masked language modeling, which the objective masks.

    A batch has the tokens `inputs` [B, L], their number `lengths` [B], and `mask` [B, L]. The mask
    is 0 for the end token, which is always last, so that predicting it is trivial.
    """

    tokenizer: Tokenizer = Bytes(specials=("<mask>",))
    """Converts text to tokens."""

    @property
    def mask_token(self) -> int:
        """The token that replaces a masked one."""
        return self.tokenizer.mask

    def spec(self) -> Spec:
        return self.batch_spec(inputs=(self.length,), lengths=(), mask=(self.length,))

    def read(self, record: Record) -> Example:
        return self.example_of(self.tokens(as_bytes(record, self.feature)))

    def example_of(self, tokens: np.ndarray) -> Example:
        """The example of tokens [n] as of `tokens`."""
        mask = self.mask(len(tokens) - (tokens[-1] == self.tokenizer.end))
        return {"inputs": self.padded(tokens), "lengths": np.int32(len(tokens)), "mask": mask}

    def read_unlabeled(self, record: Record) -> Example:
        """The example of a text to predict; a mask token's name in it, as `<mask>`, is that."""
        names = {number: name for name, number in self.tokenizer.special_tokens.items()}
        mask = self.mask_token
        first, *rest = as_bytes(record, self.feature).split(names[mask].encode())
        parts = [self.tokenizer.encode(first)]
        for each in rest:
            parts += [np.array([mask]), self.tokenizer.encode(each)]
        return self.example_of(self.ended(np.concatenate(parts)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences(OneText, Labeled, Text):
    """Texts with one class each.

    A batch has the tokens `inputs` [B, L], their number `lengths` [B], and the classes `targets`
    [B].
    """

    label: str = "label"
    """The record's field with the class."""
    start_token: bool = False
    """Begin each text with the tokenizer's start token, as BERT with [CLS]."""

    @property
    def label_field(self) -> str:
        return self.label

    def ended(self, tokens: np.ndarray) -> np.ndarray:
        tokens = super().ended(tokens)
        if not self.start_token:
            return tokens
        over = max(len(tokens) + 1 - self.length, 0)
        rest = tokens[: len(tokens) - over] if self.keep == "beginning" else tokens[over:]
        return np.append(np.int32(self.tokenizer.start), rest)

    def spec(self) -> Spec:
        return self.batch_spec(inputs=(self.length,), lengths=(), targets=(), mask=())

    def read(self, record: Record) -> Example:
        tokens = self.tokens(as_bytes(record, self.feature))
        return {
            "inputs": self.padded(tokens),
            "lengths": np.int32(len(tokens)),
            "targets": self.class_of(record, "--data.label"),
            "mask": np.float32(1),
        }

    def synthetic(self) -> "Sentences":
        records = Synthetic(texts=self.features, labels=((self.label, self.classes),))
        data: Any = super().synthetic()
        return dataclasses.replace(data, records=records)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Text):
    """Pairs of texts, e.g. for translation.

    A batch has the source tokens `inputs` [B, L], their number `lengths` [B], and the target tokens
    `targets` [B, T], which end with the end token even if they are cut.
    """

    source_feature: str
    """The record's field with the source text."""
    target_feature: str
    """The record's field with the target text."""
    target_length: PositiveInt | None = None
    """Tokens of a target, T. Longer ones are cut. None: as length."""
    tokenizer: Tokenizer = Bytes(specials=("<start>", "<end>"))
    """Converts text to tokens."""

    @property
    def features(self) -> tuple[str, ...]:
        return (self.source_feature, self.target_feature)

    @property
    def start(self) -> int:
        """The token before the first target."""
        return self.tokenizer.start

    @property
    def end(self) -> int:
        """The token after the last target."""
        return self.tokenizer.end

    def limits(self) -> tuple[tuple[str, int], ...]:
        source = ("--data.length", self.length)
        target = ("--data.target-length", self.target_length) if self.target_length else source
        return (source, target)

    def shorter(self, length: int) -> Self:
        target = self.target_length and min(self.target_length, length)
        return dataclasses.replace(super().shorter(length), target_length=target)

    def spec(self) -> Spec:
        row = (self.target_length or self.length,)
        return self.batch_spec(inputs=(self.length,), lengths=(), targets=row, mask=row)

    def read_unlabeled(self, record: Record) -> Example:
        return self.read({self.target_feature: "", **record})

    def read(self, record: Record) -> Example:
        inputs = self.tokens(as_bytes(record, self.source_feature, "--data.source-feature"))
        text = as_bytes(record, self.target_feature, "--data.target-feature")
        length = self.target_length or self.length
        targets = self.shortened(np.append(self.tokenizer.encode(text), self.end), length)
        targets[-1] = self.end  # also if the text was cut
        return {
            "inputs": self.padded(inputs),
            "lengths": np.int32(len(inputs)),
            "targets": self.padded(targets, length),
            "mask": self.mask(len(targets), length),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPairs(Pairs):
    """Pairs of texts that belong together, as a question and its answer, for two towers.

    A batch has the tokens `inputs` [B, L] of the source and `other` [B, T] of the target, each with
    an end token, and their numbers `lengths` and `other_lengths` [B].
    """

    def spec(self) -> Spec:
        other = (self.target_length or self.length,)
        return self.batch_spec(
            inputs=(self.length,), lengths=(), other=other, other_lengths=(), mask=()
        )

    def read_unlabeled(self, record: Record) -> Example:
        return self.read({self.source_feature: "", self.target_feature: "", **record})

    def read(self, record: Record) -> Example:
        pair = super().read(record)
        return {
            "inputs": pair["inputs"],
            "lengths": pair["lengths"],
            "other": pair["targets"],
            "other_lengths": pair["mask"].sum().astype(np.int32),
            "mask": np.float32(1),
        }
