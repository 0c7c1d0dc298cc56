"""Chats: which tokens are learned, packing, and records that are refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxbig.cli.data import colored
from jaxbig.data.builtin.pychat import questions
from jaxbig.data.chats import Chats
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.errors import Refused
from jaxbig.tools.inspect_batch import texts

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3?"},
    {"role": "assistant", "content": "Seven."},
]


def chats(folder: Path, *records: Any, **fields: Any) -> Chats:
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Chats(records=JsonLines(files=(str(file),)), **({"batch": 2, "length": 128} | fields))


def learned(data: Chats, row: dict[str, np.ndarray]) -> str:
    return data.text(row["targets"][row["mask"] > 0])


def test_answers_and_their_ends_alone_are_learned(tmp_path: Path) -> None:
    data = chats(tmp_path, {"messages": TALK})
    row = data.read({"messages": TALK})
    assert learned(data, row) == "4\0Seven.\0"
    whole = data.text(row["targets"])
    expected = (
        "<|system|>\nBe short.\n<|user|>\n2+2?\n<|assistant|>\n4\0<|user|>\nAnd 3?\n"
        "<|assistant|>\nSeven.\0"
    )
    assert whole.rstrip("\0") == expected.rstrip("\0")
    assert np.array_equal(row["inputs"][1:], row["targets"][:-1]) and row["inputs"][0] == 0


def test_template_and_role_are_fields(tmp_path: Path) -> None:
    fields = {"header": "[{role}] ", "footer": " / ", "answers": "user"}
    data = chats(tmp_path, {"messages": TALK}, **fields)
    row = data.read({"messages": TALK})
    assert learned(data, row) == "2+2?\0And 3?\0"
    assert data.text(row["targets"]).startswith(
        "[system] Be short. / [user] 2+2?\0[assistant] 4 / "
    )


def test_other_braces_of_a_header_stay(tmp_path: Path) -> None:
    data = chats(tmp_path, {"messages": TALK}, header='{"role": "{role}"}\n')
    assert data.text(data.read({"messages": TALK})["targets"]).startswith('{"role": "system"}\n')


def test_packed_rows_hold_the_same_answers_each_chat_a_segment(tmp_path: Path) -> None:
    records = [
        {
            "messages": [
                {"role": "user", "content": f"q{n}"},
                {"role": "assistant", "content": f"a{n}"},
            ]
        }
        for n in range(40)
    ]
    data = chats(tmp_path, *records, packed=True, length=90)
    plain = dataclasses.replace(data, packed=False)
    assert data.prepare() != plain.prepare()
    for split in ("train", "eval"):
        source = data.source(split)
        rows = source.rows(np.arange(len(source)))
        apart = plain.source(split).rows(np.arange(len(plain.source(split))))
        found = data.text(rows["targets"][rows["mask"] > 0]).split("\0")
        assert sorted(found) == sorted(plain.text(apart["targets"][apart["mask"] > 0]).split("\0"))
        assert rows["segments"].max() > 1 and len(source) < len(plain.source(split))
        starts = rows["positions"] == 0
        assert np.all(rows["inputs"][starts & (rows["segments"] > 0)] == 0)


def test_another_template_is_other_data(tmp_path: Path) -> None:
    data = chats(tmp_path, *({"messages": TALK, "number": number} for number in range(40)))
    identities = {
        dataclasses.replace(data, **change).prepare()
        for change in ({}, {"header": "{role}:"}, {"footer": ""}, {"answers": "user"})
    }
    assert len(identities) == 4


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (TALK[:2], "no message has the role 'assistant'.* its roles are system, user"),
        ("hello", "is no list of messages: 'hello'"),
        ([], "is no list of messages"),
        ([{"role": "user"}], "its message 0 must have a role and a content, both text"),
        ([{"role": "user", "content": "x" * 300}, TALK[2]], "first answer begins after token 3"),
    ],
)
def test_chat_that_cannot_be_learned_is_named(tmp_path: Path, messages: Any, words: str) -> None:
    data = chats(tmp_path, {"messages": TALK})
    with pytest.raises(ValueError, match=words):
        data.read({"messages": messages})


def test_chats_without_answers_are_refused_before_a_run(tmp_path: Path) -> None:
    lines = [{"messages": [{"role": "user", "content": f"{n}"}]} for n in range(40)]
    data = chats(tmp_path, *lines)
    with pytest.raises(Refused, match="no message has the role 'assistant'"):
        data.check()


def test_header_without_a_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"header '>': it must hold \{role\}"):
        chats(tmp_path, {"messages": TALK}, header=">").check_fields()


def test_inspection_shows_what_is_learned_in_another_color(tmp_path: Path) -> None:
    data = chats(tmp_path, {"messages": TALK})
    row = data.read({"messages": TALK})
    [shown] = texts({name: field[None] for name, field in row.items()}, data)
    assert [text for text, is_learned in shown["parts"] if is_learned] == ["4\0", "Seven.\0"]
    assert "".join(text for text, _ in shown["parts"]).startswith("<|system|>\nBe short.")
    styles = {str(span.style) for span in colored(shown["parts"]).spans}
    assert styles == {"bold green", "dim"}


def test_questions_are_made_from_documented_functions() -> None:
    text = b'def add(a, b=1):\n    """Return the sum of both.\n\n    More."""\n\ndef bare(): pass\n'
    assert list(questions("pkg/sums.py", text)) == [
        ("What does add(a, b=1) of pkg.sums do?", "Return the sum of both.")
    ]
