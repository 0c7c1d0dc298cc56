"""Identities of records of one's own are of what they hold."""

import collections
import dataclasses
import datetime
import itertools
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxbig.config.fingerprint import identity
from jaxbig.data.core.content_digest import RECORDS, digest_files, digest_records, flatten
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.errors import Refused
from jaxbig.train.resume import differences


def parts(value: Any) -> list[bytes]:
    found: list[bytes] = []
    flatten(value, found)
    return found


class Listed(Records):
    """Records of one's own by one method, as docs/data.md has them."""

    def __init__(self, *records: Any):
        self.records = records

    def __repr__(self) -> str:
        return "Listed"

    def open(self, split: str) -> Sequence[Record]:
        return self.records


def image(shade: int) -> Any:
    return Image.new("L", (2, 2), shade)


# Values that are all different, many of which have one text, one number or the same bytes.
DIFFERENT = [
    None, False, True, 0, 1, 1.0, -0.0, 0.5, "", "1", "é", b"", b"1", [], [1], [1, 2], [[1], 2],
    {}, {"a": 1}, {"b": 1}, {"a": {"b": 1}}, {"a": 1, "b": 2}, {"a": "1", "b": "2"},
    {"a": "1b", "b": ""}, "a1", ["a", "1"], ["a1"], np.float32(1), np.int32(1),
    np.zeros(2, np.int32), np.zeros(2, np.float32), np.zeros((1, 2), np.float32),
    np.zeros((2, 1), np.float32), np.array(["a", "1"]), np.array(["a", 1], object),
    datetime.date(2020, 1, 2),
    datetime.date(2020, 2, 1), image(1), image(2), {"x", "y"}, {"x", "z"}, (1 + 2j), Path("a/b"),
]  # fmt: skip


def test_other_values_have_other_parts() -> None:
    for one, other in itertools.combinations(DIFFERENT, 2):
        assert parts({"x": one}) != parts({"x": other}), (one, other)


def test_equal_values_have_equal_parts() -> None:
    assert (
        parts({"a": 1, "b": 2})
        == parts({"b": 2, "a": 1})
        == parts(types.MappingProxyType({"a": 1, "b": 2}))
    )
    assert parts((1, [2])) == parts([1, (2,)])
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert parts(fortran) == parts(np.arange(6).reshape(2, 3))


def test_a_set_is_the_same_in_another_process() -> None:
    """Whose strings have other hashes."""
    program = (
        "from jaxbig.data.core.content_digest import digest_records; "
        "print(digest_records([{'x': set('abcdefgh'), 'y': 1.5}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest_records([{"x": set("hgfedcba"), "y": 1.5}])


def test_value_that_cannot_be_hashed_is_refused_with_a_fix() -> None:
    with pytest.raises(
        Refused, match=r"a record holds a object, whose contents cannot be hashed: .*`prepare`"
    ):
        Listed({"x": object()}).prepare()


@pytest.mark.parametrize(
    "other",
    [
        [{"x": b"a", "y": 1}, {"x": b"b", "y": 0}],  # as labels that were swapped in a file
        [{"x": b"b", "y": 1}, {"x": b"a", "y": 0}],  # in another order
        [{"x": b"a", "y": 0}, {"x": b"b", "y": 1}, {"x": b"c", "y": 1}],
        [{"x": b"a", "y": 0}, {"x": b"c", "y": 1}],
        [{"x": b"a", "z": 0}, {"x": b"b", "y": 1}],
    ],
)
def test_identity_differs_for_different_records(other: list[Record]) -> None:
    here = Listed({"x": b"a", "y": 0}, {"x": b"b", "y": 1}).prepare()
    assert (
        here
        == Listed({"y": 0, "x": b"a"}, {"x": b"b", "y": 1}).prepare()
        != Listed(*other).prepare()
    )


def test_digest_skips_a_record_that_cannot_be_read() -> None:
    class Broken(Sequence[Record]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: Any) -> Any:
            if index == 7:
                raise OSError("broken")
            return {"x": index}

    whole = [{"x": index} for index in range(40)]
    assert digest_records(Broken()) == digest_records(Broken()) != digest_records(whole)


@dataclasses.dataclass
class Counted(Sequence[Record]):
    size: int
    changed: int = -1
    large: bool = False
    read: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        self.read[index] += 1
        return {"x": bytes(2**20 if self.large else 1), "y": index == self.changed}


def test_digest_reads_an_even_choice_of_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxbig.data.core.content_digest.RECORDS", 300)
    whole = Counted(300)
    many = Counted(30_000)
    assert "of them" not in digest_records(whole) and len(whole.read) == 300
    assert digest_records(many).endswith(" of 300 of them") and len(many.read) == 300
    assert set(np.histogram(list(many.read), 3, (0, 30_000))[0]) <= set(
        range(70, 131)
    )  # of each third about as many
    assert (
        digest_records(many) == digest_records(Counted(30_000)) != digest_records(Counted(30_001))
    )
    seen = next(iter(many.read))
    assert digest_records(Counted(30_000, changed=seen)) != digest_records(many)
    monkeypatch.setattr("jaxbig.data.core.content_digest.RECORD_BYTES", 2**25)
    large = Counted(300, large=True)
    assert (
        digest_records(large).endswith(" of 32 of them") and len(large.read) == 32
    )  # twice 16 MiB
    assert RECORDS == 20_000


def test_no_records_have_an_identity_too() -> None:
    assert (
        digest_records([]).startswith("0 sha256:")
        and Synthetic(texts=("text",)).prepare() == Synthetic(texts=("text",)).prepare()
    )


def test_file_digest_depends_on_name_size_and_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(**files: bytes) -> list[str]:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        paths = [tmp_path / name for name in files]
        monkeypatch.setattr("jaxbig.data.core.content_digest.FILE_BYTES", 2**34)
        whole = digest_files(paths)
        monkeypatch.setattr("jaxbig.data.core.content_digest.FILE_BYTES", 0)
        return [whole, digest_files(paths)]

    content = bytes(2**22)
    changed = bytearray(content)
    changed[-1] = 1
    others = [
        digests(a=content, b=b""),
        digests(a=bytes(changed), b=b""),
        digests(c=content, b=b""),
    ]
    others += [
        digests(a=content[:-1], b=b""),
        digests(a=content, b=b"0"),
        digests(a=b"", b=content),
    ]
    assert len(set(itertools.chain(*others))) == 2 * len(others)
    assert digests(a=content, b=b"") == others[0]


def test_run_does_not_resume_on_changed_records() -> None:
    before = ({"x": b"a", "label": 0}, {"x": b"b", "label": 1})
    after = ({"x": b"a", "label": 1}, {"x": b"b", "label": 0})
    experiment = {"seed": 0, "data": {}}
    run = {"experiment": experiment, "data_identity": Listed(*before).prepare()}
    assert not differences(run, identity(experiment, Listed(*before).prepare()))
    (line,) = differences(run, identity(experiment, Listed(*after).prepare()))
    assert line.startswith("data_identity: Listed with records: train 2 sha256:")
