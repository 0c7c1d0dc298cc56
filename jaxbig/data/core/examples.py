"""Base class of data sets that decode records when they are read, and report unreadable ones."""

import abc
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxbig.constraints import NonNegativeInt
from jaxbig.data.core.dataset import Data, Record, Records, Rows, Source
from jaxbig.data.core.fields import MismatchError, cast, class_of, missing
from jaxbig.errors import Failed, Refused

__all__ = ["Example", "Examples", "class_of"]  # what your own data set needs
log = logging.getLogger("jaxbig")
Example = dict[str, Any]
"""One row of a batch: arrays [...] by field, with its `mask`."""
BadRecord = tuple[int, str]
"""The index of a record that cannot be read, and what is wrong with it."""

MAX_TRIED = 512
"""Records of a split that are tried before a run at most, spread evenly."""
MIN_TRIED = 16
"""Records that are tried even if that takes longer than `TRY_SECONDS`."""
TRY_SECONDS = 1.0
AT_ONCE = 256
"""Records that are read in one call where all are read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples(Data):
    """A data set that makes each record an example when a batch needs it."""

    records: Records
    """Where the records come from: a name of TFDS, a folder, files."""
    skip_bad_records: NonNegativeInt = 0
    """How many bad records may be left out, by all processes of a run together; each is a row with
    `mask` 0. 0: the first ends the run, naming it."""

    @abc.abstractmethod
    def read(self, record: Record) -> Example:
        """Makes the example of a record; raises ValueError, saying what is wrong, if it cannot."""

    def read_unlabeled(self, record: Record) -> Example:
        """The example of a record to predict, whose label may be missing; raises as `read`."""
        return self.read(record)

    def fetch(self) -> None:
        self.records.fetch()

    def prepare(self) -> str:
        return self.records.prepare()

    def check(self) -> None:
        super().check()
        for split in ("train", "eval"):
            source = self.source(split)
            if isinstance(source, RecordSource):
                source.check(split)

    def has_test(self) -> bool:
        return self.records.has_test()

    def may_leave_out(self) -> bool:
        return self.skip_bad_records > 0

    def source(self, split: str) -> Source:
        return RecordSource(
            self.records.open(split), self.read, self.empty(), self.skip_bad_records
        )


class RecordSource:
    """A source over opened records."""

    def __init__(
        self,
        records: Sequence[Record],
        read: Callable[[Record], Example],
        empty: Rows,
        skip: int = 0,
    ):
        self.records = records
        self.read = read
        self.empty = empty
        self.skip = skip
        self.bad: set[int] = set()
        if hasattr(records, "draw"):  # a mixture has its own order (mixture.py)
            self.draw: Any = records.draw  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: np.ndarray) -> Rows:
        rows, bad = self.read_rows(indices)
        self.leave_out(bad)
        return rows

    def read_rows(
        self, indices: np.ndarray, begin: Callable[[int], None] = lambda index: None
    ) -> tuple[Rows, list[BadRecord]]:
        """Reads examples; a bad record gives an `empty` row, which is not counted yet.

        Args:
          indices: The examples to read, [B].
          begin: Called with the index of each before it is read, by any thread or process.

        Returns:
          Arrays [B, ...] by field, and the bad records.
        """
        bad: list[BadRecord] = []
        examples = self.examples(indices.tolist(), begin, bad)
        return {name: np.stack([example[name] for example in examples]) for name in self.empty}, bad

    def examples(
        self, indices: list[int], begin: Callable[[int], None], bad: list[BadRecord]
    ) -> list[Example]:
        try:
            return [
                self.example(index, record, begin) for index, record in self.fetched(indices, begin)
            ]
        except Exception:  # read one by one to find which it was
            return [self.example_or_empty(index, begin, bad) for index in indices]

    def fetched(
        self, indices: list[int], begin: Callable[[int], None]
    ) -> Iterator[tuple[int, Record]]:
        begin(indices[0])
        if hasattr(self.records, "__getitems__"):
            yield from zip(indices, fetch(self.records, indices), strict=True)
            return
        for index in indices:
            begin(index)
            yield index, self.records[index]

    def example_or_empty(
        self, index: int, begin: Callable[[int], None], bad: list[BadRecord]
    ) -> Example:
        begin(index)
        try:
            return self.example(index, fetch(self.records, [index])[0], begin)
        except Exception as error:
            bad.append((index, self.describe(index, error)))
            return self.empty

    def describe(self, index: int, error: Exception) -> str:
        """What is wrong with a record, with its location."""
        if isinstance(error, MismatchError):
            return f"{self.where(index)} does not fit the experiment: {error}"
        text = " ".join(str(error).split())
        return f"{self.where(index)} cannot be read: {type(error).__name__}: {text}"

    def example(self, index: int, record: Record, begin: Callable[[int], None]) -> Example:
        begin(index)
        try:
            example = self.read(record)
        except KeyError as error:
            if error.args and error.args[0] not in record:
                raise missing(record, str(error.args[0])) from error
            raise
        if lost := [name for name in self.empty if name not in example]:
            raise MismatchError(f"no {lost[0]!r} is made of it, which the data set's `spec` has")
        for name, empty in self.empty.items():
            if np.shape(example[name]) != empty.shape:
                raise MismatchError(
                    f"its {name} has the shape {np.shape(example[name])}, and not {empty.shape}"
                )
        return example | {
            name: cast(example[name], empty.dtype, name) for name, empty in self.empty.items()
        }

    def check(self, split: str) -> None:
        """Reads a few records; raises if some do not fit the experiment."""
        tried, bad = self.try_records()
        unfit = [each for each in bad if isinstance(each[1], MismatchError)]
        count = f"{len(bad)} of {tried} records of {split} that were tried"
        if unfit and (len(bad) == tried or not self.skip):
            index, error = unfit[0]
            raise Refused(
                f"the experiment does not fit {count}, such as {self.where(index)}: {error}."
            )
        if bad and len(bad) == tried:
            raise Refused(f"{count} cannot be read, such as {self.describe(*bad[0])}.")

    def try_records(self) -> tuple[int, list[tuple[int, Exception]]]:
        """Reads a few records; returns how many, and the bad ones with their errors."""
        bad: list[tuple[int, Exception]] = []
        indices = spread(self.records)
        deadline = time.monotonic() + TRY_SECONDS
        for number, index in enumerate(indices):
            if number >= MIN_TRIED and time.monotonic() > deadline:
                return number, bad
            try:
                self.example(index, fetch(self.records, [index])[0], lambda index: None)
            except Exception as error:
                bad.append((index, error))
        return len(indices), bad

    def leave_out(self, bad: list[BadRecord]) -> None:
        """Counts and logs bad records, each once; raises if too many are left out."""
        for index, fault in bad:
            if index in self.bad:
                continue
            self.bad.add(index)
            if len(self.bad) > self.skip:
                more = f" ({len(self.bad)} are bad, and {self.skip} may be)" if self.skip else ""
                raise Failed(
                    f"{fault}{more}; fix or remove it, or let it be left out with "
                    f"--data.skip-bad-records N."
                )
            log.warning("left out (%d of at most %d): %s", len(self.bad), self.skip, fault)

    def where(self, index: int) -> str:
        """A record's location, for error messages."""
        return where(self.records, index)


def fetch(records: Sequence[Record], indices: list[int]) -> list[Record]:
    """Reads records, in one call where possible."""
    many: Any = getattr(records, "__getitems__", None)
    return many(indices) if many else [records[index] for index in indices]


def fetch_each(records: Sequence[Record]) -> Iterator[tuple[int, Record | Exception]]:
    """Yields every record with its index, in order; the error of one that cannot be read."""
    for start in range(0, len(records), AT_ONCE):
        indices = list(range(start, min(start + AT_ONCE, len(records))))
        try:
            found: list[Record | Exception] = [*fetch(records, indices)]
        except Exception:  # read one by one to find which it was
            found = [record_or_error(records, index) for index in indices]
        yield from zip(indices, found, strict=True)


def record_or_error(records: Sequence[Record], index: int) -> Record | Exception:
    """A record, or the error if it cannot be read."""
    try:
        return fetch(records, [index])[0]
    except Refused:  # about all records, such as a library that is not installed
        raise
    except Exception as error:
        return error


def where(records: Sequence[Record], index: int) -> str:
    """A record's location, for error messages."""
    named: Any = getattr(records, "where", None)
    return named(index) if named else f"record {index}"


def spread(records: Sequence[Record]) -> list[int]:
    """Up to `MAX_TRIED` records, such that every prefix of the list is spread evenly over all.

    Of a mixture the first record of each part comes first.
    """
    count = min(len(records), MAX_TRIED)
    # multiples of the golden ratio: evenly spread at every length
    places = np.argsort(np.arange(count) * 0.6180339887498949 % 1)
    firsts = [int(first) for first in getattr(records, "begins", [0])[:-1]]
    return list(dict.fromkeys([*firsts, *(int(place) * len(records) // count for place in places)]))
