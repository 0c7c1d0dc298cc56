"""Data sets with a class for each example, which may be a word: words are numbered, and their names saved."""

import dataclasses
import json
import logging
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxbig.data.core.cache import cache_folder, sha256, write_atomically
from jaxbig.data.core.dataset import Record
from jaxbig.data.core.examples import Examples, fetch_each, record_or_error, spread
from jaxbig.data.core.fields import MismatchError, class_of, format_value, text_of, word
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
PEEKED = 16
"""Records, spread over all, that are looked at to see whether labels are words."""
NAMES = "classes.json"
"""The file in a run's folder with the names of its classes, in the order of their numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labeled(Examples):
    """Examples of classes. A label is a class's number, or its name."""

    classes: Any
    class_names: tuple[str, ...] = ()
    """The names of the classes in the order of their numbers, where labels are words; none: the words that the records
    have, sorted."""

    @property
    def label_field(self) -> str:
        """Which of a record's fields is its class."""
        return "label"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, where they have some; the data is prepared."""
        found = vars(self).get("found_names")  # each record asks for them: folders are listed once
        return self.named() if found is None else found

    def named(self) -> tuple[str, ...]:
        """The names as they are given, or the words that were found, or as the records have them."""
        return (
            self.class_names
            or vars(self).get("words")
            or tuple(getattr(self.records, "classes", ()))
        )

    def prepare(self) -> str:
        """Also finds the words that labels are.

        Raises:
          Refused: there are more words, or names, than classes, or a name stands twice.
        """
        identity = super().prepare()
        if self.classes is None:
            return identity
        vars(self)["words"] = () if self.class_names else self.words_of_labels(identity)
        vars(self)["found_names"] = self.named()
        names, given = (
            self.names,
            "--data.class-names" if self.class_names else f"the labels in {self.label_field!r}",
        )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise Refused(f"{given} have {twice!r} twice: a class has one name.")
        if len(names) > self.classes:
            raise Refused(
                f"{given} are {len(names)} different words ({reprlib.repr(list(names))}), and --data.classes is "
                f"{self.classes}: make it {len(names)}."
            )
        own = self.class_names or vars(self)["words"]
        return f"{identity}; classes {json.dumps(own)}" if own else identity

    def words_of_labels(self, identity: str) -> tuple[str, ...]:
        """The different words that the labels of all records are, sorted; none where labels are numbers."""
        records = without_files(self.records.open("train"))
        indices = [] if hasattr(records, "draw") else spread(records)[:PEEKED]
        if not any(self.word_of(record_or_error(records, index)) is not None for index in indices):
            return ()
        file = (
            cache_folder("classes")
            / f"{sha256(f'{identity} {self.records} {self.label_field}')[:24]}.json"
        )
        if not file.exists():
            log.info("reading the labels of all records, which are words (once)")
            found = sorted({label for split in ("train", "eval") for label in self.labels(split)})
            write_atomically(file, lambda path: path.write_text(json.dumps(found)))
        return tuple(json.loads(file.read_text()))

    def labels(self, split: str) -> Iterator[str]:
        """The labels of a split that are text: some are words, so those in digits are words too."""
        try:
            records = without_files(self.records.open(split))
        except Refused:  # prepared records without a record in this split, as with eval_share 0
            return
        for _, record in fetch_each(records):
            label = None if isinstance(record, Exception) else text_of(record.get(self.label_field))
            if label is not None:
                yield label

    def word_of(self, record: Record | Exception) -> str | None:
        """The word that a record's label is; None also of a record that cannot be read: the run names it when it
        needs it."""
        return None if isinstance(record, Exception) else word(record.get(self.label_field))

    def kept(self) -> dict[str, bytes]:
        names = {NAMES: json.dumps(list(self.names), indent=1).encode()} if self.names else {}
        return {**super().kept(), **names}

    def class_of(self, record: Record, option: str = "") -> np.int32:
        """The number of a record's class; ValueError if it is none."""
        words, label = vars(self).get("words"), record.get(self.label_field)
        if words and label is not None and text_of(label) is None:
            raise MismatchError(
                f"its {self.label_field!r} is {format_value(label)}, and in other records a word, such as {words[0]!r}: write "
                f"all labels alike"
            )
        return class_of(record, self.label_field, self.classes, option, self.names)


def without_files(records: Sequence[Record]) -> Sequence[Record]:
    """The rows of the table alone where each record is a row and a file that it names (named_files.py)."""
    return getattr(records, "table", records)
