"""Permutations without a table: bijections of any size, evenly spread, the same for ever."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.data.core.permutation import permuted
from jaxbig.data.pipeline.sampler import MAX_TABLE

few = settings(max_examples=40, deadline=None)


def whole(size: int, seed: int, epoch: int = 0) -> np.ndarray:
    return permuted(np.arange(size), size, seed, epoch)


def even(counts: np.ndarray) -> bool:
    """Whether counts fit equally likely cells; seeds are fixed, so the result never varies."""
    return scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.slow
def test_two_thousand_sizes_and_seeds_are_bijections() -> None:
    draw = np.random.default_rng(0)
    sizes = np.concatenate(
        [np.arange(1, 300), np.exp(draw.uniform(0, np.log(1_000), 1_690)).astype(int) + 1]
    )
    sizes = np.concatenate(
        [
            sizes,
            [4_096, 4_097, 65_536, 99_991, 2**17, 300_007, 640_000, 999_983, 999_999, 10**6, 2**20],
        ]
    )
    assert len(sizes) == 2_000
    for size, seed, epoch in zip(
        sizes, draw.integers(0, 2**32, 2_000), draw.integers(0, 2**40, 2_000), strict=True
    ):
        found = whole(int(size), int(seed), int(epoch))
        assert found.min() == 0 and np.array_equal(np.bincount(found), np.ones(size, int)), (
            size,
            seed,
            epoch,
        )


@given(st.integers(1, 3_000), st.integers(0, 2**32 - 1), st.integers(0, 2**40))
@few
def test_any_size_and_seed_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.bincount(whole(size, seed, epoch)), np.ones(size, int))


def test_permutation_never_changes() -> None:
    assert whole(10, 0).tolist() == [4, 9, 1, 7, 8, 6, 5, 0, 3, 2]
    assert permuted(np.arange(5), 10**9, 3, 2).tolist() == [
        734644605,
        700910661,
        992718016,
        484820622,
        716558414,
    ]
    assert permuted(np.arange(2**40 - 3, 2**40), 2**40, 2**32 - 1, 10**6).tolist() == [
        119606843149,
        684463949687,
        107433320639,
    ]


def mixed(number: int) -> int:
    """SplitMix64 in Python's integers."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) % 2**64
    return number ^ (number >> 31)


@given(st.integers(1, 2**50), st.integers(0, 2**32 - 1), st.integers(0, 2**50), st.data())
@few
def test_permutation_is_the_documented_network(
    size: int, seed: int, epoch: int, draw: st.DataObject
) -> None:
    """Written again, one number at a time."""
    place = number = draw.draw(st.integers(0, size - 1))
    columns = next(c for c in range(math.isqrt(size), 2**60) if c * c >= size and c % 2 == 0)
    rows = math.ceil(Fraction(size, columns))
    key = mixed((mixed(seed) + epoch) % 2**64)
    while True:
        left, right = divmod(number, columns)
        for turn in range(8 if size > 4_096 else 24):
            salt = mixed((key + turn) % 2**64)
            if turn % 2 == 0:
                right = (right + mixed(left ^ salt)) % 2**64 % columns
            else:
                left = (left + mixed(right ^ salt)) % 2**64 % rows
        number = left * columns + right
        if number < size:
            break
    assert permuted(np.array([place]), size, seed, epoch).tolist() == [number]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7])
def test_every_permutation_of_few_entries_is_equally_likely(size: int) -> None:
    epochs = np.arange(100_000)
    orders = np.stack(
        [permuted(np.full(len(epochs), place), size, 7, epochs) for place in range(size)]
    )
    numbers = np.ravel_multi_index(list(orders), (size,) * size)
    counts = np.unique(numbers, return_counts=True)[1]
    assert len(counts) == np.prod(np.arange(1, size + 1)) and even(counts)


@pytest.mark.parametrize("size", [12, 97, 1_000, 4_096, 4_097])
def test_two_places_hold_every_pair_equally_often(size: int) -> None:
    epochs = np.arange(200_000)
    first, second = (permuted(np.full(len(epochs), place), size, 3, epochs) for place in (0, 1))
    assert np.all(first != second)
    step = (second - first) % size  # 1 .. size - 1, each equally likely
    assert even(np.bincount(step)[1:])
    assert even(np.bincount(first)) and even(np.bincount(second))


@pytest.mark.parametrize("size", [10**6, 2**20, MAX_TABLE + 3, 10**9, 2**40])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_values_and_successive_values_are_evenly_spread(size: int, seed: int) -> None:
    found = permuted(np.arange(200_000), size, seed, 5)
    cells = found // -(-size // 32)  # 0 .. 31
    ends = np.diff([*(-(-size // 32) * np.arange(32)), size]) / size
    expected = np.outer(ends, ends).ravel()
    pairs = np.bincount(cells[:-1:2] * 32 + cells[1::2], minlength=1_024)
    assert scipy.stats.chisquare(pairs, expected * pairs.sum()).pvalue > 1e-3
    assert scipy.stats.chisquare(np.bincount(found % 64)).pvalue > 1e-3
    assert abs(scipy.stats.spearmanr(found[:-1], found[1:]).statistic) < 0.01


def test_seeds_and_epochs_have_permutations_of_their_own() -> None:
    orders = np.array([whole(5_000, seed, epoch) for seed in range(10) for epoch in range(10)])
    same = (orders[:, None] == orders[None]).sum(-1)  # of two random ones about one place is
    assert np.all(same[~np.eye(100, dtype=bool)] < 12)


@given(
    st.integers(1, 5_000), st.integers(0, 2**32 - 1), st.integers(0, 2**50), st.integers(0, 10**9)
)
@few
def test_positions_give_the_same_alone_or_together_in_any_epoch(
    size: int, seed: int, epoch: int, number: int
) -> None:
    places = np.random.default_rng(number).integers(0, size, 7)
    epochs = epoch + np.arange(7)
    together = permuted(places, size, seed, epochs)
    assert together.tolist() == [
        permuted(places[i : i + 1], size, seed, epoch + i)[0] for i in range(7)
    ]
