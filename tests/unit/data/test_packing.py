"""Packing: each token once, rows of one length, little padding; rows that are cached or corrupt."""

import itertools
import multiprocessing
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.data.builtin.pytext import library_files
from jaxbig.data.tokenize.packing import from_bytes, pack, packed, to_bytes
from jaxbig.errors import Refused

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
often = settings(max_examples=200, deadline=None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXBIG_CACHE", str(folder))
    return folder


def numbered(lengths: list[int]) -> list[np.ndarray]:
    """Documents of those lengths whose tokens are all different: 0, 1, 2, ..."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(start, end) for start, end in itertools.pairwise(ends.tolist())]


# -- placement of documents


@given(LENGTHS, st.integers(1, 16), st.integers(1, 6))
@often
def test_each_token_is_in_one_row_in_order(lengths: list[int], row: int, most: int) -> None:
    documents = numbered(lengths)
    rows = list(pack(documents, row, most))
    assert all(0 < sum(map(len, row_pieces)) <= row for row_pieces in rows)
    flat = [piece.tolist() for row_pieces in rows for piece in row_pieces]
    flat = sorted(flat, key=lambda piece: piece[0])
    cut = [
        document[start : start + row].tolist()
        for document in documents
        for start in range(0, len(document), row)
    ]
    assert flat == cut


@given(LENGTHS, st.integers(1, 16))
@often
def test_pieces_are_placed_by_best_fit(lengths: list[int], row: int) -> None:
    """Compares with a search through all rows, all of which are open."""
    full = []
    rows = []
    for document in numbered(lengths):
        for start in range(0, len(document), row):
            piece = document[start : start + row].tolist()
            fitting = [other for other in rows if sum(map(len, other)) + len(piece) <= row]
            if len(piece) == row:
                full.append([piece])
            elif fitting:
                fullest = max(fitting, key=lambda other: sum(map(len, other)))  # the first of them
                fullest.append(piece)
            else:
                rows.append([piece])
    packed_rows = pack(numbered(lengths), row, 1000)
    found = [[piece.tolist() for piece in row_pieces] for row_pieces in packed_rows]
    assert sorted(found) == sorted(full + rows)


def test_packing_by_hand() -> None:
    packed_rows = pack(numbered([3, 0, 9, 1, 2, 2]), 4)
    rows = [[piece.tolist() for piece in row_pieces] for row_pieces in packed_rows]
    # documents 0-2, 3-11, 12, 13-14, 15-16: 3-11 is cut; 11 completes 0-2; 12 joins 13-14; 15-16 is
    # alone
    assert rows == [
        [[3, 4, 5, 6]],
        [[7, 8, 9, 10]],
        [[0, 1, 2], [11]],
        [[12], [13, 14]],
        [[15, 16]],
    ]


def test_documents_are_read_lazily() -> None:
    """Memory is bounded: few rows are open, and only the rest of a long document is in memory."""
    read = 0

    def many() -> Iterator[np.ndarray]:
        nonlocal read
        for read in range(1, 1000):  # noqa: B007
            yield np.zeros(7)  # in rows of 10 no two fit together

    rows = pack(many(), 10, max_open=5)
    for asked in range(1, 100):
        next(rows)
        assert read == asked + 5
    (rest,) = next(pack([np.zeros(7)], 10))
    assert rest.base is None
    full = pack(map(np.zeros, iter([3, 7, 10, "not read"])), 10)  # type: ignore[call-overload]
    assert [[len(piece) for piece in next(full)] for _ in range(2)] == [[3, 7], [10]]


@pytest.mark.parametrize("length", [256, 512, 1024])
def test_rows_have_little_padding(length: int) -> None:
    """For the files of the standard library and for their paragraphs, mostly shorter than a row."""
    files = list(library_files().values())
    for texts, bound in (
        (files, 0.002),
        ([part for file in files for part in file.split(b"\n\n")], 0.01),
    ):
        documents = [np.frombuffer(text, np.uint8) for text in texts]
        rows = sum(1 for _ in pack(documents, length))
        assert 0 <= 1 - sum(map(len, documents)) / (rows * length) < bound


# -- serialized rows


@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=9)
)
@often
def test_row_round_trips(parts: list[list[int]]) -> None:
    row = from_bytes(to_bytes([np.array(piece) for piece in parts]), 100)
    rest = [0] * (100 - sum(map(len, parts)))
    assert row["tokens"].tolist() == [token for piece in parts for token in piece] + rest
    assert (
        row["segments"].tolist()
        == [number for number, piece in enumerate(parts, 1) for _ in piece] + rest
    )
    assert (
        row["positions"].tolist()
        == [place for piece in parts for place in range(len(piece))] + rest
    )
    assert {each.dtype for each in row.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    "token, width", [(255, 1), (256, 2), (65_535, 2), (65_536, 4), (2**31 - 1, 4)]
)
def test_tokens_have_the_bytes_that_the_largest_needs(token: int, width: int) -> None:
    assert len(to_bytes([np.array([1, token]), np.array([0])])) == 4 * (2 + 2) + 3 * width


# -- cached rows


def documents() -> Iterator[np.ndarray]:
    return (np.arange(n % 23) + n for n in range(200))


def test_rows_are_cached_and_read_in_any_order(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jaxbig")
    reader = packed("these", documents, 16)
    expected = [from_bytes(to_bytes(parts), 16) for parts in pack(documents(), 16)]
    assert len(reader) == reader.header.rows == len(expected)
    order = np.random.default_rng(0).permutation(len(reader)).tolist()
    for index, row in zip([*order, 3, 3], reader.__getitems__([*order, 3, 3]), strict=True):
        assert {name: each.tolist() for name, each in row.items()} == {
            name: each.tolist() for name, each in expected[index].items()
        }
    assert reader[-1]["tokens"].tolist() == expected[-1]["tokens"].tolist()
    assert len(list(reader)) == len(reader)
    assert reader.where(3) == f"row 3 of {reader.folder}"
    tokens = sum(n % 23 for n in range(200))
    assert (reader.header.tokens, reader.header.length) == (tokens, 16)
    assert reader.header.documents == sum(n % 23 > 0 for n in range(200))  # without empty ones
    padding = 100 * (1 - tokens / (16 * len(expected)))
    assert re.search(
        rf"in {len(expected)} rows of 16 sha256:\w+, of which {padding:.2f}% padding", caplog.text
    )


def test_documents_are_packed_once_for_each_key_and_length(cache: Path) -> None:
    def unread() -> Iterator[np.ndarray]:
        raise AssertionError("the documents are read")

    reader = packed("these", documents, 16)
    assert packed("these", unread, 16).identity == reader.identity
    assert packed("these by another name", documents, 16).identity == reader.identity
    others = [
        packed("these", documents, 17),
        packed("others", lambda: (n + 1 for n in documents()), 16),
    ]
    assert len({each.identity for each in (reader, *others)}) == 3
    assert len([each for each in (cache / "packed").iterdir() if each.is_dir()]) == 4


def pack_there(marks: Path) -> str:
    """Packs in one of three processes; the one that reads the documents waits for the others."""
    name = str(multiprocessing.current_process().pid)

    def marked() -> Iterator[np.ndarray]:
        (marks / f"{name}.reads").touch()
        while len(list(marks.glob("*.is_here"))) < 3:
            time.sleep(0.01)
        yield from documents()

    (marks / f"{name}.is_here").touch()
    return packed("these", marked, 16).identity


def read_there(reader: Any) -> list[Any]:
    return [row["tokens"].tolist() for row in reader]


def test_one_process_packs_and_all_read(tmp_path: Path) -> None:
    (marks := tmp_path / "marks").mkdir()
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as processes:
        assert len(set(processes.map(pack_there, [marks] * 3))) == 1
        assert len(list(marks.glob("*.reads"))) == 1
        reader = packed("these", documents, 16)
        here = read_there(reader)  # opens its file in this process
        assert processes.submit(read_there, reader).result() == here


def test_rows_are_packed_again_after_a_killed_process(cache: Path) -> None:
    def killed() -> Iterator[np.ndarray]:
        yield from itertools.islice(documents(), 100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed("these", killed, 16)
    assert list((cache / "packed").glob("*.part/rows.array_record"))
    reader = packed("these", documents, 16)
    assert reader.header.tokens == sum(n % 23 for n in range(200))
    assert not list((cache / "packed").glob("*.part"))


def test_corrupt_rows_are_refused_with_a_fix() -> None:
    folder = packed("these", documents, 16).folder
    said = f"packed rows in {folder} are corrupt: delete that folder"
    rows = (folder / "rows.array_record").read_bytes()
    for damaged in (rows[: len(rows) // 2], rows[:2000] + bytes(2000) + rows[4000:]):
        (folder / "rows.array_record").write_bytes(damaged)
        with pytest.raises(Refused, match=said):
            list(packed("these", documents, 16))
    (folder / "header.json").write_text("{")
    with pytest.raises(Refused, match=said):
        packed("these", documents, 16)


@pytest.mark.parametrize(
    "document, said",
    [
        (np.zeros(3), r"document 1 is float64 \[3\]: it must be tokens, a vector of integers"),
        (
            np.zeros((3, 1), int),
            r"document 1 is int64 \[3, 1\]: it must be tokens, a vector of integers",
        ),
        (np.array(["a"]), "document 1 is <U1"),
        (np.array([3, -1]), "document 1 has tokens -1 to 3: they must be 0 to"),
        (np.array([2**31]), "document 1 has tokens 2147483648 to 2147483648"),
    ],
)
def test_document_that_is_not_tokens_is_refused(document: np.ndarray, said: str) -> None:
    with pytest.raises(Refused, match=said):
        packed("these", lambda: [np.arange(3), document], 16)


def test_packing_no_tokens_is_refused() -> None:
    for nothing in ([], [np.array([], int)], [[]]):
        with pytest.raises(Refused, match="there is no token to pack into rows of 16"):
            packed("nothing", lambda nothing=nothing: nothing, 16)
    with pytest.raises(Refused, match="rows of 0 tokens are impossible: length must be at least 1"):
        packed("these", documents, 0)
