"""Sets of items, the modules that files import, and categories as rows of a table."""

import dataclasses
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxbig.data.builtin import pyimports
from jaxbig.data.builtin.pyimports import LibraryImports, PyImports, imported, number_of
from jaxbig.data.core.fields import MismatchError
from jaxbig.data.interactions import Interactions
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.tabular import Categories

NAMES = ("a", "b", "c", "d", "e", "f")
ITEMS = Interactions(records=Synthetic(), batch=4, classes=6, most=4, class_names=NAMES)
CLICKS = Categories(
    records=Synthetic(),
    batch=2,
    categories=(("user", 10), ("page", 100)),
    numbers=("age", "visits"),
    logarithm=True,
    targets="click",
    classes=2,
)


def test_items_are_read_as_names_or_numbers() -> None:
    by_name = ITEMS.read({"items": ["b", "d"], "target": "a"})
    by_number = ITEMS.read({"items": np.array([1, 3]), "target": 0})
    assert by_name["inputs"].tolist() == [1, 3, 0, 0] == by_number["inputs"].tolist()
    assert (by_name["lengths"], by_name["targets"]) == (2, 0)
    assert ITEMS.read({"items": [0, 1, 2, 3, 4], "target": 5})["lengths"] == 4
    assert ITEMS.read_unlabeled({"items": ["a"]})["lengths"] == 1
    assert ITEMS.read({"items": [3, 1, 3], "target": 0})["inputs"].tolist() == [3, 1, 0, 0]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"items": ["x"], "target": 0}, "'x', which is none of the 6 items"),
        ({"items": [6], "target": 0}, r"have 6, but --data\.classes 6 means 0 to 5"),
        ({"items": [1.5], "target": 0}, r"float64 of shape \(1,\): items must be"),
        ({"items": [], "target": 0}, "'items' are empty"),
        ({"items": [2, 3], "target": 3}, "its target d is shown already"),
    ],
)
def test_items_that_do_not_fit_are_refused(record: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ITEMS.read(record)


def test_in_training_any_item_is_the_target_and_some_are_shown() -> None:
    data = dataclasses.replace(ITEMS, batch=400, least_shown=0.5)
    one = ITEMS.read({"items": [1, 3, 4], "target": 5})
    rows = {name: np.stack([each] * 400) for name, each in one.items()}
    keys = jax.random.split(jax.random.key(0), 400)
    found = jax.device_get(data.transform(rows, keys, train=True))  # type: ignore[arg-type]
    assert set(found["targets"].tolist()) == {1, 3, 4, 5}
    assert set(found["lengths"].tolist()) == {2, 3}  # half of three items or more
    for inputs, length, target in zip(
        found["inputs"], found["lengths"], found["targets"], strict=True
    ):
        shown = inputs[:length].tolist()
        assert len({*shown, int(target)}) == length + 1 and {*shown, int(target)} <= {1, 3, 4, 5}
    same = data.transform(rows, keys, train=False)  # type: ignore[arg-type]
    assert all(np.array_equal(same[name], rows[name]) for name in rows)


def test_imports_are_found_anywhere_and_resolved() -> None:
    text = b"""
from __future__ import annotations
import os.path, sys as system
from .near import x
from .. import y
def f():
    from json import loads
    import sys
"""
    expected = ["a", "a.b.near", "json", "os.path", "sys"]
    assert imported(text, "a/b/c.py") == expected
    assert imported(b"from .json import x") == []  # of which package is not known
    with pytest.raises(SyntaxError):
        imported(b"print 1")


def test_records_are_a_function_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    kinds = (b"import os, sys, re, io", b"import os, sys, json, abc", b"import os, json, re, abc")
    files = {f"m{number}.py": kinds[number % 3] for number in range(60)}
    # of the held-out files one imports what no training file does, and is kept
    new = next(f"n{number}.py" for number in range(99) if number_of(f"n{number}.py") % 6 == 0)
    files |= {new: b"import os, re, abc, io, unknown", "few.py": b"import os, sys", "bad.py": b"("}
    monkeypatch.setattr(pyimports, "library_files", lambda: files)
    monkeypatch.setattr(pyimports, "package_files", lambda: iter(()))
    data = PyImports(batch=2, classes=7)
    identity = data.prepare()
    assert data.names[0] == "os"
    assert set(data.names) == {"os", "sys", "re", "io", "json", "abc"}
    train = data.records.open("train")
    counts = Counter(
        data.names[each] for record in train for each in [*record["items"], record["target"]]
    )
    assert [counts[name] for name in data.names] == sorted(counts.values(), reverse=True)
    assert all(number_of(record["name"]) % 6 for record in train)
    [held_out] = data.records.open("eval")
    assert held_out["name"] == new
    modules = sorted(data.names[each] for each in [*held_out["items"], held_out["target"]])
    assert modules == ["abc", "io", "os", "re"]
    row = data.source("eval").rows(np.arange(1))
    assert row["lengths"] == 3 and row["targets"] == held_out["target"]
    assert data.text(np.array([0])) == "os"
    record = data.record_of_file(b"import os, unknown")
    assert data.read_unlabeled(record)["lengths"] == 1
    again = PyImports(batch=2, classes=7, records=LibraryImports())
    assert again.prepare() == identity


def test_categories_are_rows_of_one_table() -> None:
    record = {"user": "7", "page": "home", "age": 30, "visits": None, "click": 1}
    example = CLICKS.read(record)
    assert example["inputs"].tolist() == [7, 10 + zlib.crc32(b"home") % 100]
    np.testing.assert_allclose(example["numbers"], [np.log(31), 0], rtol=1e-6)
    assert example["targets"] == 1 and CLICKS.vocab == 110
    missing = CLICKS.read({**record, "user": None, "page": b"home", "age": -2})
    assert missing["inputs"].tolist() == [zlib.crc32(b"") % 10, example["inputs"][1]]
    assert missing["numbers"].tolist() == [0, 0]
    with pytest.raises(MismatchError, match=r"'page' is int64 of shape \(2,\), and not one"):
        CLICKS.read({**record, "page": np.array([1, 2])})
    with pytest.raises(MismatchError, match="no 'page'"):
        CLICKS.read({name: each for name, each in record.items() if name != "page"})


def test_synthetic_categories_are_read() -> None:
    rows = CLICKS.synthetic().source("train").rows(np.arange(5))
    assert rows["inputs"].shape == (5, 2) == rows["numbers"].shape
    assert (rows["inputs"][:, 1] >= 10).all()
