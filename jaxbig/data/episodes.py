"""Data set of episodes: numbers from which a simulated environment begins at random."""

import dataclasses

import jax
import numpy as np

from jaxbig.constraints import NonNegativeInt, PositiveInt
from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Data, Source, Spec
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes(Data):
    """Numbers of episodes, `inputs` [B]: seeds of what is random in a simulated environment.

    A row of a training batch is an actor, one of an evaluation is an episode. The episodes to
    evaluate are 0, 1, ..., then come those to test, then those to train. No data is read.
    """

    train_examples: PositiveInt = 2**20
    """Episodes to train on; an actor draws from one number a step."""
    eval_examples: PositiveInt = 100
    """Episodes to evaluate on."""
    test_examples: NonNegativeInt = 100
    """Episodes to test on."""

    @property
    def vocab(self) -> int:
        """How many numbers there are."""
        return self.train_examples + self.eval_examples + self.test_examples

    def check_fields(self) -> None:
        if self.vocab >= 2**31:
            raise Refused(f"train_examples {self.train_examples}: all must be fewer than 2^31.")

    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch,), np.int32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def prepare(self) -> str:
        return f"episodes: {self.eval_examples}, {self.test_examples}, {self.train_examples}"

    def has_test(self) -> bool:
        return self.test_examples > 0

    def source(self, split: str) -> Source:
        known = self.eval_examples + self.test_examples
        first, end = {
            "eval": (0, self.eval_examples),
            "test": (self.eval_examples, known),
            "train": (known, self.vocab),
        }[split]
        return ArraySource(inputs=np.arange(first, end, dtype=np.int32))
