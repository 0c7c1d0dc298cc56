"""Contiguous reading, the small data sets made on this machine."""

import datetime
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.constraints import validate
from jaxbig.data.builtin import dates
from jaxbig.data.builtin.dates import FORMATS, Dates, decode, encode, written
from jaxbig.data.builtin.diabetes import Diabetes
from jaxbig.data.builtin.digits import Digits
from jaxbig.data.builtin.pymodule import LONGEST, PACKAGES, PyModule
from jaxbig.data.builtin.pytext import (
    PlainWindows,
    PyText,
    PyTextRows,
    Windows,
    held_out,
    library_files,
)
from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Data, Rows
from jaxbig.data.pipeline.loader import eval_batch, train_batch, train_batches
from jaxbig.data.pipeline.sampler import eval_steps
from jaxbig.errors import Refused

few = settings(max_examples=20, deadline=None)
SOME = (
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 7),
)  # bytes of a text, length of a window, rows


def numbered(size: int, length: int) -> Windows:
    """A text of no byte twice in 200, so that a place is known by what stands there."""
    return Windows((np.arange(size) % 200 + 1).astype(np.uint8), length, contiguous=True)


def specs(rows: Rows) -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in rows.items()}


def everything(data: Data, split: str) -> Rows:
    source = data.source(split)
    return source.rows(np.arange(len(source)))


# -- contiguous reading


@pytest.mark.parametrize("read", ["train", "eval"])
def test_a_batch_of_tracks_by_hand(read: str) -> None:
    """Seven windows of two bytes over three rows: tracks of three windows, the last of one."""
    source = numbered(14, 2)
    batches = [
        eval_batch(source, s, batch=3)
        if read == "eval"
        else train_batch(source, s, seed=9, batch=3)
        for s in range(3)
    ]
    targets = [[[1, 2], [7, 8], [13, 14]], [[3, 4], [9, 10], [0, 0]], [[5, 6], [11, 12], [0, 0]]]
    inputs = [[[0, 1], [6, 7], [12, 13]], [[2, 3], [8, 9], [0, 0]], [[4, 5], [10, 11], [0, 0]]]
    for batch, target, before in zip(batches, targets, inputs, strict=True):
        mask = batch["mask"].astype(int)
        assert (batch["targets"] * mask).tolist() == target
        assert (batch["inputs"] * mask).tolist() == before
    assert [batch["starts"].tolist() for batch in batches] == [[1] * 3, [0] * 3, [0] * 3]
    assert eval_steps(source, 3) == 3
    assert train_batch(source, 3, seed=0, batch=3)["starts"].tolist() == [1] * 3


@given(*SOME, st.integers(0, 3))
@few
def test_a_pass_over_tracks_holds_every_byte_once(
    size: int, length: int, batch: int, epoch: int
) -> None:
    source = numbered(size, length)
    steps = eval_steps(source, batch)
    expected = Counter(source.text.tolist())
    for made in (
        [eval_batch(source, step, batch=batch) for step in range(steps)],
        [train_batch(source, epoch * steps + step, seed=0, batch=batch) for step in range(steps)],
    ):
        assert (
            Counter(np.concatenate([rows["targets"][rows["mask"] == 1] for rows in made]).tolist())
            == expected
        )
        assert [rows["starts"].tolist() for rows in made] == [[1] * batch] + [[0] * batch] * (
            steps - 1
        )
        assert all(rows["mask"].any() for rows in made)  # a loss over nothing would be NaN


@given(*SOME, st.integers(0, 50))
@few
def test_row_continues_where_it_ended(size: int, length: int, batch: int, step: int) -> None:
    source = numbered(size, length)
    now = train_batch(source, step, seed=0, batch=batch)
    after = train_batch(source, step + 1, seed=0, batch=batch)
    continued = (after["starts"] == 0) & (after["mask"][:, 0] == 1)
    assert np.array_equal(after["inputs"][continued, 0], now["targets"][continued, -1])
    assert np.all(now["mask"][continued] == 1)


@given(*SOME, st.integers(0, 50), st.integers(0, 2**32 - 1))
@few
def test_tracks_are_the_same_for_any_processes_and_seed(
    size: int, length: int, half: int, step: int, seed: int
) -> None:
    source = numbered(size, length)
    batch = 2 * half
    whole = train_batch(source, step, seed=0, batch=batch)
    shares = [
        train_batch(source, step, seed=seed, batch=batch, rows=part)
        for part in np.split(np.arange(batch), 2)
    ]
    for name, array in whole.items():
        assert np.array_equal(array, np.concatenate([share[name] for share in shares]))
    (ahead,) = train_batches(source, range(step, step + 1), seed=seed, batch=batch, threads=1)
    assert all(np.array_equal(array, ahead[name]) for name, array in whole.items())


def test_what_is_not_contiguous_has_no_starts() -> None:
    assert "starts" not in train_batch(Windows(np.arange(9, dtype=np.uint8), 2), 0, seed=0, batch=2)
    assert "starts" not in eval_batch(ArraySource(inputs=np.arange(9)), 0, batch=2)


@given(st.binary(min_size=1, max_size=200), st.integers(1, 40))
@few
def test_plain_windows_are_the_text(text: bytes, length: int) -> None:
    source = PlainWindows(np.frombuffer(text, np.uint8), length)
    rows = source.rows(np.arange(len(source)))
    assert bytes(rows["inputs"][rows["mask"] == 1].tolist()) == text
    assert np.all(rows["inputs"][rows["mask"] == 0] == 0)


# -- shapes


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize(
    "data",
    [
        Dates(batch=7),
        Diabetes(batch=7),
        PyModule(batch=7),
        PyTextRows(batch=7, length=50),
        PyText(batch=7, length=50, contiguous=True),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_batch_has_the_shapes_and_dtypes_that_were_said(data: Any, split: str) -> None:
    assert data.prepare() == data.prepare()
    source = data.source(split)
    last = eval_batch(source, eval_steps(source, 7) - 1, batch=7)
    for batch in (train_batch(source, 3, seed=0, batch=7), eval_batch(source, 0, batch=7), last):
        assert specs(batch) == data.spec()
        if hasattr(data, "vocab"):
            assert batch["inputs"].min() >= 0 and batch["inputs"].max() < data.vocab


# -- dates


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("{d} {month} {year}", "9 May 1998"),
        ("{weekday}, {dd}.{mm}.{yy}", "Saturday, 09.05.98"),
        ("{month} the {nth}, {year}", "May the 9th, 1998"),
        ("{m}/{d}/{yy}", "5/9/98"),
        ("{year}-{mm}-{dd}", "1998-05-09"),
        ("{day} {mon} {d} {year}", "Sat May 9 1998"),
    ],
)
def test_a_day_is_written(form: str, text: str) -> None:
    assert form in FORMATS and written(datetime.date(1998, 5, 9), form) == text


def test_ordinals() -> None:
    of_day = [
        written(datetime.date(2000, 1, day), "{nth}")
        for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 31)
    ]
    assert of_day == [
        "1st",
        "2nd",
        "3rd",
        "4th",
        "11th",
        "12th",
        "13th",
        "21st",
        "22nd",
        "23rd",
        "31st",
    ]


def test_no_text_is_of_two_days() -> None:
    """In any formats; includes all years whose two digits could be a day or a month."""
    last = dates.FIRST + datetime.timedelta(days=dates.DAYS - 1)
    assert last == datetime.date(2029, 12, 31) and len(set(FORMATS)) == len(FORMATS) >= 30
    days = [
        datetime.date(2000, 12, 20) + datetime.timedelta(days=number) for number in range(12 * 366)
    ]
    read: dict[str, datetime.date] = {}
    for day in days:
        for form in FORMATS:
            assert read.setdefault(written(day, form).lower(), day) == day
    assert max(map(len, read)) <= dates.LENGTH and set().union(*read) <= set(dates.ALPHABET)


@given(st.text(dates.ALPHABET, max_size=40))
@few
def test_decoding_undoes_encoding(text: str) -> None:
    tokens = encode(text)
    assert len(tokens) == len(text) and (
        not text or 3 <= tokens.min() <= tokens.max() < Dates.vocab
    )
    padded = np.concatenate([[Dates.start], tokens, [Dates.end], tokens[:3], [0]])
    assert decode(tokens) == decode(padded) == text


def test_dates_are_read_back_as_the_days_they_are() -> None:
    data = Dates(batch=1)
    data.prepare()
    days: dict[str, set[str]] = {}
    for split, count in (("train", 10_000), ("eval", 1_000)):
        rows = everything(data, split)
        targets = [decode(row) for row in rows["targets"]]
        assert len(targets) == count == len(set(targets)) and np.all(
            rows["targets"][:, -1] == Dates.end
        )
        days[split] = set(targets)
        forms: Counter[str] = Counter()
        for row, length, target in list(zip(rows["inputs"], rows["lengths"], targets, strict=True))[
            :1_000
        ]:
            text = decode(row)
            day = datetime.date.fromisoformat(target)
            assert len(text) == length and np.all(row[length:] == 0)
            fitting = [form for form in FORMATS if written(day, form).lower() == text.lower()]
            assert fitting and (
                text in (text.lower(), text.upper()) or text in [written(day, f) for f in fitting]
            )
            forms[fitting[0]] += 1
        assert len(forms) == len(FORMATS) and max(forms.values()) < 3_000 / len(FORMATS)
        assert 0.2 < np.mean([decode(row).isupper() for row in rows["inputs"]]) < 0.4
    assert not days["train"] & days["eval"]


# -- diabetes


def test_diabetes_is_scikit_learns_standardized_by_its_training_rows() -> None:
    data = Diabetes(batch=1)
    data.prepare()
    train = everything(data, "train")
    held = everything(data, "eval")
    assert (len(train["targets"]), len(held["targets"])) == (353, 89)
    for rows in (train["inputs"], train["targets"]):
        np.testing.assert_allclose(rows.mean(0, dtype=np.float64), 0, atol=1e-6)
        np.testing.assert_allclose(rows.std(0, dtype=np.float64), 1, atol=1e-6)
    x, y = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    for ours, theirs in ((np.concatenate([train["inputs"], held["inputs"]]), x), (0, y[:, None])):
        ours = (
            np.concatenate([train["targets"], held["targets"]])[:, None]
            if isinstance(ours, int)
            else ours
        )
        # a linear map undoes the standardizing, and every patient occurs once
        for column in range(theirs.shape[1]):
            a = np.sort(ours[:, column].astype(np.float64))
            b = np.sort(theirs[:, column])
            slope, offset = np.polyfit(a, b, 1)
            np.testing.assert_allclose(slope * a + offset, b, atol=1e-4 * np.abs(b).max())


# -- lines of packages


def test_lines_are_of_their_package_and_in_no_training_file() -> None:
    data = PyModule(batch=1)
    data.prepare()
    where: dict[bytes, set[tuple[str, bool]]] = {}
    for name, text in library_files().items():
        for line in {line.strip() for line in text.split(b"\n")}:
            where.setdefault(line, set()).add((name.split("/")[0], held_out(name)))
    seen: list[bytes] = []
    for split in ("train", "eval"):
        rows = everything(data, split)
        assert set(rows["targets"]) == set(range(data.classes))
        assert max(Counter(rows["targets"].tolist()).values()) <= 3_000
        for row, length, target in zip(
            rows["inputs"], rows["lengths"], rows["targets"], strict=True
        ):
            line = bytes(row[:length].tolist())
            seen.append(line)
            assert 20 <= length <= LONGEST and not row[length:].any()
            assert {package for package, _ in where[line]} == {PACKAGES[target]}
            assert split == ("eval" if all(held for _, held in where[line]) else "train")
    assert len(seen) == len(set(seen)) > 20_000


def test_fewer_digits_are_the_first_ones_of_training_alone() -> None:
    few = Digits(batch=4, train_examples=20)
    few.prepare()
    assert (len(few.source("train")), len(few.source("eval"))) == (20, 360)
    rows = few.source("train").rows(np.arange(20))["inputs"]
    all_rows = Digits(batch=4).source("train").rows(np.arange(20))["inputs"]
    np.testing.assert_array_equal(rows, all_rows)
    with pytest.raises(Refused, match="train-examples 1438: there are 1437"):
        validate(Digits(batch=4, train_examples=1438), "data")
