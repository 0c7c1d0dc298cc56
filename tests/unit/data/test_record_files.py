"""Records in your own files: reading, errors, the split, and the cached index."""

import collections
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import re
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import ThreadPool
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxbig.data.core.dataset import Record
from jaxbig.data.pipeline.sampler import train_indices
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.file_index import Files, OpenFiles, row_hashes
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.parquet import Parquet
from jaxbig.data.records.text_files import TextFiles, spans
from jaxbig.errors import Refused


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("JAXBIG_CACHE", str(folder))
    return folder


def everything(records: Files, split: str) -> list[Record]:
    opened = records.open(split)
    return opened.__getitems__(range(len(opened)))


def both(records: Files) -> list[Record]:
    return everything(records, "train") + everything(records, "eval")


def plain(record: Record) -> Any:
    return sorted(
        (name, value.tolist() if isinstance(value, np.ndarray) else value)
        for name, value in record.items()
    )


def images(folder: Path, **classes: int) -> Path:
    """A folder for each class with this many images of one pixel, each of its own gray."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (1, 1), number).save(folder / name / f"{number}.png")
    return folder


def json_lines(file: Path, *records: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def table(file: Path, first: int = 0, rows: int = 60) -> Path:
    numbers = list(range(first, first + rows))
    columns = {
        "text": [f"row {n}" for n in numbers],
        "label": numbers,
        "list": [[n] * (n % 3) for n in numbers],
    }
    pa.parquet.write_table(pa.table(columns), file, row_group_size=7)
    return file


def each_kind(folder: Path) -> dict[str, tuple[Files, list[Record]]]:
    """Records of each kind by its name, and what they are, in any order."""
    folder.mkdir(parents=True)
    numbers = [{"n": n} for n in range(60)]
    json_lines(folder / "a.jsonl", *numbers[:25])
    json_lines(folder / "b.jsonl", *numbers[25:])
    images(folder / "images", cat=30, dog=30)
    pixels = [
        (folder / "images" / name / f"{n}.png").read_bytes()
        for name in ("cat", "dog")
        for n in range(30)
    ]
    (folder / "story.txt").write_text("".join(f"line {n}\n" for n in range(60)))
    table(folder / "t.parquet")
    xs = np.arange(120, dtype=np.int16).reshape(60, 2)
    ys = np.linspace(0, 1, 60)
    np.savez(folder / "plain.npz", x=xs, y=ys, f=np.asfortranarray(xs))
    np.savez_compressed(folder / "small.npz", x=xs, y=ys, f=np.asfortranarray(xs))
    share = {"eval_share": 0.3}
    texts = [{"name": "story.txt", "text": b"line %d" % n} for n in range(60)]
    rows = [{"text": f"row {n}", "list": [n] * (n % 3)} for n in range(60)]
    arrays = [{"x": x, "y": y, "f": x} for x, y in zip(xs, ys, strict=True)]
    return {
        "json": (JsonLines(files=f"{folder}/*.jsonl", **share), numbers),
        "images": (
            ImageFolder(folder=str(folder / "images"), **share),
            [{"image": image, "label": number // 30} for number, image in enumerate(pixels)],
        ),
        "lines": (TextFiles(files=f"{folder}/story.txt", by="line", **share), texts),
        "parquet": (Parquet(files=f"{folder}/t.parquet", columns=("text", "list"), **share), rows),
        "mapped": (Arrays(file=f"{folder}/plain.npz", **share), arrays),
        "compressed": (Arrays(file=f"{folder}/small.npz", **share), arrays),
    }


KINDS = ("json", "images", "lines", "parquet", "mapped", "compressed")

# -- what every kind does


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_eval_hold_each_record_once(kind: str, tmp_path: Path) -> None:
    records, expected = each_kind(tmp_path / "data")[kind]
    assert sorted(map(plain, both(records))) == sorted(map(plain, expected))
    assert 5 <= len(records.open("eval")) <= 35  # of 60, three in ten


@pytest.mark.parametrize("kind", KINDS)
def test_many_records_are_read_in_the_requested_order(kind: str, tmp_path: Path) -> None:
    opened = each_kind(tmp_path / "data")[kind][0].open("train")
    order = [5, 3, 20, 3, len(opened) - 1, 0]
    assert [plain(record) for record in opened.__getitems__(order)] == [
        plain(opened[index]) for index in order
    ]
    assert plain(opened[-1]) == plain(opened[len(opened) - 1])
    with pytest.raises(IndexError):
        opened[len(opened)]


@pytest.mark.parametrize("kind", KINDS)
def test_epoch_with_limit_and_repeat_holds_each_record_repeat_times(
    kind: str, tmp_path: Path
) -> None:
    whole = each_kind(tmp_path / "data")[kind][0]
    part = dataclasses.replace(whole, limit=9, repeat=3)
    opened = part.open("train")
    epoch = opened.__getitems__(train_indices(opened, 0, seed=1, batch=27).tolist())
    counts = collections.Counter(str(plain(record)) for record in epoch)
    assert len(counts) == 9 and set(counts.values()) == {3}
    assert set(counts) <= {str(plain(record)) for record in everything(whole, "train")}
    assert len(part.open("eval")) == len(whole.open("eval"))
    fewer = everything(dataclasses.replace(whole, limit=4), "train")
    assert {str(plain(record)) for record in fewer} < set(
        counts
    )  # a smaller limit is a part of a larger
    assert opened.where(10) == opened.where(1)


def read(opened: OpenFiles) -> list[Any]:
    return [plain(record) for record in opened.__getitems__(range(len(opened)))]


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    opened = [records.open("train") for records, _ in each_kind(tmp_path / "data").values()]
    here = [read(each) for each in opened]  # before: they hold open files now
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        assert list(process.map(read, opened)) == here


@pytest.mark.parametrize("kind", ["json", "parquet", "mapped"])
def test_threads_read_the_same(kind: str, tmp_path: Path) -> None:
    opened = dataclasses.replace(each_kind(tmp_path / "data")[kind][0], repeat=20).open("train")
    with ThreadPool(8) as threads:
        records = threads.map(opened.__getitem__, range(len(opened)))
    assert [plain(record) for record in records] == read(opened)


def test_more_files_are_read_than_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxbig.data.records.text_files.OPEN", 3)
    for number in range(9):
        json_lines(tmp_path / f"{number}.jsonl", {"n": number}, {"n": number})
    opened: Any = JsonLines(files=f"{tmp_path}/*.jsonl", eval_share=0).open("train")
    assert [record["n"] for record in opened] == [number // 2 for number in range(18)]
    assert len(opened.handles) == 3 and opened[0] == {"n": 0} and opened[17] == {"n": 8}


@pytest.mark.parametrize("kind", KINDS)
def test_identity_depends_only_on_the_data(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on its path or time of change; the second is made with another cache."""
    first = each_kind(tmp_path / "here")[kind][0].prepare()
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path / "other cache"))
    records = each_kind(tmp_path / "there" / "it is")[kind][0]
    for file in (tmp_path / "there").rglob("*.*"):
        os.utime(file, (1, 1))
    assert records.prepare() == first
    assert re.fullmatch(
        r"\w+ of \d+ files, \d+ bytes, records: train \d+, eval \d+, sha256:[0-9a-f]{64}", first
    )
    assert dataclasses.replace(records, eval_share=0.6).prepare() != first


@pytest.mark.parametrize("kind", KINDS)
def test_identity_changes_with_one_byte(kind: str, tmp_path: Path) -> None:
    """Of a file of about the same size."""
    records = each_kind(tmp_path / "data")[kind][0]
    if kind == "lines":
        held_out: Any = {"by": "file", "eval_files": f"{tmp_path}/data/a.jsonl"}
        records = dataclasses.replace(records, **held_out)
    before = records.prepare()
    for file, old, new in (("b.jsonl", b"59", b"58"), ("story.txt", b"line 59", b"line 58")):
        changed = (tmp_path / "data" / file).read_bytes().replace(old, new)
        (tmp_path / "data" / file).write_bytes(changed)
    table(tmp_path / "data" / "t.parquet", 1)
    picture = tmp_path / "data" / "images" / "cat" / "7.png"
    picture.write_bytes(picture.read_bytes()[:-1] + b"!")
    for file, save in (("plain", np.savez), ("small", np.savez_compressed)):
        arrays = dict(np.load(tmp_path / "data" / f"{file}.npz"))
        arrays["x"][0, 0] += 1
        save(tmp_path / "data" / f"{file}.npz", **arrays)
    assert records.prepare() != before


# -- the cut


def test_adding_a_file_moves_no_record_between_splits(tmp_path: Path) -> None:
    lines = JsonLines(files=f"{tmp_path}/*.jsonl", eval_share=0.3)
    rows = Parquet(files=f"{tmp_path}/**/*.parquet", eval_share=0.3)
    texts = TextFiles(files=f"{tmp_path}/*.jsonl", eval_share=0.5)
    for letter in "bcdefgh":
        json_lines(tmp_path / f"{letter}.jsonl", *({"n": f"{letter}{n}"} for n in range(20)))
    table(tmp_path / "m.parquet")
    before = {
        records: {split: everything(records, split) for split in ("train", "eval")}
        for records in (lines, rows)
    }
    before[texts] = {split: everything(texts, split) for split in ("train", "eval")}
    json_lines(tmp_path / "a.jsonl", *({"n": -n} for n in range(20)))
    json_lines(tmp_path / "z.jsonl", *({"n": -n} for n in range(20, 40)))
    (tmp_path / "deep").mkdir()
    table(tmp_path / "deep" / "a.parquet", 1000)
    for records, splits in before.items():
        for split, found in splits.items():
            now = everything(records, split)
            assert len(now) > len(found) - (records is texts) and all(
                record in now for record in found
            )


def test_larger_eval_share_keeps_the_records_of_a_smaller_one(tmp_path: Path) -> None:
    records = JsonLines(
        files=str(json_lines(tmp_path / "a.jsonl", *({"n": n} for n in range(2000))))
    )
    held_out = [
        {
            record["n"]
            for record in everything(dataclasses.replace(records, eval_share=share), "eval")
        }
        for share in (0.05, 0.2, 0.8)
    ]
    assert held_out[0] < held_out[1] < held_out[2]
    limited = (
        dataclasses.replace(records, eval_share=share, limit=9) for share in (0.05, 0.2, 0.8)
    )
    assert (
        len({str(everything(each, "train")) for each in limited}) == 1
    )  # nor does it change those of a limit
    assert [len(numbers) / 2000 for numbers in held_out] == pytest.approx(
        [0.05, 0.2, 0.8], abs=0.04
    )  # > 3 deviations


def test_equal_lines_are_in_one_split(tmp_path: Path) -> None:
    numbers = [{"n": n % 30} for n in range(90)]
    records = JsonLines(files=str(json_lines(tmp_path / "a.jsonl", *numbers)), eval_share=0.4)
    train, held_out = (
        {record["n"] for record in everything(records, split)} for split in ("train", "eval")
    )
    assert train and held_out and not train & held_out


def test_eval_files_are_all_of_evaluation_and_not_trained_on(tmp_path: Path) -> None:
    for name in "abc":
        json_lines(tmp_path / f"{name}.jsonl", {"n": name})
    records = JsonLines(
        files=f"{tmp_path}/*.jsonl", eval_files=(f"{tmp_path}/b.jsonl",), eval_share=0.9
    )
    assert [record["n"] for record in everything(records, "train")] == ["a", "c"]
    assert [record["n"] for record in everything(records, "eval")] == ["b"]


def test_row_hashes_never_change() -> None:
    assert row_hashes("", 2)[0] != row_hashes("a", 2)[0]
    numbers = row_hashes("t.parquet", 4)
    start = int.from_bytes(hashlib.blake2b(b"t.parquet", digest_size=8).digest(), "little")
    for row, number in enumerate(numbers.tolist(), 1):  # SplitMix64 in whole numbers
        z = (start + row * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        assert number == z ^ z >> 31


# -- the index


def test_index_is_rebuilt_only_when_a_file_changes(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def scans(records: Files) -> int:
        caplog.clear()
        records.prepare()
        return sum("indexing" in message for message in caplog.messages)

    caplog.set_level("INFO", "jaxbig")
    file = json_lines(tmp_path / "a.jsonl", *({"n": n} for n in range(60)))
    records = JsonLines(files=f"{tmp_path}/*.jsonl")
    assert [scans(records), scans(records)] == [1, 0]
    assert (
        scans(dataclasses.replace(records, eval_share=0.5, limit=3, repeat=2)) == 0
    )  # these are no part of it
    os.utime(file, (1, 1))
    assert [scans(records), scans(records)] == [1, 0]
    file.write_text(file.read_text() + '{"n": 60}\n')
    assert [scans(records), scans(records)] == [1, 0]
    json_lines(tmp_path / "b.jsonl", {"n": 61})
    assert [scans(records), scans(records)] == [1, 0]
    assert {record["n"] for record in both(records)} == set(range(62))
    for kept in (cache / "index").glob("*/*.npy"):  # cut off by whatever cuts files off
        kept.write_bytes(kept.read_bytes()[:100])
    assert [scans(records), scans(records)] == [1, 0]


def test_a_file_changed_within_one_size_and_time_is_indexed_again(tmp_path: Path) -> None:
    """As with `rsync --times --inplace`: the time of change is set back, the content is not."""
    file = tmp_path / "t.parquet"

    def write(word: str) -> str:
        texts = ["aaaa", *(f"the {word} text {n:03d}" for n in range(60)), "zzzz"]
        pa.parquet.write_table(pa.table({"text": texts}), file, compression="none")
        os.utime(file, (1, 1))
        return Parquet(files=str(file)).prepare()

    before = write("WRONG")
    size = file.stat().st_size
    after = write("right")
    assert file.stat().st_size == size and after != before == write("WRONG")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_looks_for_files_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = each_kind(tmp_path / "data")[kind][0]
    looks: list[Any] = []
    found = type(records).found
    monkeypatch.setattr(type(records), "found", lambda self: looks.append(self) or found(self))
    records.prepare()
    records.open("train")
    records.open("eval")
    assert len(looks) == 1
    records.prepare()  # a run that goes back to a checkpoint prepares again, and looks again
    assert len(looks) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_to_a_worker_does_not_grow_with_the_records(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxbig.data.records.file_index.MAPPED", 0)
    records = each_kind(tmp_path / "data")[kind][0]
    records.prepare()
    opened = records.open("train")
    sent = ForkingPickler.dumps(opened)
    assert len(sent) < 1000 < 28 * 60
    there = ForkingPickler.loads(sent)
    assert isinstance(there.indexed.places.start, np.memmap) and isinstance(there.chosen, np.memmap)
    assert read(there) == read(opened)


# -- what is passed over is said


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, without what a command of a test before let through: its level stays set."""
    caplog.set_level("WARNING", "jaxbig")
    return caplog


def test_invalid_records_are_counted(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\nthree\n")
    (tmp_path / "b.txt").write_text("")
    for _ in range(2):  # the second time from the index that is kept
        warnings.clear()
        TextFiles(files=f"{tmp_path}/*.txt", by="line", eval_share=0).prepare()
        (said,) = warnings.messages
        assert (
            f"1 of 2 files have no record, {tmp_path}/b.txt the first; 2 blank lines are no records"
            in said
        )
    warnings.clear()
    TextFiles(files=f"{tmp_path}/a.txt", eval_share=0).prepare()
    assert not warnings.messages


def test_files_that_are_no_images_are_counted(
    tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    folder = images(tmp_path / "data", cat=30, dog=30)
    for name in ("cat/a.heic", "cat/b.txt", "dog/c.avif", "dog/d.txt", "dog/.DS_Store"):
        (folder / name).write_text("x")
    (folder / "dog" / "more").mkdir()
    ImageFolder(folder=str(folder)).prepare()
    (said,) = warnings.messages
    assert "5 files and folders in" in said and ": cat/a.heic, cat/b.txt, dog/c.avif, ..." in said


def test_folders_that_a_pattern_passes_over_are_counted(
    tmp_path: Path, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    json_lines(tmp_path / "data" / "a.jsonl", {"n": 1})
    json_lines(tmp_path / "data" / "inner" / "b.jsonl", {"n": 2})
    json_lines(tmp_path / "data" / "denied" / "c.jsonl", {"n": 3})
    JsonLines(files=f"{tmp_path}/data/*.jsonl", eval_share=0).prepare()
    assert not warnings.messages
    with pytest.raises(Refused, match="has no record for train"):
        TextFiles(files=f"{tmp_path}/data/*", eval_files=f"{tmp_path}/data/a.jsonl").prepare()
    assert "/* matches 2 folders, which are passed over" in warnings.text
    warnings.clear()
    scan = os.scandir

    def scandir(path: Any) -> Any:  # as for a user who may not
        if str(path).endswith("denied"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    records = JsonLines(files=f"{tmp_path}/data/**/*.jsonl", eval_share=0)
    assert records.prepare().startswith("JsonLines of 2 files")
    assert (
        f"folder {tmp_path}/data/denied cannot be read (Permission denied) and is passed over"
        in warnings.text
    )


def test_cache_without_a_home_or_variable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = json_lines(tmp_path / "a.jsonl", {"n": 1})
    monkeypatch.setenv("JAXBIG_CACHE", "")  # is as if it were not set
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    JsonLines(files=str(file), eval_share=0).prepare()
    assert (tmp_path / "home" / ".cache" / "jaxbig" / "index").is_dir()
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user who is in no list
    with pytest.raises(
        Refused, match=r"no home to find ~/\.cache/jaxbig in: set JAXBIG_CACHE to a folder that can"
    ):
        JsonLines(files=str(file), eval_share=0).prepare()


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = json_lines(tmp_path / "a.jsonl", {"n": 1})
    monkeypatch.setenv("JAXBIG_CACHE", str(file))
    with pytest.raises(
        Refused, match=r"nothing can be kept in .*a\.jsonl.*: .*; set JAXBIG_CACHE to a folder"
    ):
        JsonLines(files=str(file)).prepare()


# -- refusals of every kind


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"eval_share": 1.0}, "--eval-share 1.0: it must be 0 or more and below 1"),
        ({"eval_share": -0.1}, "--eval-share -0.1: it must be 0 or more and below 1"),
        ({"limit": 0}, "--limit 0: it must be 1 or more"),
        ({"repeat": 0}, "--repeat 0: it must be 1 or more"),
    ],
)
def test_invalid_numbers_are_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    records = JsonLines(files=str(json_lines(tmp_path / "a.jsonl", {"n": 1})), **change)
    with pytest.raises(Refused, match=re.escape(match)):
        records.prepare()


def test_a_split_with_no_record_is_refused(tmp_path: Path) -> None:
    file = str(json_lines(tmp_path / "a.jsonl", {"n": 1}))
    with pytest.raises(
        Refused,
        match=r"with eval_share 0\.05 has no record for eval, of 1 in .*a\.jsonl: set another",
    ):
        JsonLines(files=file).prepare()
    assert "train 1, eval 0" in JsonLines(files=file, eval_share=0).prepare()  # as it was asked
    with pytest.raises(Refused, match="has no record for eval"):
        JsonLines(files=file, eval_share=0).open("eval")
    with pytest.raises(Refused, match="has no record for train"):
        JsonLines(files=file, eval_files=file).prepare()
    for name in "bc":
        (tmp_path / f"{name}.txt").write_text("\n \n")
    with pytest.raises(
        Refused, match=r"for train, of 0 in \S*b\.txt and 1 other files: write some, or name other"
    ):
        TextFiles(files=f"{tmp_path}/*.txt", by="line").prepare()


@pytest.mark.parametrize("kind", [JsonLines, TextFiles, Parquet])
def test_patterns_that_match_nothing_and_folders_are_refused(
    kind: Callable[..., Files], tmp_path: Path
) -> None:
    json_lines(tmp_path / "a.jsonl", {"n": 1})
    with pytest.raises(Refused, match=r"no file matches \S*/\*\.json \(sought as"):
        kind(files=(f"{tmp_path}/*.jsonl", f"{tmp_path}/*.json")).prepare()
    with pytest.raises(Refused, match=r"is a folder: name files, as in .*/\*\.$"):
        kind(files=str(tmp_path)).prepare()


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to nothing is not passed over."""
    images(tmp_path / "data", cat=3, dog=3)
    pictures = ImageFolder(folder=f"{tmp_path}/data")
    json_lines(tmp_path / "a.jsonl", {"n": 1})
    for name in ("data/cat/7.png", "b.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    for records, name in ((pictures, "7.png"), (TextFiles(files=f"{tmp_path}/*.jsonl"), "b.jsonl")):
        with pytest.raises(
            Refused, match=rf"{name} cannot be read: No such file or directory; fix or remove it\.$"
        ):
            records.prepare()
    (tmp_path / "data" / "cat" / "7.png").unlink()
    (tmp_path / "data" / "cat" / "7.png").mkdir()
    with pytest.raises(Refused, match=r"7\.png cannot be read: Is a directory"):
        pictures.prepare()

    def denied(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(Refused, match=rf"{tmp_path}/data cannot be read: Permission denied"):
        _ = pictures.classes


def test_a_path_may_look_like_a_pattern_and_is_then_a_path(tmp_path: Path) -> None:
    json_lines(tmp_path / "[a].jsonl", {"n": 1})
    assert everything(JsonLines(files=f"{tmp_path}/[a].jsonl", eval_share=0), "train") == [{"n": 1}]


# -- images


def test_folders_are_classes_in_order_of_name(tmp_path: Path) -> None:
    images(tmp_path / "data", dog=40, cat=40)
    (tmp_path / "data" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "data" / ".hidden").mkdir()
    Image.new("RGB", (2, 3), (1, 2, 3)).save(tmp_path / "data" / "dog" / "LARGE.JPEG")
    records = ImageFolder(folder=str(tmp_path / "data"))
    assert records.classes == ("cat", "dog")
    found = both(records)
    assert collections.Counter(record["label"] for record in found) == {0: 40, 1: 41}
    sizes = {
        Image.open(io.BytesIO(record["image"])).size for record in found if record["label"] == 1
    }
    assert sizes == {(1, 1), (2, 3)}
    limited = everything(dataclasses.replace(records, limit=20), "train")
    assert {record["label"] for record in limited} == {0, 1}  # some of each class
    assert Path(records.open("eval").where(0)).parent.name in ("cat", "dog")


@pytest.mark.parametrize("name", ["eval", "val", "validation", "test"])
def test_folders_of_splits_are_the_splits(name: str, tmp_path: Path) -> None:
    images(tmp_path / "train", cat=3, dog=2)
    images(tmp_path / name, dog=4)
    if name == "val":
        images(tmp_path / "test", bird=4)  # not looked at: there is a validation split
    records = ImageFolder(folder=str(tmp_path))
    assert [record["label"] for record in everything(records, "train")] == [0, 0, 0, 1, 1]
    assert [record["label"] for record in everything(records, "eval")] == [1, 1, 1, 1]


def test_folders_that_are_no_images_by_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"there is no folder \S*/none"):
        ImageFolder(folder=str(tmp_path / "none")).prepare()
    (tmp_path / "data").mkdir()
    with pytest.raises(Refused, match="has no folder in it: make one for each class"):
        _ = ImageFolder(folder=str(tmp_path / "data")).classes
    images(tmp_path / "data", cat=3, dog=0)
    with pytest.raises(
        Refused, match=r"class dog in \S*/data has no image \(\.jpg .*: put some in, or remove"
    ):
        ImageFolder(folder=str(tmp_path / "data")).prepare()
    images(tmp_path / "split" / "train", cat=3)
    images(tmp_path / "split" / "val", cow=3)
    with pytest.raises(Refused, match="has class cow, which the training images have not"):
        ImageFolder(folder=str(tmp_path / "split")).prepare()


# -- JSON lines


def test_a_line_is_a_record_and_a_blank_one_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        '\ufeff{"n": 1}\r\n\n  \n  {"n": "ä"}\n\n{"n": [3]}'.encode()
    )
    opened = JsonLines(files=f"{tmp_path}/a.jsonl", eval_share=0).open("train")
    assert list(opened) == [{"n": 1}, {"n": "ä"}, {"n": [3]}]
    assert [opened.where(index) for index in range(3)] == [
        f"{tmp_path}/a.jsonl line {line}" for line in (1, 4, 6)
    ]


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"n": 1', "the line is not JSON in UTF-8: Expecting"),
        (b"\xff{}", "the line is not JSON in UTF-8: 'utf-8' codec"),
        (b"[1]", "the line holds a list, not an object"),
        (b"[" * 100_000, "the line is not JSON in UTF-8"),
    ],
)
def test_a_line_that_is_no_object_is_bad_when_it_is_read(
    line: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 2}\n')
    opened = JsonLines(files=f"{tmp_path}/a.jsonl", eval_share=0).open("train")
    assert (opened[0], opened[2]) == ({"n": 1}, {"n": 2})
    with pytest.raises(ValueError, match=said):
        opened[1]
    assert opened.where(1) == f"{tmp_path}/a.jsonl line 2"


def test_a_file_that_shrank_is_noticed_and_an_empty_one_refused(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "a.jsonl", {"n": 1}, {"n": 2})
    opened = JsonLines(files=str(file), eval_share=0).open("train")
    file.write_text('{"n": 1}\n')
    with pytest.raises(ValueError, match="the file ends 8 bytes too early"):
        opened[1]
    file.write_text("")
    with pytest.raises(Refused, match=r"a\.jsonl is empty: write it again, or remove it"):
        JsonLines(files=str(file)).prepare()


# -- texts


def test_a_text_is_a_file_or_a_line_or_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "a.txt").write_bytes(b"\none\n  two \r\n\n \nthree\n")
    (tmp_path / "deep" / "er" / "b.txt").write_bytes(b"four")
    (tmp_path / "deep" / "empty.txt").write_bytes(b"")
    texts = TextFiles(files=f"{tmp_path}/**/*.txt", eval_share=0)
    assert [(record["name"], record["text"]) for record in everything(texts, "train")] == [
        ("deep/a.txt", b"\none\n  two \r\n\n \nthree\n"),
        ("deep/er/b.txt", b"four"),
    ]
    assert texts.open("train").where(1) == f"{tmp_path}/deep/er/b.txt"
    lines = dataclasses.replace(texts, by="line")
    paragraphs = dataclasses.replace(texts, by="paragraph")
    assert [record["text"] for record in everything(lines, "train")] == [
        b"one",
        b"  two ",
        b"three",
        b"four",
    ]
    assert [record["text"] for record in everything(paragraphs, "train")] == [
        b"one\n  two ",
        b"three",
        b"four",
    ]
    assert paragraphs.open("train").where(1) == f"{tmp_path}/deep/a.txt line 6"


@given(st.lists(st.sampled_from([b"a", b"bc", b" ", b"", b"d\r"])))
@settings(deadline=None)
def test_lines_and_paragraphs_are_what_splitting_gives(lines: list[bytes]) -> None:
    text = b"\n".join(lines)
    found = [part for _, part in spans(io.BytesIO(text), False)]
    assert found == [line.rstrip(b"\r") for line in lines if line.strip()]
    parts = re.split(rb"(?:^|\n)\s*(?=\n|$)", text)
    assert sum(part.count(b"\n") + 1 for _, part in spans(io.BytesIO(text), True)) == len(found)
    assert len(list(spans(io.BytesIO(text), True))) == len([part for part in parts if part.strip()])
    for paragraphs in (False, True):
        assert all(
            text[at : at + len(part)] == part for at, part in spans(io.BytesIO(text), paragraphs)
        )


# -- Parquet


def test_rows_have_all_columns_or_those_named_in_files_of_many_row_groups(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", 0, 20)
    table(tmp_path / "b.parquet", 20, 15)
    opened = Parquet(files=f"{tmp_path}/*.parquet", eval_share=0).open("train")
    assert list(opened) == [
        {"text": f"row {n}", "label": n, "list": [n] * (n % 3)} for n in range(35)
    ]
    assert opened.where(25) == f"{tmp_path}/b.parquet row 5"
    opened = Parquet(files=f"{tmp_path}/*.parquet", columns=("label",), eval_share=0).open("train")
    assert list(opened) == [{"label": n} for n in range(35)]


def test_decoded_row_groups_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Any = Parquet(files=str(table(tmp_path / "a.parquet")), eval_share=0).open("train")
    list(opened)
    assert len(opened.groups) == 9
    monkeypatch.setattr(
        "jaxbig.data.records.parquet.MAX_CACHED",
        2 * max(group.nbytes for group in opened.groups.values()),
    )
    assert opened[59]["label"] == 59 and opened[0]["label"] == 0
    opened.groups.popitem()
    assert opened[0]["label"] == 0 and 1 <= len(opened.groups) <= 3


def test_few_parquet_files_are_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxbig.data.records.parquet.OPEN", 3)
    monkeypatch.setattr("jaxbig.data.records.parquet.MAX_CACHED", 1)
    for number in range(9):
        table(tmp_path / f"{number}.parquet", number, 2)
    opened: Any = Parquet(files=f"{tmp_path}/*.parquet", columns=("label",), eval_share=0).open(
        "train"
    )
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [record["label"] for record in opened] == [
            number // 2 + number % 2 for number in range(18)
        ]
        assert len(opened.opened) == 3 and len(os.listdir("/proc/self/fd")) == before + 3


def test_a_missing_column_and_a_file_that_is_no_parquet_are_refused(tmp_path: Path) -> None:
    file = str(table(tmp_path / "a.parquet"))
    with pytest.raises(
        Refused, match=r"has no column texts; the nearest is text of 3: text, label, list\.$"
    ):
        Parquet(files=file, columns=("label", "texts")).prepare()
    Path(file).write_bytes(b"PAR1 is not enough")
    with pytest.raises(Refused, match=r"a\.parquet cannot be read as a Parquet file: "):
        Parquet(files=file).prepare()


# -- arrays


def test_arrays_for_evaluation_may_have_a_file_of_their_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    np.savez(tmp_path / "b.npz", x=np.arange(3, 5))
    records = Arrays(file=f"{tmp_path}/a.npz", eval_file=f"{tmp_path}/b.npz")
    assert [int(record["x"]) for record in both(records)] == [0, 1, 2, 3, 4]
    assert records.open("eval").where(1) == f"{tmp_path}/b.npz row 1"


def test_arrays_that_are_not_compressed_are_mapped(tmp_path: Path) -> None:
    opened: Any = each_kind(tmp_path / "data")["mapped"][0].open("train")
    _ = opened[0]
    (arrays,) = opened.arrays.values()
    assert {type(array) for array in arrays.values()} == {np.memmap}


def test_arrays_that_are_no_records_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"

    def refused(said: str) -> None:
        with pytest.raises(Refused, match=said):
            Arrays(file=str(file)).prepare()

    np.savez(file, x=np.arange(3), y=np.arange(4))
    refused(r"the arrays in \S*a\.npz are not of one length, a record each: x 3, y 4\.")
    np.savez(file, x=np.arange(3), y=np.array([1, "a", None], object))
    refused(r"array y\.npy in \S*a\.npz holds Python objects")
    np.savez(file, x=np.zeros(3, [("a", "i4"), ("b", "O")]))
    refused(r"array x\.npy in \S*a\.npz holds Python objects")
    np.savez(file, x=np.int32(3))
    refused("array x in .* is a single number")
    np.savez(file)
    refused(r"has no array in it")
    np.savez(file, x=np.arange(0))
    refused("has no record for train")
    file.write_bytes(b"")
    refused(r"cannot be read as arrays of numpy\.savez")
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("x.npy", b"not an array")
    refused(r"cannot be read as arrays of numpy\.savez")
