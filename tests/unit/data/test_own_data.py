"""Data from files: each kind from its folder to a batch as in docs/data.md, with known values."""

import dataclasses
import importlib
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.experiments import ROOT

from jaxbig.config.discover import load
from jaxbig.data.core.fields import MismatchError
from jaxbig.data.masks import MaskFolder, Masks
from jaxbig.data.pipeline.loader import eval_batch
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.audio_folder import AudioFolder, decode_sound, resampled
from jaxbig.data.records.csv import Csv
from jaxbig.data.records.hugging_face import HuggingFace
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.named_files import NamedFiles
from jaxbig.data.tabular import Columns
from jaxbig.data.text import Sentences
from jaxbig.data.token_arrays import TokenArrays
from jaxbig.data.transforms.pixels import ORIENTATION
from jaxbig.errors import Failed, Refused

KINDS = ("daisy", "iris", "rose")


def readme_rows() -> dict[str, str]:
    """The table of `data` in docs/data.md, by what one has."""
    text = (
        (ROOT / "docs" / "data.md")
        .read_text()
        .split("### Your own tables, sounds, tokens and masks")[1]
    )
    return dict(
        re.findall(r"^\| ([^|]+) \| `(\w+\(.*\))` \|$", text.split("\n### ")[0], re.MULTILINE)
    )


def data_of(row: str) -> Any:
    """What a row of that table says, as a data set."""
    [code] = (value for name, value in readme_rows().items() if name.startswith(row))
    modules = ["audio", "images", "masks", "text", "token_arrays"]
    for name in ("arrays", "audio_folder", "csv", "hugging_face", "json_lines", "named_files"):
        modules.append(f"records.{name}")
    names: dict[str, Any] = {}
    for module in modules:
        names |= vars(importlib.import_module(f"jaxbig.data.{module}"))
    kind, _, rest = code.partition("(")
    return call(kind, rest.removesuffix(")"), names)


def call(kind: str, arguments: str, names: dict[str, Any]) -> Any:
    """`KIND(name=value, ...)`, where a value is a literal or such a call."""
    given: dict[str, Any] = {}
    for each in re.findall(r"(\w+)=((?:\w+\([^()]*(?:\([^()]*\)[^()]*)*\))|[^,]+)", arguments):
        name, value = each
        inner = re.fullmatch(r"(\w+)\((.*)\)", value)
        given[name] = (
            call(inner[1], inner[2], names) if inner else json.loads(value.replace("_", ""))
        )
    return names[kind](**given)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path.with_name(f"{tmp_path.name}_cache")))
    return tmp_path


def everything(data: Any) -> tuple[dict[str, np.ndarray], str]:
    """All examples of both splits, and the identity."""
    identity = data.prepare()
    data.check()
    sources = [data.source(split) for split in ("train", "eval")]
    rows = [source.rows(np.arange(len(source))) for source in sources]
    return {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}, identity


def flowers(path: Path, count: int = 60, missing: int = 7) -> None:
    draw = np.random.default_rng(0)
    lines = ["length,width,kind"]
    for number in range(count):
        kind = number % 3
        width = "" if number == missing else f"{draw.normal(10 * kind, 1):.3f}"
        lines.append(f"{draw.normal(5 * kind, 1):.3f},{width},{KINDS[kind]}")
    path.write_text("\n".join(lines) + "\n")


# -- tables


@pytest.mark.slow
def test_table_is_trained_on_as_the_readme_writes_it(jaxbig: Any, folder: Path) -> None:
    flowers(folder / "flowers.csv")
    text = (
        (ROOT / "docs" / "data.md")
        .read_text()
        .split("### Your own tables, sounds, tokens and masks")[1]
    )
    (folder / "my_table.py").write_text(
        re.findall(r"```python title=.*?\n(.*?)```", text, re.DOTALL)[0]
    )
    trained = jaxbig("train", "my_table.py", "--steps", 60, "--workdir", "run", "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["metrics"]["eval/accuracy"] > 0.9
    assert json.loads((folder / "run" / "classes.json").read_text()) == list(KINDS)
    assert json.loads((folder / "run" / "columns.json").read_text())["inputs"] == [
        "length",
        "width",
    ]
    assert (
        '["daisy", "iris", "rose"]'
        in json.loads((folder / "run" / "run.json").read_text())["data_identity"]
    )


def test_normalized_table_is_prepared_twice_with_one_result(folder: Path) -> None:
    flowers(folder / "flowers.csv")
    records = Csv(files="flowers.csv", fill=(("width", "0"),))
    data = Columns(
        records=records,
        inputs=("length", "width"),
        shape=(2,),
        targets="kind",
        classes=3,
        normalize=True,
        batch=4,
    )
    assert data.prepare() == data.prepare()


TYPES = {
    "whole numbers": ("a\n1\n2\n", {}, [1, 2]),
    "numbers": ("a\n1\n2.5\n", {}, [1.0, 2.5]),
    "text": ("a\n1\nx\n", {}, ["1", "x"]),
    "codes that stay text": ("a\n007\n010\n", {"texts": ("a",)}, ["007", "010"]),
    "quoted separators and line breaks": (
        'a,b\n"x, y\nz",1\n"say ""hi""",2\n',
        {},
        ["x, y\nz", 'say "hi"'],
    ),
    "other quotes": ("a,b\n'x, y',1\nz,2\n", {"quote": "'"}, ["x, y", "z"]),
    "semicolons": ("a;b\n1,5;x\n2,5;y\n", {"separator": ";"}, ["1,5", "2,5"]),
    "tabs": ("a\tb\n1\tx\n2\ty\n", {"separator": "\\t"}, [1, 2]),
    "no header": ("1,x\n2,y\n", {"header": False, "columns": ("a", "b")}, [1, 2]),
    "a mark at the beginning": ("\ufeffa\n1\n2\n", {}, [1, 2]),
    "missing": ("a,b\n1,x\n,y\n", {}, [1, None]),
    "missing, filled": ("a,b\n1,x\nNA,y\n", {"fill": (("a", "9"),)}, [1, 9]),
    "missing text, filled": ("a,b\nx,1\n,2\n", {"fill": (("a", "none"),)}, ["x", "none"]),
    "a quoted nothing is text": ('a,b\nx,1\n"",2\n', {}, ["x", ""]),
    "Latin letters": ("a\né\nö\n", {"encoding": "latin1"}, ["é", "ö"]),
    "Windows line ends": ("a\r\n1\r\n2\r\n", {}, [1, 2]),
    "a type seen late": ("a\n" + "1\n" * 300_000 + "x\n", {}, ["1"] * 300_000 + ["x"]),
}


@pytest.mark.parametrize(("text", "fields", "values"), TYPES.values(), ids=TYPES)
def test_column_of_a_table_is_what_it_says(
    text: str, fields: dict[str, Any], values: list[Any], folder: Path
) -> None:
    (folder / "t.csv").write_bytes(text.encode(fields.get("encoding", "utf8")))
    opened = Csv(files="t.csv", eval_share=0, **fields).open("train")
    places = range(len(opened)) if len(opened) < 10 else (0, len(opened) - 1)
    assert len(opened) == len(values)
    assert [opened[place]["a"] for place in places] == [values[place] for place in places]
    assert [type(opened[place]["a"]) for place in places] == [
        type(values[place]) for place in places
    ]


@pytest.mark.parametrize(
    ("text", "fields", "words"),
    [
        ("a,b\n1,2\n3\n", {}, "Expected 2 columns, got 1"),
        ("", {}, "is empty"),
        ("a\nx\n", {"separator": "::"}, "each is one character"),
        ("a,a\n1,2\n", {}, "column 'a' twice"),
        ("a,b\n1,2\n", {"columns": ("c",)}, "no column 'c'"),
        ("a,b\n1,2\n", {"fill": (("width", "1"),)}, "no column 'width'"),
        ("a\n1\n", {"header": False}, "name all its columns"),
        (
            "a\nx\n",
            {"encoding": "utf-16"},
            "encoding utf-16: UTF-16 stream does not start with BOM",
        ),
        ("a\nx\n", {"encoding": "no"}, "unknown encoding"),
        ("a\n1\n", {"fill": (("a", "x"),)}, "fill a x: column 'a' of"),
        ("a\n1\n", {"encoding": "klingon"}, "encoding klingon"),
    ],
)
def test_table_that_cannot_be_right_is_refused(
    text: str, fields: dict[str, Any], words: str, folder: Path
) -> None:
    (folder / "t.csv").write_text(text)
    with pytest.raises(Refused, match=re.escape(words)):
        Csv(files="t.csv", **fields).prepare()


def test_table_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / "t.csv").write_bytes("a,b\n1,é\n2,ö\n".encode("latin1"))
    with pytest.raises(
        Refused, match=r"column 'b' of .*t.csv is not text in utf8: name the file's encoding"
    ):
        Csv(files="t.csv").prepare()


def test_missing_value_ends_a_run_by_its_row(folder: Path) -> None:
    flowers(folder / "flowers.csv", missing=0)
    given: dict[str, Any] = {
        "inputs": ("length", "width"),
        "shape": (2,),
        "targets": "kind",
        "classes": 3,
        "batch": 4,
    }
    data = Columns(records=Csv(files="flowers.csv", eval_share=0), **given)
    vars(data)["label_words"] = KINDS
    source = data.source("train")
    with pytest.raises(Failed, match=r"flowers.csv row 0 cannot be read.*'width' is null"):
        source.rows(np.arange(len(source)))


def test_columns_are_normalized_by_the_training_records(folder: Path) -> None:
    flowers(folder / "flowers.csv", missing=-1)
    given: dict[str, Any] = {
        "inputs": ("length", "width"),
        "shape": (2,),
        "targets": "kind",
        "classes": 3,
        "batch": 4,
    }
    data = Columns(records=Csv(files="flowers.csv", eval_share=0.25), normalize=True, **given)
    data.prepare()
    plain = dataclasses.replace(data, normalize=False)
    plain.prepare()
    values = {}
    for split in ("train", "eval"):
        values[split] = [
            each.source(split).rows(np.arange(len(each.source(split))))["inputs"]
            for each in (plain, data)
        ]
    raw, found = values["train"]
    assert len(values["eval"][0]) > 5
    for before, after in values.values():
        np.testing.assert_allclose(after, (before - raw.mean(0)) / raw.std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)


def columns(name: str, skip: int = 0, **fields: Any) -> Columns:
    given: dict[str, Any] = {
        "inputs": ("length", "width"),
        "shape": (2,),
        "targets": "kind",
        "classes": 3,
        "batch": 4,
    }
    records = Csv(files=name, eval_share=0.25, fill=fields.pop("fill", ()))
    return Columns(records=records, normalize=True, skip_bad_records=skip, **(given | fields))


def test_missing_value_is_left_out_of_the_statistics(folder: Path) -> None:
    flowers(folder / "flowers.csv", missing=7)
    with pytest.raises(Failed, match=r"flowers.csv row 7 cannot be read.*'width' is null"):
        columns("flowers.csv").prepare()
    data = columns("flowers.csv", skip=1)
    data.prepare()
    rows = [record for record in data.records.open("train") if record["width"] is not None]
    assert len(rows) == len(data.records.open("train")) - 1
    mean, deviation = vars(data)["statistics"]
    values = np.array([[row["length"], row["width"]] for row in rows])
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, values.std(0), rtol=1e-6)


def test_statistics_are_of_the_records_settings(folder: Path) -> None:
    flowers(folder / "flowers.csv", missing=7)
    found = []
    for width in ("0", "1000"):
        data = columns("flowers.csv", fill=(("width", width),))
        data.prepare()
        found.append(vars(data)["statistics"][0][1])
    assert found[1] - found[0] == pytest.approx(1000 / len(data.records.open("train")))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inputs": ("length", "with")}, "no 'with', which --data.inputs names"),
        ({"shape": (3,)}, "--data.shape is (3,)"),
        (
            {"inputs": ("length", "kind")},
            "and not of numbers: number it first (0, 1, ...), or leave it out of --data.inputs",
        ),
    ],
)
def test_normalized_columns_that_do_not_fit_are_refused(
    fields: dict[str, Any], words: str, folder: Path
) -> None:
    flowers(folder / "flowers.csv", missing=-1)
    with pytest.raises(Refused, match=re.escape(words)):
        columns("flowers.csv", **fields).prepare()


# -- labels


def test_words_are_found_where_some_records_cannot_be_read(folder: Path) -> None:
    lines = [json.dumps({"text": f"t{n}", "label": ("bad", "good")[n % 2]}) for n in range(60)]
    (folder / "r.jsonl").write_text("\n".join(["{", *lines, "{{"]))
    data = Sentences(
        records=JsonLines(files="r.jsonl", eval_share=0),
        length=8,
        classes=2,
        batch=4,
        skip_bad_records=2,
    )
    data.prepare()
    assert data.names == ("bad", "good")
    assert data.source("train").rows(np.arange(62))["mask"].sum() == 60


def test_words_are_of_the_records_settings(folder: Path) -> None:
    (folder / "t.csv").write_text("text,label\n" + "a,x\nb,none\nc,y\n" * 10)
    found = []
    for missing in (("",), ("none",)):
        records = Csv(files="t.csv", eval_share=0, missing=missing)
        data = Sentences(records=records, length=8, classes=3, batch=4)
        data.prepare()
        found.append(data.names)
    assert found == [("none", "x", "y"), ("x", "y")]


@pytest.mark.parametrize(
    ("labels", "class_names", "expected", "names"),
    [
        (["pos", "neg", "pos", "so so"], (), [1, 0, 1, 2], ("neg", "pos", "so so")),
        (
            ["pos", "neg", "pos", "so so"],
            ("so so", "pos", "neg"),
            [1, 2, 1, 0],
            ("so so", "pos", "neg"),
        ),
        (["0", "2", "1", "1"], (), [0, 2, 1, 1], ()),
        (["10", "2", "none", "2"], (), [0, 1, 2, 1], ("10", "2", "none")),
        ([0, 2, 1, 1], ("bad", "fair", "good"), [0, 2, 1, 1], ("bad", "fair", "good")),
    ],
)
def test_labels_that_are_words_are_numbered(
    labels: list[Any],
    class_names: tuple[str, ...],
    expected: list[int],
    names: tuple[str, ...],
    folder: Path,
) -> None:
    lines = [
        json.dumps({"text": f"review {number}", "label": label})
        for number, label in enumerate(labels)
    ]
    (folder / "reviews.jsonl").write_text("\n".join(lines))
    records = JsonLines(files="reviews.jsonl")
    data = Sentences(records=records, length=16, classes=3, batch=4, class_names=class_names)
    data = dataclasses.replace(data, records=dataclasses.replace(records, eval_share=0))
    rows, identity = everything_by_text(data)
    assert [rows[f"review {number}"] for number in range(len(labels))] == expected
    assert data.names == names
    assert (json.dumps(list(names)) in identity) == bool(names)
    assert data.kept() == (
        {"classes.json": json.dumps(list(names), indent=1).encode()} if names else {}
    )


def everything_by_text(data: Sentences) -> tuple[dict[str, int], str]:
    identity = data.prepare()
    source = data.source("train")
    rows = source.rows(np.arange(len(source)))
    texts = (
        data.text(tokens[: length - 1])
        for tokens, length in zip(rows["inputs"], rows["lengths"], strict=True)
    )
    return dict(zip(texts, rows["targets"].tolist(), strict=True)), identity


@pytest.mark.parametrize(
    ("class_names", "classes", "words"),
    [
        ((), 1, "2 different words"),
        (("yes", "no", "perhaps"), 2, "3 different words"),
        (("yes", "yes"), 2, "'yes' twice"),
        (("yes", "nein"), 2, "no class has that name; the nearest is 'nein'"),
    ],
)
def test_words_that_are_no_classes_are_refused(
    class_names: tuple[str, ...], classes: int, words: str, folder: Path
) -> None:
    (folder / "r.jsonl").write_text(
        "".join(json.dumps({"text": "x", "label": w}) + "\n" for w in ("yes", "no") * 20)
    )
    records = JsonLines(files="r.jsonl", eval_share=0.5)
    with pytest.raises(Refused, match=re.escape(words)):
        everything(
            Sentences(records=records, length=8, classes=classes, batch=4, class_names=class_names)
        )


# -- sounds


def tone(pitch: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_sound_of_a_file_is_the_sound_at_another_rate(ending: str, rate: int, folder: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(f"t.{ending}", np.stack([tone(440, rate), tone(440, rate)], axis=1), rate)
    found = decode_sound(Path(f"t.{ending}").read_bytes(), 16_000)
    expected = tone(440, 16_000)
    assert found.dtype == np.float32 and abs(len(found) - len(expected)) <= 1
    inner = slice(500, 7_000)  # away from the ends, where a filter lacks adjacent samples
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.02)


def test_resampling_cuts_what_a_lower_rate_cannot_hold() -> None:
    high = resampled(tone(7_000, 16_000).astype(np.float32), 16_000, 8_000)
    assert np.abs(high[200:-200]).max() < 0.01
    assert len(resampled(np.zeros(10, np.float32), 3, 7)) == 24  # ceil(10 * 7 / 3)


def sounds(folder: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    for number in range(40):
        kind = number % 2
        (folder / "sounds" / ("low", "high")[kind]).mkdir(parents=True, exist_ok=True)
        name = (
            folder
            / "sounds"
            / ("low", "high")[kind]
            / f"{number}.{('wav', 'flac')[number % 3 == 0]}"
        )
        soundfile.write(name, tone(300 + 1_700 * kind, 22_050), 22_050)


def test_folder_of_sounds_is_read_as_the_readme_writes_it(folder: Path) -> None:
    sounds(folder)
    data = data_of("sounds, a folder a class")
    rows, _ = everything(data)
    assert data.names == ("high", "low") and rows["inputs"].shape == (40, 8_000)
    crossings = (np.diff(np.sign(rows["inputs"][:, 100:7_900]), axis=1) != 0).sum(
        1
    )  # a low tone has fewer
    np.testing.assert_array_equal(crossings < 1_000, rows["targets"] == 1)


def test_file_that_is_no_sound_is_named(folder: Path) -> None:
    pytest.importorskip("soundfile")
    for kind in ("a", "b"):
        (folder / "s" / kind).mkdir(parents=True)
        (folder / "s" / kind / "x.wav").write_bytes(b"RIFF nothing")
    opened = AudioFolder(folder="s", eval_share=0).open("train")
    with pytest.raises(ValueError, match="no sound that can be read"):
        opened[0]
    assert opened.where(0).endswith("a/x.wav")


def test_sound_that_is_broken_is_left_out(folder: Path) -> None:
    sounds(folder)
    (folder / "sounds" / "high" / "1.wav").write_bytes(b"")
    data = dataclasses.replace(data_of("sounds, a folder a class"), skip_bad_records=1)
    rows, _ = everything(data)
    assert rows["mask"].sum() == 39


def test_class_folders_are_listed_once_for_all_records(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds(folder)
    data = data_of("sounds, a folder a class")
    data.prepare()
    source = data.source("train")
    monkeypatch.setattr(
        AudioFolder, "splits", lambda self: pytest.fail("the folders are listed for a record")
    )
    assert source.rows(np.arange(8))["mask"].all()


# -- files that a table names


def pictures(folder: Path) -> None:
    (folder / "files").mkdir()
    lines = ["file,label"]
    for number in range(30):
        kind = number % 3
        Image.fromarray(np.full((16, 16, 3), 80 * kind, np.uint8)).save(
            folder / "files" / f"{number}.png"
        )
        lines.append(f"{number}.png,{KINDS[kind]}")
    (folder / "labels.csv").write_text("\n".join(lines))


def test_files_that_a_table_names_are_read_as_the_readme_writes_it(folder: Path) -> None:
    pictures(folder)
    data = data_of("a table that names files")
    data = dataclasses.replace(
        data,
        records=dataclasses.replace(data.records, table=Csv(files="labels.csv", eval_share=0.2)),
    )
    rows, identity = everything(data)
    assert rows["inputs"].shape == (30, 16, 16, 3)
    np.testing.assert_array_equal(rows["inputs"][:, 0, 0, 0], 80 * rows["targets"])
    Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(folder / "files" / "3.png")
    assert data.prepare() != identity  # it is of what is in the files


def test_file_that_is_not_there_is_refused_by_its_row(folder: Path) -> None:
    pictures(folder)
    (folder / "files" / "11.png").unlink()
    with pytest.raises(
        Refused, match=r"1 of 30 files that column 'file' names are not there: .*11.png of .*row 11"
    ):
        NamedFiles(table=Csv(files="labels.csv", eval_share=0.2), folder="files").prepare()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"column": "path"}, "row 0: it has no 'path', which --data.records.column names"),
        ({"folder": "."}, "30 of 30 files"),
    ],
)
def test_files_that_no_row_names_are_refused(
    fields: dict[str, Any], words: str, folder: Path
) -> None:
    pictures(folder)
    given: dict[str, Any] = {"table": Csv(files="labels.csv", eval_share=0.2), "folder": "files"}
    with pytest.raises(Refused, match=words):
        NamedFiles(**(given | fields)).prepare()


def test_row_that_names_no_file_is_left_out(folder: Path) -> None:
    pictures(folder)
    with (folder / "labels.csv").open("a") as table:
        table.write("\n,iris")
    data = data_of("a table that names files")
    records = dataclasses.replace(
        data.records, table=Csv(files="labels.csv", eval_share=0)
    )  # all are for training
    data = dataclasses.replace(data, records=records, skip_bad_records=1)
    data.prepare()
    assert data.source("train").rows(np.arange(31))["mask"].sum() == 30


def test_files_are_not_read_for_labels_and_only_once_for_the_identity(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(folder)
    data = data_of("a table that names files")
    records = dataclasses.replace(data.records, table=Csv(files="labels.csv", eval_share=0.2))
    identity = records.prepare()
    read = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path))
    monkeypatch.setattr("jaxbig.data.core.cache.digest_files", lambda files: read.append(files))
    data = dataclasses.replace(data, records=records)
    assert data.prepare().startswith(identity) and data.names == KINDS
    assert not read


# -- token numbers


@pytest.mark.parametrize("side", ["before", "after"])
def test_tokens_are_read_without_their_padding(side: str, folder: Path) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.integers(1, 50, draw.integers(3, 40)) for _ in range(40)]
    texts[0][1] = 0  # inside a text it is a token
    padded = np.zeros((40, 48), np.int32)
    for row, text in zip(padded, texts, strict=True):
        row[slice(-len(text), None) if side == "before" else slice(len(text))] = text
    np.savez("tokens.npz", inputs=padded, label=np.arange(40) % 2)
    data = data_of("token numbers as Keras pads them")
    data = dataclasses.replace(data, records=Arrays(file="tokens.npz", eval_share=0.2))
    rows, _ = everything(data)
    found = sorted(
        (*tokens[:length], target)
        for tokens, length, target in zip(
            *(rows[n].tolist() for n in ("inputs", "lengths", "targets")), strict=True
        )
    )
    assert found == sorted((*text[:32].tolist(), number % 2) for number, text in enumerate(texts))
    assert (rows["inputs"][np.arange(32) >= rows["lengths"][:, None]] == 0).all()


def test_a_field_may_say_how_many_tokens_count(folder: Path) -> None:
    np.savez("t.npz", inputs=[[0, 4, 0, 9], [7, 7, 0, 0]], n=[3, 1], label=[0, 1])
    given: dict[str, Any] = {
        "records": Arrays(file="t.npz", eval_share=0),
        "length": 4,
        "vocab": 8,
        "classes": 2,
    }
    data = TokenArrays(**given, batch=2, length_feature="n")
    assert [data.tokens(data.records.open("train")[row]).tolist() for row in (0, 1)] == [
        [0, 4, 0],
        [7],
    ]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, 50], "token 50, but --data.vocab 50 means 0 to 49"),
        ([-1, 3], "token -1"),
        ([0.5, 3], "tokens must be integers"),
        ([[1, 2]], "of shape"),
        ([0, 0], "no token but padding"),
        (["a"], "tokens must be integers"),
        (None, "is null"),
    ],
)
def test_what_is_no_token_is_refused(tokens: Any, words: str) -> None:
    data = TokenArrays(records=Arrays(file="x"), length=4, vocab=50, classes=2, batch=2)
    with pytest.raises(ValueError, match=re.escape(words)):
        data.tokens({"inputs": tokens})


# -- masks


def cells(folder: Path) -> None:
    for part in ("images", "masks"):
        (folder / "cells" / part).mkdir(parents=True)
    for number in range(20):
        mask = np.zeros((24, 32), np.uint8)
        mask[:, :16] = 1 + number % 2  # the left half
        mask[:2] = 255  # of no class
        picture = Image.fromarray(mask, "P") if number % 2 else Image.fromarray(mask)
        if number % 2:
            picture.putpalette(
                [0, 0, 0] * 256
            )  # a palette of black alone: the place in it is the class
        picture.save(folder / "cells" / "masks" / f"{number}.png")
        image = (
            np.where(mask[..., None] == 255, 0, 100 * mask[..., None]).repeat(3, 2).astype(np.uint8)
        )
        Image.fromarray(image).save(
            folder / "cells" / "images" / f"{number}.{('png', 'bmp')[number % 2]}"
        )


def test_images_and_masks_are_read_as_the_readme_writes_it(folder: Path) -> None:
    cells(folder)
    data = data_of("images and their masks")
    rows, _ = everything(data)
    assert rows["inputs"].shape == (20, 16, 16, 3) and rows["targets"].shape == (20, 16, 16)
    np.testing.assert_array_equal(rows["mask"][:, 0], 0)  # rows 0 and 1 of 24 are of no class
    np.testing.assert_array_equal(rows["mask"][:, 2:], 1)
    inner = rows["inputs"][:, 3:, [2, -3], 0].astype(
        int
    )  # away from edges, which an image blurs and a mask does not
    np.testing.assert_array_equal(inner, 100 * rows["targets"][:, 3:, [2, -3]])
    assert sorted(np.unique(rows["targets"])) == [0, 1, 2]


def test_image_and_mask_are_turned_together() -> None:
    import jax

    data = Masks(records=MaskFolder(folder="x"), size=4, classes=9, batch=16, flip=True)
    targets = np.broadcast_to(np.arange(4), (16, 4, 4)).astype(np.int32)
    batch = {
        "inputs": np.repeat(targets[..., None], 3, 3).astype(np.uint8),
        "targets": targets,
        "mask": np.ones((16, 4, 4), np.float32),
    }
    found = data.transform(
        jax.tree.map(jax.numpy.asarray, batch), jax.random.split(jax.random.key(0), 16), True
    )
    np.testing.assert_array_equal(np.rint(found["inputs"][..., 0] * 255), found["targets"])
    assert 0 < (np.asarray(found["targets"])[:, 0, 0] == 3).sum() < 16
    same = data.transform(
        jax.tree.map(jax.numpy.asarray, batch), jax.random.split(jax.random.key(0), 16), False
    )
    np.testing.assert_array_equal(same["targets"], targets)


def test_image_without_its_mask_is_refused(folder: Path) -> None:
    cells(folder)
    (folder / "cells" / "masks" / "4.png").unlink()
    with pytest.raises(Refused, match=r"images/4.png has no counterpart in .*masks \(1 of 20"):
        MaskFolder(folder="cells").prepare()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.full((4, 4), 3), "a pixel of 3, but --data.classes 3"),
        (np.full((4, 4), 0.5), "must be integers"),
        (np.zeros((4, 4, 3), np.uint8), "of shape"),
    ],
)
def test_mask_that_is_none_is_refused(mask: np.ndarray, words: str) -> None:
    data = Masks(records=MaskFolder(folder="x"), size=4, classes=3, batch=2)
    with pytest.raises(MismatchError, match=re.escape(words)):
        data.read({"image": np.zeros((4, 4, 3), np.uint8), "mask": mask})


def test_masks_may_begin_with_another_value_and_have_another_name() -> None:
    data = Masks(
        records=MaskFolder(folder="x"),
        size=4,
        classes=2,
        batch=2,
        mask_feature="labels",
        first=1,
        ignore=3,
    )
    labels = np.array([[1, 2, 3, 1]] * 4)
    row = data.read({"image": np.zeros((4, 4, 3), np.uint8), "labels": labels})
    assert row["targets"].tolist() == [[0, 1, 0, 0]] * 4
    assert row["mask"].tolist() == [[1, 1, 0, 1]] * 4
    with pytest.raises(MismatchError, match=r"a pixel of 0, but --data\.classes 2 means 1 to 2"):
        data.read({"image": np.zeros((4, 4, 3), np.uint8), "labels": labels - 1})
    assert not data.read_unlabeled({"image": np.zeros((4, 4, 3), np.uint8)})["targets"].any()


def test_synthetic_masks_are_read() -> None:
    data = load("pets_unet").data.synthetic()  # type: ignore[attr-defined]
    rows = data.source("train").rows(np.arange(3))
    assert np.unique(rows["targets"]).tolist() == [0, 1] and rows["mask"].all()


def test_image_and_mask_of_other_shapes_are_refused() -> None:
    data = Masks(records=MaskFolder(folder="x"), size=4, classes=3, batch=2)
    image = np.zeros((8, 12, 3), np.uint8)
    for shape in ((8, 12), (4, 6), (16, 24), (3, 4)):  # 3 x 4: as near to 8 x 12 as pixels are
        data.read({"image": image, "mask": np.zeros(shape, np.uint8)})
    for shape in ((12, 8), (8, 8), (6, 12)):
        with pytest.raises(MismatchError, match="its image is 8 high and 12 wide"):
            data.read({"image": image, "mask": np.zeros(shape, np.uint8)})


@pytest.mark.parametrize(
    ("orientation", "shape"), [(1, (8, 12)), (3, (8, 12)), (6, (12, 8)), (8, (12, 8))]
)
def test_mask_has_the_shape_of_an_upright_image(orientation: int, shape: tuple[int, int]) -> None:
    exif = Image.Exif()
    file = io.BytesIO()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(file, "JPEG", exif=exif)
    data = Masks(records=MaskFolder(folder="x"), size=4, classes=3, batch=2)
    data.read({"image": file.getvalue(), "mask": np.zeros(shape, np.uint8)})
    with pytest.raises(MismatchError, match=f"its image is {shape[0]} high and {shape[1]} wide"):
        data.read({"image": file.getvalue(), "mask": np.zeros(shape[::-1], np.uint8)})


# -- Hugging Face


def features(folder: Path, named: dict[str, Any]) -> HuggingFace:
    shutil.copytree(ROOT / "tests" / "golden" / "hugging_face", folder / "saved")
    info = folder / "saved" / "train" / "dataset_info.json"
    info.write_text(json.dumps({"features": named}))
    return HuggingFace(folder="saved")


CLASSES = {"names": ["a", "b"], "_type": "ClassLabel"}
NUMBER = {"dtype": "int64", "_type": "Value"}


@pytest.mark.parametrize(
    ("named", "classes"),
    [
        ({"part": {"names": ["p", "q", "r"]}, "label": CLASSES}, ("a", "b")),
        ({"part": CLASSES, "label": NUMBER}, ()),
        ({"text": NUMBER, "kind": CLASSES}, ("a", "b")),
        ({"part": CLASSES, "kind": CLASSES}, ()),
    ],
)
def test_names_of_classes_are_of_the_label(
    named: dict[str, Any], classes: tuple[str, ...], folder: Path
) -> None:
    assert features(folder, named).classes == classes


@pytest.mark.parametrize(
    "most", [0, 1]
)  # 0: another thread has closed the file before this one reads its row
def test_more_files_than_are_open_at_once_are_read_by_threads(
    most: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "tests" / "golden" / "hugging_face", folder / "saved")
    state = json.loads((folder / "saved" / "train" / "state.json").read_text())
    [first] = state["_data_files"]
    for number in range(6):
        shutil.copy(
            folder / "saved" / "train" / first["filename"],
            folder / "saved" / "train" / f"{number}.arrow",
        )
    state["_data_files"] = [{"filename": f"{number}.arrow"} for number in range(6)]
    (folder / "saved" / "train" / "state.json").write_text(json.dumps(state))
    monkeypatch.setattr("jaxbig.data.records.hugging_face.OPEN", most)
    opened = HuggingFace(folder="saved").open("train")
    places = np.random.default_rng(0).permutation(np.repeat(np.arange(len(opened)), 20)).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(opened.__getitem__, places))
    assert [each["text"] for each in found] == [f"sentence number {place % 8}" for place in places]


def test_saved_hugging_face_folder_is_read_as_the_readme_writes_it(folder: Path) -> None:
    shutil.copytree(
        ROOT / "tests" / "golden" / "hugging_face", folder / "saved"
    )  # written by datasets 5.2.0
    data = data_of("a saved Hugging Face data set")
    data.prepare()
    assert data.names == ("bad", "good")
    assert [len(data.source(split)) for split in ("train", "eval")] == [8, 4]
    rows = eval_batch(data.source("eval"), 0, batch=4)
    assert [
        data.text(t[: n - 1]) for t, n in zip(rows["inputs"], rows["lengths"], strict=True)
    ] == [f"sentence number {number}" for number in range(8, 12)]
    assert rows["targets"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda saved: shutil.rmtree(saved / "test"), "no dataset_info.json|no state.json"),
        (
            lambda saved: (saved / "dataset_dict.json").write_text('{"splits": ["train"]}'),
            "needs train and one of",
        ),
        (
            lambda saved: (saved / "train" / "data-00000-of-00001.arrow").write_bytes(b"x"),
            "cannot be read as an Arrow",
        ),
        (lambda saved: (saved / "train" / "state.json").write_text("{"), "is not JSON"),
        (lambda saved: shutil.rmtree(saved), "no state.json"),
    ],
)
def test_broken_hugging_face_folder_is_refused(change: Any, words: str, folder: Path) -> None:
    shutil.copytree(ROOT / "tests" / "golden" / "hugging_face", folder / "saved")
    change(folder / "saved")
    with pytest.raises(Refused, match=words):
        HuggingFace(folder="saved").prepare()


def test_reviews_with_words_for_labels_are_read_as_the_readme_writes_it(folder: Path) -> None:
    lines = [
        json.dumps({"text": f"t{n}", "label": ("bad", "fair", "good")[n % 3]}) for n in range(90)
    ]
    (folder / "reviews.jsonl").write_text("\n".join(lines))
    data = data_of("reviews in JSON lines")
    rows, _ = everything(data)
    assert data.names == ("bad", "fair", "good") and np.bincount(rows["targets"]).tolist() == [
        30,
        30,
        30,
    ]


@pytest.mark.parametrize(
    ("label", "words"),
    [(3, "in other records it is a word, such as 'no'"), ("", "''"), (" ", "' '")],
)
def test_label_that_is_no_word_among_words_is_refused(label: Any, words: str, folder: Path) -> None:
    labels = ["yes", "no"] * 20 + [label] * 20
    (folder / "r.jsonl").write_text(
        "".join(json.dumps({"text": "x", "label": each}) + "\n" for each in labels)
    )
    data = Sentences(
        records=JsonLines(files="r.jsonl", eval_share=0.5), length=8, classes=3, batch=4
    )
    with pytest.raises(Refused, match=re.escape(words)):
        everything(data)
