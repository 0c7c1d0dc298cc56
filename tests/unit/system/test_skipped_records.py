"""Skipped records of several processes: counted over the run, equal where rows are the same."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxbig.data.core.dataset import Rows
from jaxbig.data.core.examples import RecordSource
from jaxbig.errors import Failed
from jaxbig.train import batch_loader, skipped_records
from jaxbig.train.skipped_records import agree_on_skipped

ROWS = {0: np.arange(4), 1: np.arange(4), 2: np.arange(4, 8), 3: np.arange(4, 8)}
"""Two processes each read the same half of a batch, as with an axis `tensor` over hosts."""


def source(bad: set[int], skip: int = 2) -> RecordSource:
    empty: Rows = {"mask": np.zeros((), np.float32)}
    reading = RecordSource(
        [{"x": n} for n in range(20)], lambda record: {"mask": np.float32(1)}, empty, skip
    )
    reading.bad = bad
    return reading


def outcome(
    monkeypatch: pytest.MonkeyPatch, bad: dict[int, set[int]], held_out: dict[int, set[int]]
) -> list[Any]:
    """What happens on each of four processes, each having skipped these records of two splits."""
    said: list[Any] = []

    def act(number: int, gather: Any) -> Any:
        monkeypatch.setattr(skipped_records, "gather", gather)
        both = source(bad.get(number, set())), source(held_out.get(number, set()))
        try:
            return agree_on_skipped(both, ROWS[number])
        except Failed as failed:
            return str(failed)

    monkeypatch.setattr(jax, "process_count", lambda: 4)
    for number in ROWS:
        act(number, lambda value: said.append(value) or [value])
    return [act(number, lambda value: said) for number in ROWS]


@pytest.mark.parametrize(
    ("bad", "held_out", "words"),
    [
        ({}, {}, None),
        ({0: {5}, 1: {5}}, {2: {1}, 3: {1}}, None),
        ({0: {5}, 1: {5}, 2: {6}, 3: {6}}, {}, None),
        (
            {0: {5}, 1: {5}, 2: {5}, 3: {5}},
            {},
            None,
        ),  # in another epoch: the same record counts once
        (
            {0: {5, 7}, 1: {5, 7}, 2: {6}, 3: {6}},
            {},
            "3 records cannot be read, by one process or another, and 2",
        ),
        ({}, {0: {5, 7}, 1: {5, 7}, 2: {6}, 3: {6}}, "record 5; record 6; record 7"),
        ({0: {5}}, {}, "process 0 could not read record 5, and process 1 could"),
        ({3: {5}}, {}, "process 3 could not read record 5, and process 2 could"),
        ({}, {2: {1, 4}, 3: {4}}, "process 2 could not read record 1, and process 3 could"),
    ],
)
def test_what_processes_left_out_is_compared_where_they_read_the_same_and_counted_over_all(
    monkeypatch: pytest.MonkeyPatch,
    bad: dict[int, set[int]],
    held_out: dict[int, set[int]],
    words: str | None,
) -> None:
    said = outcome(monkeypatch, bad, held_out)
    assert said == [said[0]] * 4 and (said[0] is None if words is None else words in said[0])


def test_nothing_is_sent_where_nothing_may_be_left_out_or_a_process_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(skipped_records, "gather", lambda value: 1 / 0)
    agree_on_skipped([source({5}, skip=2)], ROWS[0])
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    agree_on_skipped([source(set(), skip=0), object()], ROWS[0])


@pytest.mark.parametrize(("processes", "share"), [(1, 1000), (8, 125), (3, 333), (2000, 1)])
def test_what_a_host_may_read_ahead_is_shared_by_its_processes(
    monkeypatch: pytest.MonkeyPatch, processes: int, share: int
) -> None:
    from support.experiments import small

    monkeypatch.setattr(batch_loader, "processes_on_this_host", lambda: processes)
    assert batch_loader.read_ahead_limit(small("digits_convnet", read_ahead=1000)) == share
