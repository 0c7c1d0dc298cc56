"""A source of examples that are arrays in memory."""

import numpy as np

from jaxbig.data.core.dataset import Rows


class ArraySource:
    """A source over arrays in memory, each [examples, ...]; every row counts."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays = {**arrays, "mask": np.ones(len(next(iter(arrays.values()))), np.float32)}

    def __len__(self) -> int:
        return len(self.arrays["mask"])

    def rows(self, indices: np.ndarray) -> Rows:
        return {name: array[indices] for name, array in self.arrays.items()}
