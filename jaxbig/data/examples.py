"""Examples made of records: what every data set of files has in common."""

import abc
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxbig.data.base import Data, Record, Records, Rows, Source
from jaxbig.errors import Failed

log = logging.getLogger("jaxbig")
Example = dict[str, Any]
"""One row of a batch: arrays [...] by field, with its `mask`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples(Data):
    """A data set whose every record is made an example when a batch needs it."""

    records: Records
    """Where they come from: a name of TFDS, a folder, files."""
    skip_bad_records: int = 0
    """How many records that cannot be read or made an example may be left out, each a row with `mask` 0; 0: the
    first ends the run, naming it."""

    @abc.abstractmethod
    def read(self, record: Record) -> Example:
        """The example of a record; raises ValueError, saying what is wrong, if there is none in it."""

    def fetch(self) -> None:
        self.records.fetch()

    def prepare(self) -> str:
        return self.records.prepare()

    def source(self, split: str) -> Source:
        return Reading(self.records.open(split), self.read, self.empty(), self.skip_bad_records)

    def empty(self) -> Example:
        """What stands for an example that is left out."""
        return {name: np.zeros(each.shape[1:], each.dtype) for name, each in self.spec().items()}


class Reading:
    """A source over opened records, read one by one."""

    def __init__(self, records: Sequence[Record], read: Callable[[Record], Example], empty: Rows, skip: int = 0):
        self.records, self.read, self.empty, self.skip = records, read, empty, skip
        self.bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: np.ndarray) -> Rows:
        examples = self.examples(indices.tolist())
        return {name: np.stack([example[name] for example in examples]) for name in self.empty}

    def examples(self, indices: list[int]) -> list[Example]:
        """Those examples; one that cannot be read is `empty` if it may be left out."""
        try:
            return [self.read(record) for record in fetch(self.records, indices)]
        except Exception:  # which one it was, the records one by one tell
            return [self.example(index) for index in indices]

    def example(self, index: int) -> Example:
        try:
            return self.read(fetch(self.records, [index])[0])
        except Exception as error:
            name = where(self.records, index)
            said = f"{name} cannot be read: {type(error).__name__}: {error}"
            self.bad.add(index)
            if len(self.bad) > self.skip:
                more = f" (it is the {len(self.bad)}th)" if self.skip else ""
                raise Failed(
                    f"{said}{more}; mend or remove it, or let it be left out with --data.skip-bad-records N."
                ) from error
            log.warning("left out (%d of at most %d): %s", len(self.bad), self.skip, said)
            return self.empty


def fetch(records: Sequence[Record], indices: list[int]) -> list[Record]:
    """Those records, at once where they can be read so."""
    many: Any = getattr(records, "__getitems__", None)
    return many(indices) if many else [records[index] for index in indices]


def where(records: Sequence[Record], index: int) -> str:
    """What names a record for who has to mend it."""
    named: Any = getattr(records, "where", None)
    return named(index) if named else f"record {index}"


def class_of(record: Record, feature: str, classes: int) -> np.int32:
    """The class of a record; ValueError if it is not one of so many."""
    if feature not in record:
        raise ValueError(f"it has no {feature!r}, but {', '.join(record)}")
    number = int(record[feature])
    if not 0 <= number < classes:
        raise ValueError(f"its {feature!r} is {number}, and --data.classes {classes}")
    return np.int32(number)
