"""What every data set is: a few fields, a source of rows for each split, and an identity."""

import abc
import dataclasses
from typing import Protocol

import jax
import numpy as np

Rows = dict[str, np.ndarray]
Spec = dict[str, jax.ShapeDtypeStruct]


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

    batch: int
    """Rows of the global batch, over all devices."""

    @abc.abstractmethod
    def spec(self) -> Spec:
        """Shapes and dtypes of one global batch, known before any data is there."""

    @abc.abstractmethod
    def prepare(self) -> str:
        """Makes the data ready to read, once on a machine; gives its identity, a text that says which bytes."""

    @abc.abstractmethod
    def source(self, split: str) -> Source:
        """The examples of "train" or "eval"; the data is prepared."""

    def words(self, tokens: np.ndarray) -> list[str]:
        """A text for each of the tokens [L], for pictures."""
        return [str(token) for token in tokens]
