"""Data set of token arrays with classes, for texts that are tokenized already."""

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
    """Token arrays with one class each; batches are as of `Sentences`.

    A batch has the tokens `inputs` [B, L], their number `lengths` [B], and the classes `targets`
    [B]. A record has its tokens as integers [n], a list or an array, as made by
    `keras.utils.pad_sequences`: padding before or after them is removed.
    """

    length: PositiveInt
    """Tokens an example. Longer texts are cut."""
    vocab: PositiveInt
    """Number of different tokens, padding included."""
    feature: str = "inputs"
    """The record's field with the tokens."""
    label: str = "label"
    """The record's field with the class."""
    padding: NonNegativeInt | None = 0
    """The padding token, at the start or end of a record's tokens; None: there is no padding."""
    length_feature: str = ""
    """The record's field with its number of tokens before padding; empty: use `padding`."""
    keep: Literal["beginning", "end"] = "beginning"
    """Which part to keep of a text longer than `length`."""

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
        """The tokens of a record without padding [n]; raises ValueError if there are none."""
        tokens = array(present(record, self.feature, "--data.feature"), self.feature)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise MismatchError(
                f"its {self.feature!r} is {kind(tokens)} of shape {tokens.shape}: tokens must be "
                f"integers [n]"
            )
        if self.length_feature:
            tokens = tokens[: self.token_count(record, len(tokens))]
        elif self.padding is not None:
            positions = np.flatnonzero(tokens != self.padding)
            tokens = tokens[positions[0] : positions[-1] + 1] if len(positions) else tokens[:0]
        if not len(tokens):
            raise ValueError(f"its {self.feature!r} has no token but padding")
        if tokens.min() < 0 or tokens.max() >= self.vocab:
            beyond = tokens.min() if tokens.min() < 0 else tokens.max()
            raise MismatchError(
                f"its {self.feature!r} has token {beyond}, but --data.vocab {self.vocab} means 0 "
                f"to {self.vocab - 1}"
            )
        return tokens

    def token_count(self, record: Record, most: int) -> int:
        """The number of a record's tokens, read from its field `length_feature`."""
        value = present(record, self.length_feature, "--data.length-feature")
        count = whole_number(value)
        if count is None or not 0 <= count <= most:
            raise MismatchError(f"its {self.length_feature!r} is {value}, but it has {most} tokens")
        return count
