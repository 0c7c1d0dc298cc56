"""The order of an epoch of any size: a permutation that a seed names, computed entry by entry and kept nowhere.

It is a Feistel network (Luby & Rackoff, 1988) on a * b numbers, the least rectangle that holds all entries. A number is
a pair (left, right) of Z_a x Z_b, and each round adds a hash of one half to the other, which can be undone whatever the
hash is; so it is a bijection. A number that falls beyond the last entry is sent through again until it does not, which
is a bijection of the entries still (cycle walking: Black & Rogaway, 2002, whose rectangle this is too).
"""

import math

import numpy as np

ROUNDS, SMALL = 8, 2**12  # few entries need more rounds until every permutation is equally likely
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd
Epoch = int | np.ndarray


def permuted(positions: np.ndarray, size: int, seed: int, epoch: Epoch) -> np.ndarray:
    """The entries at those positions [N] of an epoch's permutation of `size` entries, without a table.

    epoch: one for all positions, or one for each [N]. Positions are below `size`, which is below 2**62.
    """
    columns = math.isqrt(max(size - 1, 0)) + 1  # the least whose square is enough
    columns += (
        columns % 2
    )  # rotations of an odd number of places would make even permutations alone
    sides = np.uint64(-(-size // columns)), np.uint64(columns)
    mixed = splitmix64(
        splitmix64(np.array([seed], np.uint64)) + np.asarray(epoch, np.uint64)
    )  # [N], or [1] for all
    rounds = ROUNDS if size > SMALL else 3 * ROUNDS
    keys = np.stack(
        [splitmix64(mixed + np.uint64(number)) for number in range(rounds)]
    )  # [rounds, N or 1]
    numbers = feistel(positions.astype(np.uint64), keys, sides)
    while (beyond := np.flatnonzero(numbers >= size)).size:
        numbers[beyond] = feistel(
            numbers[beyond], keys if keys.shape[1] == 1 else keys[:, beyond], sides
        )
    return numbers.astype(np.int64)


def feistel(
    numbers: np.ndarray, keys: np.ndarray, sides: tuple[np.uint64, np.uint64]
) -> np.ndarray:
    """The image of each number [N] below a * b, by keys [rounds, N or 1]; sides (a, b)."""
    left, right = np.divmod(numbers, sides[1])
    for number, key in enumerate(keys):
        if number % 2:
            left = (left + splitmix64(right ^ key)) % sides[0]
        else:
            right = (right + splitmix64(left ^ key)) % sides[1]
    return left * sides[1] + right


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """A well mixed bijection of the numbers of 64 bits [N]: a step of SplitMix64 (Steele et al., 2014)."""
    numbers = numbers + np.uint64(GOLDEN)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
