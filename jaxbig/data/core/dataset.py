"""What every data set is: a few fields, a source of rows for each split, and an identity.

A data set of one's own is easiest in two halves: `Records` are what lies somewhere, a dictionary each, and `Examples`
(examples.py) make of each record the arrays that a model learns from.
"""

import abc
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.content_digest import digest_records
from jaxbig.errors import Refused

Record = dict[str, Any]
Rows = dict[str, np.ndarray]
Batch = dict[str, jax.Array]
Spec = dict[str, jax.ShapeDtypeStruct]


def folder_of(variable: str, default: str) -> Path:
    """The folder that a variable of the environment names, or else the default; `Refused` if no one's home is meant."""
    folder = os.environ.get(variable) or default
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise Refused(
            f"this user has no home to find {folder} in: set {variable} to a folder that can be written."
        ) from None


class Source(Protocol):
    """The examples of one split, read in any order.

    If it has an attribute `contiguous` that is true, each row of a batch goes on where it ended a step before
    (stream.py), for a model with a memory.
    """

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def rows(self, indices: np.ndarray) -> Rows:
        """Those examples, stacked: arrays [len(indices), ...], with a `mask` that is 0 where nothing counts."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(abc.ABC):
    """A data set as an experiment names it."""

    batch: PositiveInt
    """Rows of the global batch, over all devices."""

    cuts_to_length: ClassVar[bool] = False
    """Whether a field `length` says where longer examples are cut, so that `--smoke` may cut them shorter; else it says
    how long they are."""

    @abc.abstractmethod
    def spec(self) -> Spec:
        """Shapes and dtypes of one global batch, known before any data is there."""

    @abc.abstractmethod
    def prepare(self) -> str:
        """Makes the data ready to read, once on a machine; gives its identity, a text that says which bytes."""

    @abc.abstractmethod
    def source(self, split: str) -> Source:
        """The examples of "train" or "eval"; the data is prepared."""

    def check(self) -> None:
        """`Refused` where the experiment does not fit the data, in what can be seen before anything is compiled; the
        data is prepared."""
        if type(self).transform is not Data.transform:
            keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch))
            for train in (True, False):
                jax.eval_shape(functools.partial(self.transform, train=train), self.spec(), keys)

    def fetch(self) -> None:  # noqa: B027
        """Brings what is prepared from elsewhere, over the network: `jaxbig data prepare` alone asks for that."""

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        """What the objective gets of a batch as `spec` has it; part of the compiled step. Each row i draws from its own
        `keys[i]` [B] alone, or from its pair's (rows 2i and 2i + 1 stay together), so that its numbers do not depend
        on which devices or parts of a batch it is in."""
        return batch

    def may_leave_out(self) -> bool:
        """Whether a row of a training batch may stand for no example: its `mask` is 0, and it counts nowhere."""
        return False

    def kept(self) -> dict[str, bytes]:
        """Files by name that belong to a run besides its parameters, such as a tokenizer; the data is prepared."""
        return {}

    def words(self, tokens: np.ndarray) -> list[str]:
        """A text for each of the tokens [L], for pictures."""
        return [str(token) for token in tokens]

    def text(self, tokens: np.ndarray) -> str:
        """The tokens [L] as a text to be read."""
        return " ".join(self.words(tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records(abc.ABC):
    """Where records lie: each a dictionary, read in any order.

    One method is enough. What `open` gives is a sequence; where it has them, `__getitems__(indices)` reads many records
    at once and `where(index)` names one (a file, a line) for who has to mend it.
    """

    @abc.abstractmethod
    def open(self, split: str) -> Sequence[Record]:
        """The records of "train" or "eval"; they are prepared. It is read by threads, and pickled to processes."""

    def fetch(self) -> None:  # noqa: B027
        """Brings what lies elsewhere, over the network: `jaxbig data prepare` alone asks for that."""

    def prepare(self) -> str:
        """Makes them ready to read, once on a machine; gives their identity, a text that says which bytes.

        A run resumes with the same identity alone. As it is here each split's records are read and hashed at each
        start, and of more than 20,000 records or 1 GiB an even choice (contents.py). Where that is too slow
        or too little, override it: a version, or a sha256 over all files, is an identity too.
        """
        said = ", ".join(
            f"{split} {digest_records(self.open(split))}" for split in ("train", "eval")
        )
        return f"{self} with records: {said}"
