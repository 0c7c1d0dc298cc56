"""Contiguous reading, the small data sets made on this machine, and those of the catalogue where they stand."""

import datetime
import io
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.data import dates
from jaxbig.data.base import Data, Rows
from jaxbig.data.dates import FORMATS, Dates, decode, encode, written
from jaxbig.data.diabetes import Diabetes
from jaxbig.data.prepared import Arrays, Builder, prepared
from jaxbig.data.pymodule import LONGEST, PACKAGES, PyModule
from jaxbig.data.pytext import PlainWindows, PyText, PyTextRows, Windows, held_out, library_files
from jaxbig.data.stream import eval_batch, eval_steps, train_batch, train_batches
from jaxbig.data.tfds import Catalogue, Images, Pairs, Sentences, TokenRows, Tokens
from jaxbig.errors import Refused

few = settings(max_examples=20, deadline=None)
SOME = st.integers(1, 300), st.integers(1, 9), st.integers(1, 7)  # bytes of a text, length of a window, rows


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
    batches = [eval_batch(source, s, 3) if read == "eval" else train_batch(source, 9, s, 3) for s in range(3)]
    targets = [[[1, 2], [7, 8], [13, 14]], [[3, 4], [9, 10], [0, 0]], [[5, 6], [11, 12], [0, 0]]]
    inputs = [[[0, 1], [6, 7], [12, 13]], [[2, 3], [8, 9], [0, 0]], [[4, 5], [10, 11], [0, 0]]]
    for batch, target, before in zip(batches, targets, inputs, strict=True):
        mask = batch["mask"].astype(int)
        assert (batch["targets"] * mask).tolist() == target
        assert (batch["inputs"] * mask).tolist() == before
    assert [batch["starts"].tolist() for batch in batches] == [[1] * 3, [0] * 3, [0] * 3]
    assert eval_steps(source, 3) == 3
    assert train_batch(source, 0, 3, 3)["starts"].tolist() == [1] * 3


@given(*SOME, st.integers(0, 3))
@few
def test_a_pass_over_tracks_holds_every_byte_once(size: int, length: int, batch: int, epoch: int) -> None:
    source = numbered(size, length)
    steps = eval_steps(source, batch)
    expected = Counter(source.text.tolist())
    for made in (
        [eval_batch(source, step, batch) for step in range(steps)],
        [train_batch(source, 0, epoch * steps + step, batch) for step in range(steps)],
    ):
        assert Counter(np.concatenate([rows["targets"][rows["mask"] == 1] for rows in made]).tolist()) == expected
        assert [rows["starts"].tolist() for rows in made] == [[1] * batch] + [[0] * batch] * (steps - 1)
        assert all(rows["mask"].any() for rows in made)  # a loss over nothing would be NaN


@given(*SOME, st.integers(0, 50))
@few
def test_a_row_goes_on_where_it_ended(size: int, length: int, batch: int, step: int) -> None:
    source = numbered(size, length)
    now, after = train_batch(source, 0, step, batch), train_batch(source, 0, step + 1, batch)
    going_on = (after["starts"] == 0) & (after["mask"][:, 0] == 1)
    assert np.array_equal(after["inputs"][going_on, 0], now["targets"][going_on, -1])
    assert np.all(now["mask"][going_on] == 1)


@given(*SOME, st.integers(0, 50), st.integers(0, 2**32 - 1))
@few
def test_tracks_are_the_same_for_any_processes_and_seed(
    size: int, length: int, half: int, step: int, seed: int
) -> None:
    source, batch = numbered(size, length), 2 * half
    whole = train_batch(source, 0, step, batch)
    shares = [train_batch(source, seed, step, batch, part) for part in np.split(np.arange(batch), 2)]
    for name, array in whole.items():
        assert np.array_equal(array, np.concatenate([share[name] for share in shares]))
    (ahead,) = train_batches(source, seed, step, step + 1, batch, readers=1)
    assert all(np.array_equal(array, ahead[name]) for name, array in whole.items())


def test_what_is_not_contiguous_has_no_starts() -> None:
    assert "starts" not in train_batch(Windows(np.arange(9, dtype=np.uint8), 2), 0, 0, 2)
    assert "starts" not in eval_batch(Arrays(inputs=np.arange(9)), 0, 2)


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
    last = eval_batch(source, eval_steps(source, 7) - 1, 7)
    for batch in (train_batch(source, 0, 3, 7), eval_batch(source, 0, 7), last):
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
    of_day = [written(datetime.date(2000, 1, day), "{nth}") for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 31)]
    assert of_day == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd", "31st"]


def test_no_text_is_of_two_days() -> None:
    """Whichever formats they are written in; years whose two digits could be a day or a month are all there."""
    last = dates.FIRST + datetime.timedelta(days=dates.DAYS - 1)
    assert last == datetime.date(2029, 12, 31) and len(set(FORMATS)) == len(FORMATS) >= 30
    days = [datetime.date(2000, 12, 20) + datetime.timedelta(days=number) for number in range(12 * 366)]
    read: dict[str, datetime.date] = {}
    for day in days:
        for form in FORMATS:
            assert read.setdefault(written(day, form).lower(), day) == day
    assert max(map(len, read)) <= dates.LENGTH and set().union(*read) <= set(dates.ALPHABET)


@given(st.text(dates.ALPHABET, max_size=40))
@few
def test_decoding_undoes_encoding(text: str) -> None:
    tokens = encode(text)
    assert len(tokens) == len(text) and (not text or 3 <= tokens.min() <= tokens.max() < Dates.vocab)
    padded = np.concatenate([[Dates.start], tokens, [Dates.end], tokens[:3], [0]])
    assert decode(tokens) == decode(padded) == text


def test_dates_are_read_back_as_the_days_they_are() -> None:
    data = Dates(batch=1)
    data.prepare()
    days: dict[str, set[str]] = {}
    for split, count in (("train", 10_000), ("eval", 1_000)):
        rows = everything(data, split)
        targets = [decode(row) for row in rows["targets"]]
        assert len(targets) == count == len(set(targets)) and np.all(rows["targets"][:, -1] == Dates.end)
        days[split] = set(targets)
        forms: Counter[str] = Counter()
        for row, length, target in list(zip(rows["inputs"], rows["lengths"], targets, strict=True))[:1_000]:
            text, day = decode(row), datetime.date.fromisoformat(target)
            assert len(text) == length and np.all(row[length:] == 0)
            fitting = [form for form in FORMATS if written(day, form).lower() == text.lower()]
            assert fitting and (text in (text.lower(), text.upper()) or text in [written(day, f) for f in fitting])
            forms[fitting[0]] += 1
        assert len(forms) == len(FORMATS) and max(forms.values()) < 3_000 / len(FORMATS)
        assert 0.2 < np.mean([decode(row).isupper() for row in rows["inputs"]]) < 0.4
    assert not days["train"] & days["eval"]


# -- diabetes


def test_diabetes_is_scikit_learns_standardized_by_its_training_rows() -> None:
    data = Diabetes(batch=1)
    data.prepare()
    train, held = everything(data, "train"), everything(data, "eval")
    assert (len(train["targets"]), len(held["targets"])) == (353, 89)
    for rows in (train["inputs"], train["targets"]):
        np.testing.assert_allclose(rows.mean(0, dtype=np.float64), 0, atol=1e-6)
        np.testing.assert_allclose(rows.std(0, dtype=np.float64), 1, atol=1e-6)
    x, y = sklearn.datasets.load_diabetes(return_X_y=True, scaled=False)
    for ours, theirs in ((np.concatenate([train["inputs"], held["inputs"]]), x), (0, y[:, None])):
        ours = np.concatenate([train["targets"], held["targets"]])[:, None] if isinstance(ours, int) else ours
        for column in range(theirs.shape[1]):  # one line undoes the standardizing, and every patient is there once
            a, b = np.sort(ours[:, column].astype(np.float64)), np.sort(theirs[:, column])
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
        for row, length, target in zip(rows["inputs"], rows["lengths"], rows["targets"], strict=True):
            line = bytes(row[:length].tolist())
            seen.append(line)
            assert 20 <= length <= LONGEST and not row[length:].any()
            assert {package for package, _ in where[line]} == {PACKAGES[target]}
            assert split == ("eval" if all(held for _, held in where[line]) else "train")
    assert len(seen) == len(set(seen)) > 20_000


# -- the catalogue

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
TEXTS = ["one", "zwei - größer", "a very long text, longer than all", ""]
RECORDS: dict[str, list[dict[str, Any]]] = {
    "mnist": [{"image": picture, "label": i + 3} for i, picture in enumerate(PICTURES)],
    "cifar10": [{"image": picture, "label": i, "id": f"{i}"} for i, picture in enumerate(COLOURS)],
    "imdb_reviews": [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)],
    "lm1b": [{"text": text} for text in TEXTS],
    "wmt": [{"en": text, "de": text.upper()} for text in TEXTS],
}


def png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    image = pytest.importorskip("PIL.Image")
    image.fromarray(pixels.squeeze()).save(file, "png")
    file.seek(0)
    return file


def builder_class(name: str) -> type[Builder]:
    """A data set of that name with the catalogue's own features (but wmt, that is made up) and our few records."""
    if name == "wmt":
        features: dict[str, Any] = dict(tfds.features.Translation(("en", "de")))
    else:
        with tfds.testing.mock_data():  # asks no network
            features = dict(tfds.builder(name).info.features)  # type: ignore[arg-type]

    def records(self: Any) -> dict[str, Any]:
        return {"train": RECORDS[name], "test": RECORDS[name][:3]}

    def examples(self: Any, records: Any) -> Any:
        for number, record in enumerate(records):  # TFDS makes a PNG of pixels with TensorFlow alone
            yield number, record | ({"image": png(record["image"])} if "image" in record else {})

    fields = {"features": lambda self: features, "records": records, "_generate_examples": examples, "name": name}
    if name == "imdb_reviews":
        fields["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name="plain_text")]
    with tfds.core.registered.skip_registration():  # the catalogue has one of that name
        return type(name, (Builder,), {**fields, "__module__": __name__})


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which those data sets stand prepared."""
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("catalogue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        for name in RECORDS:
            prepared(builder_class(name))
    return folder


@pytest.fixture
def here(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(catalogue))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))


MNIST = Images(name="mnist", batch=2, size=28, channels=1, classes=10)
CATALOGUE: list[Catalogue] = [
    MNIST,
    Images(name="cifar10", batch=2, size=16, classes=10),
    Images(name="mnist", batch=2, size=32, classes=10),
    Images(name="cifar10", batch=2, size=32, channels=1, classes=10),
    Tokens(name="lm1b", batch=2, length=8),
    TokenRows(name="lm1b", batch=2, length=8),
    Sentences(name="imdb_reviews", batch=2, length=8, classes=2),
    Pairs(name="wmt", batch=2, length=8, source_feature="en", target_feature="de"),
]


@pytest.mark.parametrize("data", CATALOGUE, ids=lambda data: f"{type(data).__name__}-{data.name}")
def test_the_catalogue_has_the_shapes_that_were_said(data: Catalogue, here: None) -> None:
    assert data.prepare() == data.prepare()
    for split, size in (("train", 4), ("eval", 3)):
        source = data.source(split)
        assert len(source) == size
        for batch in (train_batch(source, 0, 1, 2), eval_batch(source, 1, 2)):
            assert specs(batch) == data.spec()
        some = source.rows(np.array([2, 0, 2]))  # in any order
        assert all(np.array_equal(some[name], rows[[2, 0, 2]]) for name, rows in everything(data, split).items())


def test_images_are_of_0_to_1(here: None) -> None:
    rows = everything(MNIST, "train")
    np.testing.assert_array_equal(rows["inputs"], PICTURES.astype(np.float32) / 255)
    assert rows["targets"].tolist() == [3, 4, 5, 6]


def test_an_image_is_scaled_by_its_shorter_side_and_cut_to_its_middle(here: None) -> None:
    from jaxbig.data.tfds import fitted

    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 2:14] = 200  # the middle square, and as much around it as a pixel is a mean of
    assert np.all(fitted(wide, 4, 3) == 200) and np.all(fitted(wide, 8, 1) == 200)
    assert np.all(fitted(np.swapaxes(wide, 0, 1), 16, 3) == 200)
    # half as wide, each pixel is a mean of 4 x 4 under a triangle, so a ramp stays one
    ramp = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8)[:, None, None], (32, 32, 3))
    half = fitted(np.ascontiguousarray(ramp), 16, 3)[:, :, 0].astype(float)
    np.testing.assert_allclose(half[1:-1, 5], np.arange(2 + 8, 120, 8), atol=1)
    assert fitted(PICTURES[0], 28, 3).shape == (28, 28, 3)


def test_texts_are_bytes_ended_by_0(here: None) -> None:
    rows = everything(CATALOGUE[4], "train")
    one, long = [ord(letter) for letter in "one"], [ord(letter) for letter in TEXTS[2][:8]]
    assert rows["targets"][0].tolist() == [*one, 0, 0, 0, 0, 0] and rows["mask"][0].tolist() == [1] * 4 + [0] * 4
    assert rows["inputs"][0].tolist() == [0, *one, 0, 0, 0, 0]
    assert rows["targets"][2].tolist() == long and rows["inputs"][2].tolist() == [0, *long[:-1]]
    assert rows["mask"].sum(1).tolist() == [4, 8, 8, 1]
    plain = everything(CATALOGUE[5], "train")
    assert np.array_equal(plain["inputs"], rows["targets"]) and np.array_equal(plain["mask"], rows["mask"])
    sentences = everything(CATALOGUE[6], "train")
    assert np.array_equal(sentences["inputs"], rows["targets"]) and sentences["lengths"].tolist() == [4, 8, 8, 1]
    assert sentences["targets"].tolist() == [0, 1, 0, 1] and sentences["mask"].tolist() == [1] * 4


def test_pairs_end_with_the_end(here: None) -> None:
    data, rows = CATALOGUE[7], everything(CATALOGUE[7], "train")
    assert isinstance(data, Pairs) and (data.start, data.end, data.vocab) == (256, 257, 258)
    assert rows["inputs"][0].tolist() == [*b"one", 0, 0, 0, 0, 0] and rows["lengths"].tolist() == [4, 8, 8, 1]
    assert rows["targets"][0].tolist() == [*b"ONE", 257, 0, 0, 0, 0]
    assert rows["targets"][2].tolist() == [*TEXTS[2].upper().encode()[:7], 257]
    assert np.all((rows["targets"] == 257).sum(1) == 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Images(name="imagenet2012", batch=2, size=8, classes=5), ("imagenet2012 is not prepared in", "tfds build")),
        (Sentences(name="glue/sst2", batch=2, length=8, classes=2), ("glue/sst2 is not prepared", "TFDS_DATA_DIR")),
        (Images(name="mnist:9.0.0", batch=2, size=8, classes=5), ("mnist:9.0.0 is not prepared",)),
        (Images(name="mnist", batch=2, size=8, classes=5, eval_split="dev"), ("no split 'dev'", "train, test")),
        (Tokens(name="lm1b", batch=2, length=8, vocab=32_000), ("--data.vocab 32000", "no tokenizer", "which are 256")),
        (TokenRows(name="lm1b", batch=2, length=8, vocab=256), ("--data.vocab 256", "which are 257")),
    ],
    ids=lambda value: value.name if isinstance(value, Catalogue) else "",
)
def test_what_cannot_be_read_is_refused_in_one_sentence(data: Catalogue, words: tuple[str, ...], here: None) -> None:
    with pytest.raises(Refused) as refused:
        data.prepare()
    assert all(word in str(refused.value) for word in words), refused.value
