"""The base classes of all data sets: `Data`, `Records` and the protocol `Source`.

`Data` has a few fields, a source of rows for each split, and an identity. A data set of your own is
easiest in two halves: `Records` reads raw examples (dicts), and `Examples` (examples.py) turns each
into the arrays that a model learns from.
"""

import abc
import copy
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import jax
import numpy as np

from jaxbig.arrays.batch_mask import Batch
from jaxbig.constraints import PositiveInt
from jaxbig.data.core.content_digest import digest_records
from jaxbig.errors import Refused

Record = dict[str, Any]
Rows = dict[str, np.ndarray]
Spec = dict[str, jax.ShapeDtypeStruct]
DEFAULTS = {"targets": 0, "mask": 1, "starts": 1}
"""Fields of an example that a prediction does not need to be given: it counts, and starts a text of
its own."""


def folder_of(variable: str, default: str) -> Path:
    """The folder in an environment variable, or the default; raises if `~` cannot be expanded."""
    folder = os.environ.get(variable) or default
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise Refused(
            f"this user has no home to find {folder} in: set {variable} to a folder that can be "
            f"written."
        ) from None


class Source(Protocol):
    """The examples of one split, read in any order.

    If it has an attribute `contiguous` that is true, each row of a batch continues where it ended
    a step before (sampler.py), for a model with a memory.
    """

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def rows(self, indices: np.ndarray) -> Rows:
        """Reads examples and stacks them.

        Args:
          indices: The examples to read, [B].

        Returns:
          Arrays [B, ...] by field, with a `mask` that is 0 where nothing counts.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(abc.ABC):
    """A data set as an experiment names it."""

    batch: PositiveInt
    """Rows of the global batch, over all devices."""

    cuts_to_length: ClassVar[bool] = False
    """Whether a field `length` says where longer examples are cut, so that `--smoke` may cut them
    shorter; otherwise it is the length of the examples."""

    reads_texts: ClassVar[bool] = False
    """Whether a text is a record to predict, and not the name of a file."""
    endings: ClassVar[tuple[str, ...] | None] = ()
    """Endings of the files in a folder that are a record each to predict; None: any."""

    @abc.abstractmethod
    def spec(self) -> Spec:
        """Shapes and dtypes of one global batch, known before any data is read."""

    @abc.abstractmethod
    def prepare(self) -> str:
        """Makes the data ready to read, once on a machine.

        Returns:
          Its identity, a text that depends on the bytes of the data.
        """

    @abc.abstractmethod
    def source(self, split: str) -> Source:
        """The examples of "train" or "eval", or of "test" where `has_test`; called after
        `prepare`."""

    def has_test(self) -> bool:
        """Whether `source` has a split "test" too, which no training or evaluation of it uses."""
        return False

    def check(self) -> None:
        """Raises if the experiment does not fit the data; called after `prepare`.

        It checks what can be seen before anything is compiled.
        """
        if self.transforms():
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch))
            for train in (True, False):
                jax.eval_shape(functools.partial(self.transform, train=train), self.spec(), keys)

    def fetch(self) -> None:  # noqa: B027
        """Downloads the data; only `jaxbig data prepare` calls this."""

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        """Changes a batch on the devices, as part of the compiled step.

        Args:
          batch: A batch as `spec` describes it.
          keys: Random keys, [B]. Row i may use `keys[i]` only, or those of its pair (rows 2i and
            2i + 1 stay together), so that its numbers do not depend on the devices or parts of a
            batch it is in.
          train: Whether it is a training batch.

        Returns:
          The batch that the objective gets.
        """
        return batch

    def transforms(self) -> bool:
        """Whether batches are transformed in the step, as by augmentation."""
        return type(self).transform is not Data.transform

    def shorter(self, length: int) -> Self:
        """A copy whose rows have at most this length, for a quick test.

        By default a field `length` is reduced; without one, nothing changes.
        """
        if not any(field.name == "length" for field in dataclasses.fields(self)):
            return self
        data: Any = self
        return dataclasses.replace(data, length=min(data.length, length))

    def smaller(self, side: int) -> Self:
        """A copy whose images have at most this many pixels a side, for a quick test.

        By default nothing changes.
        """
        del side
        return self

    def may_leave_out(self) -> bool:
        """Whether a row of a training batch may be empty: its `mask` is 0, and it never counts."""
        return False

    def kept(self) -> dict[str, bytes]:
        """Files by name to save with a run, such as a tokenizer; called after `prepare`."""
        return {}

    def with_kept(self, folder: Path) -> Self:
        """A copy that knows what `kept` has saved in a run's folder; it reads no data."""
        return copy.copy(self)

    def empty(self) -> Rows:
        """An example of zeros, arrays [...] by field."""
        return {name: np.zeros(each.shape[1:], each.dtype) for name, each in self.spec().items()}

    def read_unlabeled(self, record: Record) -> Rows:
        """The example of a record to predict, arrays [...] by field; its label may be missing.

        By default the record has the fields of `spec`, but for those in `DEFAULTS`.

        Raises:
          ValueError: it cannot be read; the message says what is wrong.
        """
        missing = {
            name: np.full_like(field, DEFAULTS[name])
            for name, field in self.empty().items()
            if name in DEFAULTS and name not in record
        }
        return {name: record[name] for name in self.spec() if name not in missing} | missing

    def record_of_file(self, content: bytes) -> Record:
        """The record to predict that a file is, such as a picture; raises as `read_unlabeled`."""
        raise Refused(
            f"{type(self).__name__} makes no record of a file: give a table of records (.csv, "
            f".parquet, .jsonl or .npz)."
        )

    def record_of_text(self, text: str) -> Record:
        """The record to predict that a text is, where `reads_texts`."""
        raise Refused(f"{type(self).__name__} makes no record of a text: give a table of records.")

    def in_units(self, targets: np.ndarray) -> np.ndarray:
        """Targets that are numbers [...], in the units of the records."""
        return targets

    def class_name(self, number: int) -> str:
        """The name of a class, or its number as text where classes have no names."""
        return class_name(self, number)

    def words(self, tokens: np.ndarray) -> list[str]:
        """A text for each of the tokens [L], for pictures."""
        return [str(token) for token in tokens]

    def text(self, tokens: np.ndarray) -> str:
        """The tokens [L] as readable text."""
        return " ".join(self.words(tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records(abc.ABC):
    """Reads raw examples: dictionaries, in any order.

    One method, `open`, is enough. It returns a sequence. Where the sequence has them,
    `__getitems__(indices)` reads many records at once, and `where(index)` returns a record's
    location (file and line) for error messages.
    """

    @abc.abstractmethod
    def open(self, split: str) -> Sequence[Record]:
        """The records of "train" or "eval", or of "test" where `has_test`; called after
        `prepare`.

        The sequence is read by threads, and pickled to worker processes.
        """

    def has_test(self) -> bool:
        """Whether `open` has a split "test" too."""
        return False

    def fetch(self) -> None:  # noqa: B027
        """Downloads the records; only `jaxbig data prepare` calls this."""

    def prepare(self) -> str:
        """Makes the records ready to read, once on a machine.

        A run resumes only with the same identity. This default reads and hashes each split's
        records at each start, or an even choice of more than 20,000 records or 1 GiB
        (content_digest.py). Override it where that is too slow or too little: a version, or a
        sha256 over all files, is an identity too.

        Returns:
          Their identity, a text that depends on the bytes of the records.
        """
        digests = ", ".join(
            f"{split} {digest_records(self.open(split))}" for split in ("train", "eval")
        )
        return f"{self} with records: {digests}"


def open_split(data: Data, split: str) -> Source:
    """The examples of a split that a user names.

    Raises:
      Refused: the data has no such split.
    """
    if split not in ("train", "eval", "test"):
        raise Refused(f"split {split}: it is train, eval or test.")
    if split == "test" and not data.has_test():
        raise Refused(
            f"split test: {type(getattr(data, 'records', data)).__name__} has no such split, "
            f"or evaluates on it already (--split eval); records in your own files get one by "
            f"--data.records.test-share, from the start of training on."
        )
    return data.source(split)


def class_name(data: Any, number: int) -> str:
    """The name of a class of a data set, or its number as text where classes have no names."""
    names = getattr(data, "names", ())
    return names[number] if number < len(names) else str(number)
