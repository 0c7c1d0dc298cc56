"""Random numbers for records that are made when they are read, the same with every NumPy: they come
from the bits of a counter-based generator, whose distributions may change and whose bits do not."""

import numpy as np


class Numbers:
    """Random numbers of one record."""

    def __init__(self, split: int, index: int):
        self.bits = np.random.Philox(key=np.array([split, index], np.uint64))

    def uniform(self, low: float, high: float) -> float:
        """From low to high."""
        return low + (high - low) * (self.bits.random_raw() >> 11) / 2**53

    def integer(self, count: int) -> int:
        """From 0 to count - 1."""
        return int(self.uniform(0, count))

    def noise(self, count: int) -> np.ndarray:
        """[count], nearly normal: sums of four uniform numbers, of variance 1."""
        fours = self.bits.random_raw(count).view(np.uint16).reshape(count, 4)
        return (fours.astype(np.float64) @ np.ones(4) / 2**16 - 2) * 3**0.5  # the sum is exact
