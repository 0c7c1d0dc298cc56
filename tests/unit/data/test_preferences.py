"""Preferences: what is learned of a pair, and pairs that are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxbig.constraints import validate
from jaxbig.data.preferences import Preferences, ReferenceScores
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.errors import Failed, Refused

PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5, or 6"}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "2+2?"},
]


def numbered(record: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Copies of a record that differ, so that each split has some."""
    return [{**record, "number": number} for number in range(count)]


def preferences(folder: Path, *records: Any, **fields: Any) -> Preferences:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    records_of = JsonLines(files=(str(file),), eval_share=0.5)
    given: dict[str, Any] = {"batch": 2, "length": 64, **fields}
    return Preferences(records=records_of, **given)


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ({"prompt": "2+2?"}, "<|user|>\n2+2?\n"),
        ({"messages": TURNS}, "<|user|>\nHi\n<|assistant|>\nHo\0<|user|>\n2+2?\n"),
    ],
)
def test_the_two_answers_alone_are_learned(
    tmp_path: Path, before: dict[str, Any], text: str
) -> None:
    record = {"chosen": "4", "rejected": "5, or 6", **before}
    data = preferences(tmp_path, record, length=96)
    row = data.read(record)
    for name, mask, answer in (("targets", "mask", "4"), ("rejected", "rejected_mask", "5, or 6")):
        assert data.text(row[name][row[mask] > 0]) == f"{answer}\0"
        assert data.text(row[name]).rstrip("\0") == f"{text}<|assistant|>\n{answer}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rejected": "4"}, r"line \d cannot be read: .*two answers are equal, so none is better"),
        ({"prompt": "?" * 64}, r"begins after token 88, and --data.length is 64: there is no"),
        (
            {"chosen": "n" * 40 + "a", "rejected": "n" * 40 + "b"},
            r"equal in the 64 tokens of --data.length",
        ),
        ({"chosen": 4}, r"its 'chosen' is 4, and no text"),
        ({"prompt": None}, r"prompt"),
    ],
)
def test_pair_that_teaches_nothing_is_refused_and_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    record = {name: value for name, value in (PAIR | changes).items() if value is not None}
    data = preferences(tmp_path, *numbered(record, 8))
    with pytest.raises((Refused, Failed), match=words):
        source = data.source("train")
        source.rows(np.arange(len(source)))


def test_packed_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"pairs of answers are not packed"):
        validate(preferences(tmp_path, PAIR, packed=True))


def test_length_and_template_are_part_of_the_identity(tmp_path: Path) -> None:
    identities = {
        preferences(tmp_path, *numbered(PAIR, 20), **fields).prepare()
        for fields in ({}, {"length": 63}, {"prompt_role": "human"}, {"keep": "end"})
    }
    assert len(identities) == 4


def test_scores_survive_their_file_and_are_those_of_their_data_alone(tmp_path: Path) -> None:
    data = preferences(tmp_path, *numbered(PAIR, 20))
    counts = {split: len(data.source(split)) for split in ("train", "eval")}
    scores = {
        split: np.arange(2 * count, dtype=np.float32).reshape(-1, 2)
        for split, count in counts.items()
    }
    data.know(ReferenceScores({"data_identity": data.prepare()}, scores))
    for name, content in data.kept().items():
        (tmp_path / name).write_bytes(content)
    again = preferences(tmp_path, *numbered(PAIR, 20)).with_kept(tmp_path)
    rows = again.source("train").rows(np.array([3, 1]))
    np.testing.assert_array_equal(rows["reference"], [[6, 7], [2, 3]])
    (tmp_path / "other").mkdir()
    others = preferences(tmp_path / "other", *numbered(PAIR, 21)).with_kept(tmp_path)
    with pytest.raises(Refused, match=r"of other preferences than those of this data"):
        others.source("train")
    (tmp_path / "reference.npz").write_bytes(b"PK\x03\x04 cut")
    assert ReferenceScores.read(tmp_path) is None
