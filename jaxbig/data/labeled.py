"""Base class of data sets with classes: labels are numbers, or words to be numbered."""

import dataclasses
import json
import logging
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.cache import cache_folder, sha256, write_atomically
from jaxbig.data.core.dataset import Record, Source
from jaxbig.data.core.examples import Example, Examples, fetch_each, record_or_error, spread
from jaxbig.data.core.fields import MismatchError, class_of, format_value, text_of, word
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
LABEL_SAMPLES = 16
"""Records, evenly spread, that are read to decide whether labels are words."""
NAMES_FILE = "classes.json"
"""The file in a run's folder with the names of the classes, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labeled(Examples):
    """A data set with one class an example. A label is the number of the class, or its name."""

    classes: PositiveInt
    """Number of classes."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in order, if labels are words; empty: the labels found."""

    @property
    def label_field(self) -> str:
        """Name of the record's field with the class."""
        return "label"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, if they have any. Requires `prepare`, or a run's `with_kept`."""
        cached = vars(self).get("cached_names")  # used for each record: list folders only once
        return self.find_names() if cached is None else cached

    def find_names(self) -> tuple[str, ...]:
        """The names set by the user, else those found in labels, else those of the records."""
        return (
            self.class_names
            or vars(self).get("label_words")
            or tuple(getattr(self.records, "classes", ()))
        )

    def prepare(self) -> str:
        """Also collects the class names from the labels if these are words.

        Raises:
          Refused: there are more names than classes, or a name occurs twice.
        """
        identity = super().prepare()
        if self.classes is None:
            return identity
        vars(self)["label_words"] = () if self.class_names else self.collect_words(identity)
        vars(self)["cached_names"] = self.find_names()
        names = self.names
        origin = "--data.class-names"
        if not self.class_names:
            origin = f"the labels in {self.label_field!r}"
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise Refused(f"{origin} have {twice!r} twice: names must be unique.")
        if len(names) > self.classes:
            raise Refused(
                f"{origin} are {len(names)} different words ({reprlib.repr(list(names))}), but "
                f"--data.classes is {self.classes}: set it to {len(names)}."
            )
        own = self.class_names or vars(self)["label_words"]
        return f"{identity}; classes {json.dumps(own)}" if own else identity

    def collect_words(self, identity: str) -> tuple[str, ...]:
        """The different labels of all records, sorted, if labels are words; empty if numbers."""
        records = without_files(self.records.open("train"))
        indices = [] if hasattr(records, "draw") else spread(records)[:LABEL_SAMPLES]
        if not any(self.word_of(record_or_error(records, index)) is not None for index in indices):
            return ()
        key = sha256(f"{identity} {self.records} {self.label_field}")[:24]
        file = cache_folder("classes") / f"{key}.json"
        if not file.exists():
            log.info("reading the labels of all records, which are words (once)")
            words = sorted({label for split in ("train", "eval") for label in self.labels(split)})
            write_atomically(file, lambda path: path.write_text(json.dumps(words)))
        return tuple(json.loads(file.read_text()))

    def labels(self, split: str) -> Iterator[str]:
        """All labels of a split that are text, those of digits too."""
        try:
            records = without_files(self.records.open(split))
        except Refused:  # this split has no record, e.g. with eval_share 0
            return
        for _, record in fetch_each(records):
            label = None if isinstance(record, Exception) else text_of(record.get(self.label_field))
            if label is not None:
                yield label

    def word_of(self, record: Record | Exception) -> str | None:
        """A record's label if it is a word, else None; None for an unreadable record as well.

        The run reports an unreadable record when it needs it.
        """
        return None if isinstance(record, Exception) else word(record.get(self.label_field))

    def kept(self) -> dict[str, bytes]:
        files = super().kept()
        if self.names:
            files = {**files, NAMES_FILE: json.dumps(list(self.names), indent=1).encode()}
        return files

    def with_kept(self, folder: Path) -> Self:
        data = super().with_kept(folder)
        file = folder / NAMES_FILE
        if file.exists():
            vars(data).pop("label_words", None)
            vars(data)["cached_names"] = tuple(json.loads(file.read_text()))
        return data

    def source(self, split: str) -> Source:
        """The examples of a split.

        Raises:
          Refused: the records number other classes than the run that this was restored from.
        """
        known: tuple[str, ...] = vars(self).get("cached_names", ())
        is_restored = known and "label_words" not in vars(self)
        if is_restored and (now := self.find_names()) and now != known:
            raise Refused(
                f"the run has the classes {', '.join(known)}, and its records now have "
                f"{', '.join(now)}: bring those of the run back."
            )
        return super().source(split)

    def read_unlabeled(self, record: Record) -> Example:
        return self.read({self.label_field: self.names[0] if self.names else 0, **record})

    def class_of(self, record: Record, option: str = "") -> np.int32:
        """The class number of a record; raises ValueError if it has none."""
        words = vars(self).get("label_words")
        label = record.get(self.label_field)
        if words and label is not None and text_of(label) is None:
            raise MismatchError(
                f"its {self.label_field!r} is {format_value(label)}, but in other records it is a "
                f"word, such as {words[0]!r}: make all labels words, or all numbers"
            )
        return class_of(record, self.label_field, self.classes, option, self.names)


def without_files(records: Sequence[Record]) -> Sequence[Record]:
    """The table rows only, if each record is a row and the file that it names (named_files.py)."""
    return getattr(records, "table", records)
