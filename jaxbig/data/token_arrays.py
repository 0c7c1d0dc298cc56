"""Texts that are token numbers already, in arrays or lists, and their classes."""

import dataclasses
from typing import Literal

import jax
import numpy as np

from jaxbig.constraints import NonNegativeInt, PositiveInt
from jaxbig.data.core.dataset import Record, Spec
from jaxbig.data.core.examples import Example
from jaxbig.data.core.fields import MismatchError, array, kind, present, whole_number
from jaxbig.data.labeled import Labeled


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenArrays(Labeled):
    """Token numbers `inputs` [B, L] with `lengths` [B], and their class `targets` [B], as `Sentences` has them.

    A record has its tokens as a list or an array [n] of whole numbers, as `keras.utils.pad_sequences` makes them: what
    is padding, before or after them, is no part of the text.
    """

    length: PositiveInt
    """Tokens a row. Of a longer text the rest is left out."""
    vocab: PositiveInt
    """How many different tokens there are, padding among them."""
    classes: PositiveInt
    feature: str = "inputs"
    """Which of a record's fields has the tokens."""
    label: str = "label"
    """Which has the class."""
    padding: NonNegativeInt | None = 0
    """The token that fills up short rows, at their beginning or end; None: every token counts."""
    length_feature: str = ""
    """Which of a record's fields says how many of its tokens count, the first ones; none: padding says it."""
    keep: Literal["beginning", "end"] = "beginning"
    """Which part of a text is kept that is longer than a row."""

    cuts_to_length = True

    @property
    def label_field(self) -> str:
        return self.label

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, self.length), np.int32),
            "lengths": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "targets": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        tokens = self.tokens(record)
        tokens = tokens[: self.length] if self.keep == "beginning" else tokens[-self.length :]
        return {
            "inputs": np.pad(tokens, (0, self.length - len(tokens))).astype(np.int32),
            "lengths": np.int32(len(tokens)),
            "targets": self.class_of(record, "--data.label"),
            "mask": np.float32(1),
        }

    def tokens(self, record: Record) -> np.ndarray:
        """A record's tokens without padding [n]; ValueError if it has none."""
        tokens = array(present(record, self.feature, "--data.feature"), self.feature)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise MismatchError(
                f"its {self.feature!r} is {kind(tokens)} of shape {tokens.shape}: tokens are whole numbers [n]"
            )
        if self.length_feature:
            tokens = tokens[: self.count(record, len(tokens))]
        elif self.padding is not None:
            real = np.flatnonzero(tokens != self.padding)
            tokens = tokens[real[0] : real[-1] + 1] if len(real) else tokens[:0]
        if not len(tokens):
            raise ValueError(f"its {self.feature!r} has no token but padding")
        if tokens.min() < 0 or tokens.max() >= self.vocab:
            beyond = tokens.min() if tokens.min() < 0 else tokens.max()
            raise MismatchError(
                f"its {self.feature!r} has token {beyond}, and --data.vocab {self.vocab} means 0 to {self.vocab - 1}"
            )
        return tokens

    def count(self, record: Record, most: int) -> int:
        """How many of a record's tokens count."""
        value = present(record, self.length_feature, "--data.length-feature")
        count = whole_number(value)
        if count is None or not 0 <= count <= most:
            raise MismatchError(f"its {self.length_feature!r} is {value}, and it has {most} tokens")
        return count
