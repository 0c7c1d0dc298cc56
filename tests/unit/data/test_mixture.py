"""Mixtures: shares that hold at any moment, and each part's passes whole."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.data.core.dataset import Record, Records, Spec
from jaxbig.data.core.examples import Example, Examples
from jaxbig.data.core.permutation import GOLDEN, permuted
from jaxbig.data.pipeline.loader import eval_batch, train_batch, train_batches
from jaxbig.data.pipeline.sampler import eval_steps
from jaxbig.data.records.mixture import (
    RANGE,
    Mixture,
    OpenMixture,
    Relabeled,
    Weights,
    below,
    floor_sum,
)
from jaxbig.errors import Failed, Refused

few = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers(Records):
    """The numbers from `first` on."""

    first: int = 0
    train: int = 10
    held_out: int = 3
    many: bool = False

    def open(self, split: str) -> Sequence[Record]:
        size = self.train if split == "train" else self.held_out
        return (Many if self.many else One)(self.first, size)


class One(Sequence[Record]):
    def __init__(self, first: int, size: int):
        self.first = first
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Record:
        assert type(index) is int and 0 <= index < self.size
        return {"number": self.first + index}

    def where(self, index: int) -> str:
        return f"line {index} of {self.first}.txt"


class Many(One):
    def __getitems__(self, indices: list[int]) -> list[Record]:
        return [self[index] for index in indices]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Examples):
    def spec(self) -> Spec:
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch,), np.int64),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        if record["number"] == 104:
            raise ValueError("a typing error")
        return {"inputs": np.int64(record["number"]), "mask": np.float32(1)}


def mixture(
    weights: tuple[float, ...] = (0.7, 0.2, 0.1), sizes: tuple[int, ...] = (37, 1_000, 5)
) -> Mixture:
    parts = [
        Numbers(first=1_000 * place, train=size, many=place == 1)
        for place, size in enumerate(sizes)
    ]
    return Mixture(parts=tuple(parts), weights=weights)


def owners(mixed: OpenMixture, seed: int, first: int, count: int) -> np.ndarray:
    return mixed.owners(mixed.draw(seed, np.arange(first, first + count)))


# -- counting


@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 120), st.integers(0, 120))
def test_a_floor_sum_is_the_sum_of_floors(count: int, divisor: int, slope: int, start: int) -> None:
    assert floor_sum(count, divisor, slope, start) == sum(
        (slope * i + start) // divisor for i in range(count)
    )


@given(st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(0, 2**64))
@settings(deadline=None)
def test_below_counts_without_visiting_the_samples(count: int, offset: int, bound: int) -> None:
    assert below(count, offset, bound) == sum(
        (n * GOLDEN + offset) % RANGE < bound for n in range(count)
    )


# -- shares


@pytest.mark.parametrize(
    "weights", [(0.7, 0.2, 0.1), (7, 2, 1), (0.5, 0.3, 0.15, 0.05), (1, 1), (0.9, 0.099, 0.001)]
)
def test_shares_hold_in_every_thousand_consecutive_examples(weights: tuple[float, ...]) -> None:
    mixed = mixture(weights, (50_000,) * len(weights)).open("train")
    draw = np.random.default_rng(0)
    for seed in draw.integers(0, 2**32, 50).tolist():
        found = owners(mixed, seed, int(draw.integers(0, 2**50)), 10_000)
        for part, weight in enumerate(weights):
            before = np.cumsum([0, *(found == part)])
            counts = before[1_000:] - before[:-1_000]  # of every window
            assert np.all(np.abs(counts - 1_000 * weight / sum(weights)) <= 2.5)


def test_a_part_of_a_thousandth_comes_again_and_again_and_never_twice_at_once() -> None:
    mixed = mixture((0.999, 0.001), (100, 10)).open("train")
    for seed in range(20):
        gaps = np.diff(np.flatnonzero(owners(mixed, seed, 0, 60_000)))
        assert 55 < len(gaps) < 61 and gaps.min() > 500 and gaps.max() < 2_000


def test_seeds_draw_differently() -> None:
    mixed = mixture().open("train")
    assert len({tuple(mixed.draw(seed, np.arange(30))) for seed in range(50)}) == 50


# -- passes


@given(SEEDS, st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 10)), min_size=1, max_size=5))
@few
def test_each_pass_over_a_part_holds_each_of_its_records_once(
    seed: int, parts: list[tuple[int, float]]
) -> None:
    sizes, weights = zip(*parts, strict=True)
    mixed = mixture(weights, sizes).open("train")
    indices = mixed.draw(seed, np.arange(2_000))
    for part, size in enumerate(sizes):
        own = indices[mixed.owners(indices) == part] - mixed.begins[part]
        passes = own[: len(own) // size * size].reshape(-1, size)
        assert np.array_equal(np.sort(passes), np.tile(np.arange(size), (len(passes), 1)))
        rest = own[len(own) // size * size :]
        assert len(set(rest.tolist())) == len(rest)


@given(SEEDS, st.integers(0, 2**40), st.integers(1, 50))
@few
def test_a_batch_is_a_function_of_seed_and_place_alone(seed: int, first: int, batch: int) -> None:
    mixed = mixture().open("train")
    whole = mixed.draw(seed, np.arange(first, first + 3 * batch))
    parts = [
        mixed.draw(seed, np.arange(begin, begin + batch))
        for begin in range(first, first + 3 * batch, batch)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_parts_of_one_size_have_orders_of_their_own() -> None:
    mixed = mixture((1, 1), (50, 50)).open("train")
    indices = mixed.draw(0, np.arange(300))
    one, other = (
        indices[mixed.owners(indices) == part][:50] - mixed.begins[part] for part in (0, 1)
    )
    assert one.tolist() == permuted(np.arange(50), 50, 2**32, 0).tolist() != other.tolist()


def test_drawn_indices_never_change() -> None:
    mixed = mixture().open("train")
    assert mixed.draw(3, np.arange(12)).tolist() == [
        2,
        551,
        31,
        1037,
        5,
        7,
        341,
        1,
        28,
        20,
        16,
        1041,
    ]
    assert mixed.draw(3, np.arange(10**12, 10**12 + 12)).tolist() == [
        32,
        25,
        0,
        855,
        15,
        18,
        187,
        17,
        1041,
        3,
        16,
        492,
    ]


# -- as records


def numbers(rows: Any) -> list[int]:
    return rows["inputs"][rows["mask"] == 1].tolist()


def test_mixture_data_set_draws_the_same_for_any_processes_and_readers() -> None:
    data = Plain(batch=8, records=mixture())
    source = data.source("train")
    mixed = data.records.open("train")
    for step in (0, 1_000):
        expected = [
            mixed[int(index)]["number"]
            for index in mixed.draw(5, np.arange(8 * step, 8 * step + 8))
        ]
        assert numbers(train_batch(source, step, seed=5, batch=8)) == expected
        shares = [
            train_batch(source, step, seed=5, batch=8, rows=part)
            for part in np.split(np.arange(8), 4)
        ]
        assert [number for share in shares for number in numbers(share)] == expected
        (ahead,) = train_batches(source, range(step, step + 1), seed=5, batch=8, threads=2)
        assert numbers(ahead) == expected


def test_evaluation_reads_every_part_once_in_order() -> None:
    source = Plain(batch=4, records=mixture()).source("eval")
    found = [
        number
        for step in range(eval_steps(source, 4))
        for number in numbers(eval_batch(source, step, batch=4))
    ]
    assert found == [0, 1, 2, 1_000, 1_001, 1_002, 2_000, 2_001, 2_002]


def test_many_records_are_read_as_one_by_one() -> None:
    mixed = mixture().open("train")
    some = [0, 1_036, 40, 1_041, 36, 40, 37, 1_037]
    assert mixed.__getitems__(some) == [mixed[index] for index in some]
    assert [record["number"] for record in mixed.__getitems__(some)] == [
        0,
        1_999,
        1_003,
        2_004,
        36,
        1_003,
        1_000,
        2_000,
    ]


def test_a_bad_record_is_named_by_its_part() -> None:
    parts = (Numbers(), Numbers(first=100))
    source = Plain(batch=4, records=Mixture(parts=parts, weights=(1, 1))).source("train")
    with pytest.raises(
        Failed, match=r"line 4 of 100.txt of part 2 cannot be read: ValueError: a typing error"
    ):
        source.rows(np.arange(20))


def test_the_identity_holds_weights_and_parts() -> None:
    identities = {
        mixture(weights, sizes).prepare()
        for weights in ((1, 2), (2, 1))
        for sizes in ((3, 4), (3, 5))
    }
    assert len(identities) == 4


@pytest.mark.parametrize(
    ("weights", "sizes", "said"),
    [
        ((1, 2), (3, 4, 5), "3 parts has 2 weights"),
        ((), (), "0 parts has 0 weights"),
        ((1, 0), (3, 4), r"\(1, 0\): each must be above 0"),
        ((1, -1), (3, 4), "each must be above 0"),
        ((1, float("nan")), (3, 4), "each must be above 0"),
        ((1, float("inf")), (3, 4), "each must be above 0"),
        ((1, 1), (3, 0), r"part 2 of a mixture, Numbers\(.*, has no record in train"),
    ],
)
def test_invalid_mixture_is_refused(weights: Any, sizes: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        mixture(weights, sizes).open("train")


def test_a_mixture_of_mixtures_is_refused() -> None:
    with pytest.raises(Refused, match="part 1 of a mixture is a mixture itself"):
        Mixture(parts=(mixture(), Numbers()), weights=(1, 1)).open("train")


# -- weights that change


LATER = (Weights(start=300, weights=(0, 1, 1)), Weights(start=1_000, weights=(1, 1, 0)))


def test_later_weights_hold_from_their_sample_on() -> None:
    parts = tuple(Numbers(train=size) for size in (40, 50, 60))
    mixed = Mixture(parts=parts, weights=(3, 1, 0), later=LATER).open("train")
    indices = mixed.draw(5, np.arange(2_000))
    found = mixed.owners(indices)
    for begin, end, shares in (
        (0, 300, (0.75, 0.25, 0)),
        (300, 1_000, (0, 0.5, 0.5)),
        (1_000, 2_000, (0.5, 0.5, 0)),
    ):
        counts = np.bincount(found[begin:end], minlength=3)
        np.testing.assert_allclose(counts, np.array(shares) * (end - begin), atol=2.5)
    batches = [mixed.draw(5, np.arange(begin, begin + 80)) for begin in range(0, 2_000, 80)]
    assert np.array_equal(np.concatenate(batches), indices)
    for part, size in enumerate((40, 50, 60)):
        own = indices[found == part]
        passes = own[: len(own) // size * size].reshape(-1, size)
        assert all(len(set(each)) == size for each in passes.tolist())


def test_identity_holds_later_weights_and_is_unchanged_without() -> None:
    plain = mixture((1, 2), (3, 4))
    later = dataclasses.replace(plain, later=(Weights(start=9, weights=(2, 1)),))
    assert "from 9" not in plain.prepare() and "from 9 on 2 1" in later.prepare()


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (((0, (1, 1)),), "start at samples 0: each must be after"),
        (((9, (1, 1)), (9, (1, 2))), "start at samples 9, 9: each must be after"),
        (((9, (1, 1, 1)),), r"2 parts has the weights \(1, 1, 1\) from sample 9 on"),
        (((9, (0, 0)),), "not all of them 0"),
        (((9, (1, -1)),), "0 or more"),
    ],
)
def test_invalid_later_weights_are_refused(later: Any, said: str) -> None:
    given = tuple(Weights(start=start, weights=weights) for start, weights in later)
    with pytest.raises(Refused, match=said):
        dataclasses.replace(mixture((1, 2), (3, 4)), later=given).open("train")


# -- classes by name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Animals(Records):
    """A record an animal, whose label is its place among them; as folders of images have them."""

    classes: tuple[str, ...] = ()

    def open(self, split: str) -> Sequence[Record]:
        return [
            {"name": name, "label": label} for label, name in enumerate(self.classes or ("?", "?"))
        ]


def animals(*parts: str) -> Mixture:
    return Mixture(
        parts=tuple(Animals(classes=tuple(part.split())) for part in parts),
        weights=(1,) * len(parts),
    )


def test_a_class_is_one_number_in_all_parts() -> None:
    mixed = animals("cat dog", "ant cat dog", "bee cat")
    assert mixed.classes == ("ant", "bee", "cat", "dog")
    opened = mixed.open("train")
    found = opened.__getitems__(list(range(len(opened))))
    assert [(each["name"], each["label"]) for each in found] == [
        *[("cat", 2), ("dog", 3)],
        *[("ant", 0), ("cat", 2), ("dog", 3)],
        *[("bee", 1), ("cat", 2)],
    ]


def test_label_of_no_class_is_no_class_in_a_mixture() -> None:
    unlabelled = [
        {"label": -1},
        {"label": np.int64(0)},
        {"label": 1},
    ]  # as TFDS has splits without labels
    assert [each["label"] for each in Relabeled(unlabelled, [2, 3])] == [-1, 2, 3]
    with pytest.raises(IndexError):
        Relabeled([{"label": 2}], [2, 3])[0]


def test_parts_of_the_same_classes_and_numbers_keep_them() -> None:
    mixed = animals("cat dog", "cat dog", "")
    assert mixed.classes == ("cat", "dog") and "mixture of" in mixed.prepare()
    assert [record["label"] for record in mixed.open("train")] == [0, 1, 0, 1, 0, 1]


def test_numbers_alone_beside_other_names_are_refused() -> None:
    with pytest.raises(
        Refused, match=r"other classes \(cat dog; ant cat\), and part 3 has no names of its own"
    ):
        animals("cat dog", "ant cat", "").prepare()
