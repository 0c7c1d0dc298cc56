"""A seeded permutation of any size, computed entry by entry without a table.

It is a Feistel network (Luby & Rackoff, 1988) on a * b numbers, the smallest rectangle that holds
all entries. A number is a pair (left, right) of Z_a x Z_b. Each round adds a hash of one half to
the other, which can be undone whatever the hash is, so the network is a bijection. A number past
the last entry is sent through again until it is not: still a bijection of the entries (cycle
walking: Black & Rogaway, 2002, who use this rectangle too).
"""

import math

import numpy as np

ROUNDS = 8
SMALL = 2**12
"""Up to this size more rounds are needed until every permutation is equally likely."""
GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio; odd."""
Epoch = int | np.ndarray


def permuted(positions: np.ndarray, size: int, seed: int, epoch: Epoch) -> np.ndarray:
    """The entries at these positions of an epoch's permutation of `size` entries.

    Args:
      positions: Positions below `size`, [N].
      size: Number of entries, below 2**62.
      seed: Seed of the permutations.
      epoch: One epoch for all positions, or one for each, [N].

    Returns:
      The entries, [N] int64.
    """
    columns = math.isqrt(max(size - 1, 0)) + 1  # the least whose square is enough
    columns += columns % 2  # an odd number would give even permutations only
    sides = np.uint64(-(-size // columns)), np.uint64(columns)
    # [N], or [1] for one epoch
    mixed = splitmix64(splitmix64(np.array([seed], np.uint64)) + np.asarray(epoch, np.uint64))
    rounds = ROUNDS if size > SMALL else 3 * ROUNDS
    # [rounds, N or 1]
    keys = np.stack([splitmix64(mixed + np.uint64(number)) for number in range(rounds)])
    numbers = feistel(positions.astype(np.uint64), keys, sides)
    while (beyond := np.flatnonzero(numbers >= size)).size:
        keys_beyond = keys if keys.shape[1] == 1 else keys[:, beyond]
        numbers[beyond] = feistel(numbers[beyond], keys_beyond, sides)
    return numbers.astype(np.int64)


def feistel(
    numbers: np.ndarray, keys: np.ndarray, sides: tuple[np.uint64, np.uint64]
) -> np.ndarray:
    """The image of each number below a * b, [N].

    Args:
      numbers: The numbers, [N].
      keys: Round keys, [rounds, N or 1].
      sides: (a, b).
    """
    left, right = np.divmod(numbers, sides[1])
    for number, key in enumerate(keys):
        if number % 2:
            left = (left + splitmix64(right ^ key)) % sides[0]
        else:
            right = (right + splitmix64(left ^ key)) % sides[1]
    return left * sides[1] + right


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea & Flood, 2014): a well-mixed bijection of uint64 [N]."""
    numbers = numbers + np.uint64(GOLDEN)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
