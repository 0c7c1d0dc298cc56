"""Randomly broken inputs: each is read as it is meant or refused with a message."""

import datetime
import io
import json
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from jaxbig.data.audio import Sounds
from jaxbig.data.core.dataset import Data, Rows
from jaxbig.data.core.examples import RecordSource
from jaxbig.data.images import Images
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.parquet import Parquet
from jaxbig.data.records.text_files import TextFiles
from jaxbig.data.tabular import Columns
from jaxbig.data.text import Sentences, Tokens
from jaxbig.errors import Failed, Refused

CLASSES = 3
one_hundred = hypothesis.settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=datetime.timedelta(seconds=20),  # a hang, not a slow machine
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,  # each example empties its folder
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.data_too_large,
    ],
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about tags and sizes
        yield tmp_path / "data"


def emptied(folder: Path) -> Path:
    for each in (folder, folder.parent / "cache"):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def read(data: Data) -> Rows | None:
    """All training rows; None if they are refused, by the errors that become a sentence."""
    try:
        data.prepare()
        source = data.source("train")
        assert isinstance(source, RecordSource)
        source.check("train")
        rows = source.rows(np.arange(len(source)))
    except (Refused, Failed) as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 2_000, str(error)
        return None
    for name, each in data.spec().items():
        assert rows[name].dtype == each.dtype and rows[name].shape[1:] == each.shape[1:], name
        assert rows[name].dtype.kind in "iu" or np.isfinite(rows[name]).all(), name
    assert (rows["mask"].reshape(len(rows["mask"]), -1)[:, 0] == 1).all()
    classes = getattr(data, "classes", None)
    assert classes is None or ((rows["targets"] >= 0) & (rows["targets"] < classes)).all()
    return rows


# -- bytes

NUMBERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
Damage = tuple[str, float, int]
"""What is done, at which part of the file, and a number."""
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "number", "cut off", "cut out", "repeat", "insert", "empty"]),
        st.floats(0, 1),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, damage: list[Damage]) -> bytes:
    """The bytes of a file, changed at random."""
    found = bytearray(data)
    for what, where, number in damage:
        place = int(where * len(found))
        if what == "flip" and place < len(found):
            found[place] ^= 1 << number % 8
        elif what == "number":
            found[place : place + 4] = struct.pack(
                "<I>I"[2 * (number % 2) :][:2], NUMBERS[number % len(NUMBERS)]
            )
        elif what == "cut off":
            del found[place:]
        elif what == "cut out":
            del found[place : place + number % 64]
        elif what == "repeat":
            found[place:place] = found[place : place + number % 256]
        elif what == "insert":
            found[place:place] = number.to_bytes(3, "big")
        elif what == "empty" and where < 0.2:
            found.clear()
    return bytes(found)


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = PIXELS[..., 0].astype(np.uint16) * 257 if options.pop("deep", False) else PIXELS
    Image.fromarray(pixels).save(file, kind, **({"exif": exif} if kind != "GIF" else {}), **options)
    return file.getvalue()


PICTURES = {
    "a.jpg": encoded("JPEG"),
    "b.png": encoded("PNG"),
    "c.png": encoded("PNG", deep=True),
    "d.tiff": encoded("TIFF", compression="tiff_lzw"),
    "e.gif": encoded("GIF"),
    "f.webp": encoded("WEBP"),
    "g.bmp": encoded("BMP"),
}


@pytest.mark.slow
@one_hundred
@hypothesis.given(
    name=st.sampled_from(sorted(PICTURES)), damage=damages, canvas=st.sampled_from([0, 16])
)
def test_broken_picture_is_seen_or_refused(
    folder: Path, name: str, damage: list[Damage], canvas: int
) -> None:
    for label in ("cats", "dogs"):
        (emptied(folder) if label == "cats" else folder).joinpath(label).mkdir()
        (folder / label / f"{name}").write_bytes(PICTURES[name])
    (folder / "cats" / name).write_bytes(damaged(PICTURES[name], damage))
    read(
        Images(
            records=ImageFolder(folder=str(folder), eval_share=0),
            batch=2,
            size=16,
            classes=2,
            canvas=canvas,
        )
    )


RECORDS = [
    {"text": f"a text of number {number}", "label": number % CLASSES, "x": [0.5, number]}
    for number in range(6)
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def sentences(records: Any) -> Sentences:
    return Sentences(records=records, batch=2, length=16, classes=CLASSES)


@one_hundred
@hypothesis.given(damage=damages)
def test_broken_lines_are_read_or_refused(folder: Path, damage: list[Damage]) -> None:
    (emptied(folder) / "a.jsonl").write_bytes(damaged(LINES, damage))
    read(sentences(JsonLines(files=str(folder / "a.jsonl"), eval_share=0)))


@pytest.mark.slow
@one_hundred
@hypothesis.given(damage=damages, by=st.sampled_from(["file", "line", "paragraph"]))
def test_broken_text_is_read_as_its_bytes_or_refused(
    folder: Path, damage: list[Damage], by: Any
) -> None:
    text = damaged(b"One line.\r\n\r\nAnother\xff\xfe line.\n" * 3, damage)
    (emptied(folder) / "a.txt").write_bytes(text)
    rows = read(
        Tokens(
            records=TextFiles(files=str(folder / "a.txt"), by=by, eval_share=0), batch=2, length=512
        )
    )
    if rows is not None and by == "file" and len(text) < 512:
        assert bytes(rows["targets"][0][: len(text)].astype(np.uint8)) == text


def npz(compressed: bool, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


TABLE = {"x": np.arange(12.0).reshape(6, 2), "label": np.arange(6) % CLASSES}
TABLES = {compressed: npz(compressed, **TABLE) for compressed in (False, True)}


def columns(records: Any, **fields: Any) -> Columns:
    return Columns(
        records=records,
        batch=2,
        inputs=("x",),
        shape=(2,),
        targets="label",
        **{"classes": CLASSES, **fields},
    )


@one_hundred
@hypothesis.given(damage=damages, compressed=st.booleans())
def test_broken_arrays_are_read_or_refused(
    folder: Path, damage: list[Damage], compressed: bool
) -> None:
    (emptied(folder) / "a.npz").write_bytes(damaged(TABLES[compressed], damage))
    rows = read(columns(Arrays(file=str(folder / "a.npz"), eval_share=0)))
    assert rows is None or np.array_equal(
        rows["inputs"], TABLE["x"]
    )  # a damaged array is known by its checksum


def parquet(**table: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    return file.getvalue()


ROWS = parquet(**{name: [record[name] for record in RECORDS] for name in RECORDS[0]})


@one_hundred
@hypothesis.given(damage=damages)
@hypothesis.example(damage=[("flip", 0.375, 7)])  # a name that is no UTF-8
def test_broken_parquet_is_read_or_refused(folder: Path, damage: list[Damage]) -> None:
    (emptied(folder) / "a.parquet").write_bytes(damaged(ROWS, damage))
    read(columns(Parquet(files=str(folder / "a.parquet"), eval_share=0)))


SOUNDS = npz(False, audio=np.zeros((4, 600), np.int16), label=np.arange(4) % CLASSES)


def sounds(records: Any) -> Sounds:
    return Sounds(records=records, batch=2, samples=600, classes=CLASSES)


@one_hundred
@hypothesis.given(damage=damages)
def test_broken_sounds_are_read_or_refused(folder: Path, damage: list[Damage]) -> None:
    (emptied(folder) / "a.npz").write_bytes(damaged(SOUNDS, damage))
    read(sounds(Arrays(file=str(folder / "a.npz"), eval_share=0)))


# -- values: a field that is missing, of another type, of another size

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**31 - 1, 2**53 + 1, 2**63, -(2**31) - 1, 10**30]),
    st.floats(),
    st.sampled_from([0.7, 1.0, -0.0, 1e39, 1e-46]),
    st.text(max_size=5),
    st.sampled_from(["1", "02", "cat", "\ud800", "", "\0", "٣"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
)
names = st.sampled_from(["label", "text", "x", "Label", "a\nb", "", "é", "\ud800", "x" * 300])


def meant(value: Any) -> float | None:
    """The whole number that a label of JSON is, if it is one."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return float(value) if isinstance(value, str | int | float) else None


def numbered(labels: list[Any]) -> list[Any]:
    """The classes of labels: their numbers, or, if some are words, indices among all, sorted."""
    while all(isinstance(label, list) and len(label) == 1 for label in labels):
        labels = [label[0] for label in labels]
    texts = [label.decode() if isinstance(label, bytes) else label for label in labels]
    if all(isinstance(text, str) for text in texts) and not all(text.isdecimal() for text in texts):
        return [sorted(set(texts)).index(text) for text in texts]
    return [meant(label) for label in texts]


@pytest.mark.slow
@one_hundred
@hypothesis.given(record=st.dictionaries(names, values, max_size=4), keep=st.booleans())
def test_json_of_any_fields_and_types_is_what_it_says_or_refused(
    folder: Path, record: dict[str, Any], keep: bool
) -> None:
    record = {"text": "a", "label": 0, "x": [1, 2], **record} if keep else record
    (emptied(folder) / "a.jsonl").write_text(
        json.dumps(record) + "\n" + json.dumps(RECORDS[1]) + "\n"
    )
    records = JsonLines(files=str(folder / "a.jsonl"), eval_share=0)
    if (rows := read(sentences(records))) is not None:
        assert rows["targets"][0] == meant(record["label"])
        text = str(record["text"]).encode()[:16]
        assert bytes(rows["inputs"][0][: len(text)].astype(np.uint8)) == text
    if (rows := read(columns(records))) is not None:
        assert rows["inputs"][0].tolist() == np.array(record["x"], np.float32).tolist()
    if (rows := read(columns(records, classes=None))) is not None:
        assert rows["targets"][0] == np.float32(record["label"])


@pytest.mark.slow
@one_hundred
@hypothesis.given(first=values, second=values, name=names)
def test_parquet_of_any_fields_and_types_is_what_it_says_or_refused(
    folder: Path, first: Any, second: Any, name: str
) -> None:
    table = {"x": [[1.0, 2.0]] * 2, "label": [1, 2], name: [first, second]}
    try:
        file = parquet(**table)
    except (
        pyarrow.ArrowException,
        TypeError,
        ValueError,
        OverflowError,
    ):  # no column can be of such values
        hypothesis.reject()
    (emptied(folder) / "a.parquet").write_bytes(file)
    if (rows := read(columns(Parquet(files=str(folder / "a.parquet"), eval_share=0)))) is not None:
        assert rows["targets"].tolist() == numbered(table["label"])


dtypes = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(max_len=4),
    hnp.byte_string_dtypes(max_len=4),
    hnp.array_dtypes(max_size=2),
)
some = hnp.arrays(
    dtypes,
    st.sampled_from([(3,), (3, 1), (3, 2), (3, 9, 9), (3, 9, 9, 3), (3, 600), (3, 0), (0, 2)]),
)
MAKES: dict[str, Callable[[Any], Data]] = {
    "x": columns,
    "label": columns,
    "image": lambda records: Images(records=records, batch=1, size=8, classes=CLASSES),
    "audio": sounds,
    "text": sentences,
}


@pytest.mark.slow
@one_hundred
@hypothesis.given(array=some, name=st.sampled_from(sorted(MAKES)))
def test_arrays_of_any_dtype_and_shape_are_what_they_say_or_refused(
    folder: Path, array: np.ndarray, name: str
) -> None:
    arrays = {"x": np.ones((len(array), 2)), "label": np.zeros(len(array), int), name: array}
    (emptied(folder) / "a.npz").write_bytes(npz(False, **arrays))
    rows = read(MAKES[name](Arrays(file=str(folder / "a.npz"), eval_share=0)))
    if rows is None:
        return
    if name == "label":
        assert rows["targets"].tolist() == numbered(array.reshape(-1).tolist())
    if name == "x":
        assert rows["inputs"].tolist() == array.astype(np.float32).tolist()
    if name == "image":
        assert array.dtype in (np.uint8, bool)
    if name == "audio":
        assert np.abs(rows["inputs"]).max() <= 16 and array.dtype.kind in "iuf"


# -- names

odd = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=12
)


@pytest.mark.slow
@one_hundred
@hypothesis.given(name=odd, kind=st.sampled_from(["folder", "lines", "texts", "arrays"]))
def test_files_of_any_name_are_read(folder: Path, name: str, kind: str) -> None:
    here = emptied(folder)
    try:
        path = here / f"a{name}"
        path.touch()
        path.unlink()
    except (OSError, ValueError):  # no file can have such a name
        hypothesis.reject()
    if kind == "folder":
        for label in (path, here / "b"):
            label.mkdir()
            (label / f"{name}.jpg").write_bytes(PICTURES["a.jpg"]) if len(name) < 9 else (
                label / "a.jpg"
            ).write_bytes(PICTURES["a.jpg"])
        data: Data = Images(
            records=ImageFolder(folder=str(here), eval_share=0), batch=2, size=16, classes=2
        )
    elif kind == "arrays":
        path.write_bytes(TABLES[False])
        data = columns(Arrays(file=str(path), eval_share=0))
    elif kind == "texts":
        path.write_bytes(b"text")
        data = Tokens(records=TextFiles(files=str(path), eval_share=0), batch=2, length=16)
    else:
        path.write_bytes(LINES)
        data = sentences(JsonLines(files=str(path), eval_share=0))
    rows = read(data)
    assert rows is not None or (kind == "folder" and name.startswith("."))
