"""Prepared TFDS data sets, with the features of the catalog and few records."""

import io
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxbig.data.core.dataset import Data, Rows
from jaxbig.data.core.examples import Examples
from jaxbig.data.images import Images, central_square, shrink_to_fit
from jaxbig.data.pipeline.loader import eval_batch, train_batch
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.records.tfds_builder import Builder, prepared
from jaxbig.data.text import Pairs, Sentences, TokenRows, Tokens
from jaxbig.data.tokenize.tokenizers import Bytes
from jaxbig.errors import Refused

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
COLORS = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
TEXTS = ["one", "zwei - größer", "a very long text, longer than all", ""]
RECORDS: dict[str, list[dict[str, Any]]] = {
    "mnist": [{"image": picture, "label": i + 3} for i, picture in enumerate(PICTURES)],
    "cifar10": [{"image": picture, "label": i, "id": f"{i}"} for i, picture in enumerate(COLORS)],
    "imdb_reviews": [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)],
    "lm1b": [{"text": text} for text in TEXTS],
    "wmt": [{"en": text, "de": text.upper()} for text in TEXTS],
}


def specs(rows: Rows) -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in rows.items()}


def everything(data: Data, split: str) -> Rows:
    source = data.source(split)
    return source.rows(np.arange(len(source)))


def encoded(pixels: np.ndarray, kind: str = "png") -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, kind)
    file.seek(0)
    return file


def builder_class(name: str) -> type[Builder]:
    """A data set with the catalog's features (of wmt synthetic ones) and our few records."""
    if name == "wmt":
        features: dict[str, Any] = dict(tfds.features.Translation(("en", "de")))
    else:
        with tfds.testing.mock_data():  # asks no network
            features = dict(tfds.builder(name).info.features)  # type: ignore[arg-type]

    def records(self: Any) -> dict[str, Any]:
        return {"train": RECORDS[name], "test": RECORDS[name][:3]}

    def examples(self: Any, records: Any) -> Any:
        for number, record in enumerate(
            records
        ):  # TFDS makes a PNG of pixels with TensorFlow alone
            yield (
                number,
                record | ({"image": encoded(record["image"])} if "image" in record else {}),
            )

    fields = {
        "features": lambda self: features,
        "records": records,
        "_generate_examples": examples,
        "name": name,
    }
    if name == "imdb_reviews":
        fields["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name="plain_text")]
    with tfds.core.registered.skip_registration():  # the catalog has one of that name
        return type(name, (Builder,), {**fields, "__module__": __name__})


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which those data sets stand prepared."""
    folder = tmp_path_factory.mktemp("catalog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        for name in RECORDS:
            prepared(builder_class(name))
    return folder


@pytest.fixture
def here(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(catalog))
    monkeypatch.setenv("JAXBIG_CACHE", str(catalog / "cache"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))


MNIST = Images(records=Tfds("mnist"), batch=2, size=28, channels=1, classes=10)
CATALOG: list[Examples] = [
    MNIST,
    Images(records=Tfds("cifar10"), batch=2, size=16, classes=10),
    Images(records=Tfds("mnist"), batch=2, size=32, classes=10),
    Images(records=Tfds("cifar10"), batch=2, size=32, channels=1, classes=10, canvas=40),
    Tokens(records=Tfds("lm1b"), batch=2, length=8),
    TokenRows(records=Tfds("lm1b"), batch=2, length=8),
    Sentences(records=Tfds("imdb_reviews"), batch=2, length=8, classes=2),
    Pairs(records=Tfds("wmt"), batch=2, length=8, source_feature="en", target_feature="de"),
]


@pytest.mark.parametrize(
    "data", CATALOG, ids=lambda data: f"{type(data).__name__}-{data.records.name}"
)
def test_catalog_data_sets_have_the_shapes_of_their_spec(data: Examples, here: None) -> None:
    assert data.prepare() == data.prepare()
    for split, size in (("train", 4), ("eval", 3)):
        source = data.source(split)
        assert len(source) == size
        for batch in (train_batch(source, 1, seed=0, batch=2), eval_batch(source, 1, batch=2)):
            assert specs(batch) == data.spec()
        some = source.rows(np.array([2, 0, 2]))  # in any order
        assert all(
            np.array_equal(some[name], rows[[2, 0, 2]])
            for name, rows in everything(data, split).items()
        )


def test_images_are_what_was_encoded_and_of_0_to_1_in_the_step(here: None) -> None:
    rows = everything(MNIST, "train")
    np.testing.assert_array_equal(rows["inputs"], PICTURES)
    assert rows["targets"].tolist() == [3, 4, 5, 6]
    batch = MNIST.transform(rows, jax.random.split(jax.random.key(0), 4), True)
    np.testing.assert_array_equal(batch["inputs"], PICTURES.astype(np.float32) / 255)


def test_an_image_is_scaled_by_its_shorter_side_and_cut_to_its_middle() -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 2:14] = 200  # the middle square, and as much around it as a pixel is a mean of
    assert np.all(central_square(wide, 4, 3) == 200) and np.all(central_square(wide, 8, 1) == 200)
    assert np.all(central_square(np.swapaxes(wide, 0, 1), 16, 3) == 200)
    # half as wide, each pixel is a mean of 4 x 4 under a triangle, so a ramp stays one
    ramp = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8)[:, None, None], (32, 32, 3))
    half = central_square(np.ascontiguousarray(ramp), 16, 3)[:, :, 0].astype(float)
    np.testing.assert_allclose(half[1:-1, 5], np.arange(2 + 8, 120, 8), atol=1)
    assert central_square(PICTURES[0], 28, 1).shape == (28, 28, 1)


def test_a_whole_image_keeps_its_shape_within_a_canvas(here: None) -> None:
    photo = np.tile(np.arange(0, 240, dtype=np.uint8)[:, None, None], (1, 300, 3))
    for kind, apart in (("png", 1), ("jpeg", 3)):
        small = shrink_to_fit(
            encoded(photo, kind).getvalue(), 50, 3
        )  # a JPEG is decoded at a quarter
        assert small.shape == (40, 50, 3)
        np.testing.assert_allclose(small[:, 25, 0], np.arange(40) * 6 + 2.5, atol=apart)
    assert shrink_to_fit(photo, 400, 3).shape == (240, 300, 3)  # never larger than it is
    rows = everything(CATALOG[3], "train")
    assert rows["sizes"].tolist() == [[32, 32]] * 4 and rows["inputs"][:, 32:].max() == 0


def test_texts_are_bytes_ended_by_0(here: None) -> None:
    rows = everything(CATALOG[4], "train")
    one = [ord(letter) for letter in "one"]
    long = [ord(letter) for letter in TEXTS[2][:8]]
    assert (
        rows["targets"][0].tolist() == [*one, 0, 0, 0, 0, 0]
        and rows["mask"][0].tolist() == [1] * 4 + [0] * 4
    )
    assert rows["inputs"][0].tolist() == [0, *one, 0, 0, 0, 0]
    assert rows["targets"][2].tolist() == long and rows["inputs"][2].tolist() == [0, *long[:-1]]
    assert rows["mask"].sum(1).tolist() == [4, 8, 8, 1]
    plain = everything(CATALOG[5], "train")
    assert np.array_equal(plain["inputs"], rows["targets"])
    assert plain["mask"].sum(1).tolist() == [3, 8, 8, 0]  # without the end
    sentences = everything(CATALOG[6], "train")
    assert np.array_equal(sentences["inputs"], rows["targets"]) and sentences[
        "lengths"
    ].tolist() == [4, 8, 8, 1]
    assert sentences["targets"].tolist() == [0, 1, 0, 1] and sentences["mask"].tolist() == [1] * 4


def test_a_special_end_is_the_end_and_the_end_may_be_what_is_kept(here: None) -> None:
    data = Tokens(
        records=Tfds("lm1b"), batch=2, length=8, tokenizer=Bytes(specials=("<end>",)), keep="end"
    )
    rows = everything(data, "train")
    assert rows["targets"][0].tolist() == [*b"one", 256, 0, 0, 0, 0] and rows["inputs"][0, 0] == 256
    assert rows["targets"][2].tolist() == [*TEXTS[2].encode()[-7:], 256]


def test_pairs_end_with_the_end(here: None) -> None:
    data = CATALOG[7]
    rows = everything(data, "train")
    assert isinstance(data, Pairs) and (data.start, data.end, data.vocab) == (256, 257, 258)
    assert rows["inputs"][0].tolist() == [*b"one", 257, 0, 0, 0, 0] and rows[
        "lengths"
    ].tolist() == [4, 8, 8, 1]
    assert rows["targets"][0].tolist() == [*b"ONE", 257, 0, 0, 0, 0]
    assert rows["targets"][2].tolist() == [*TEXTS[2].upper().encode()[:7], 257]
    assert np.all((rows["targets"] == 257).sum(1) == 1)


def images(name: str, **fields: Any) -> Images:
    return Images(records=Tfds(name, **fields), batch=2, size=8, classes=5)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (images("imagenet2012"), ("imagenet2012 is not prepared in", "jaxbig data prepare")),
        (
            Sentences(records=Tfds("glue/sst2"), batch=2, length=8, classes=2),
            ("glue/sst2 is not", "TFDS_DATA_DIR"),
        ),
        (images("mnist:9.0.0"), ("mnist:9.0.0 is not prepared",)),
        (images("mnist", eval_split="dev"), ("no split 'dev'", "train (4), test (3)")),
    ],
    ids=str,
)
def test_data_set_that_is_not_prepared_is_refused_in_one_sentence(
    data: Examples, words: tuple[str, ...], here: None
) -> None:
    with pytest.raises(Refused) as refused:
        data.prepare()
    assert all(word in str(refused.value) for word in words), refused.value


def test_prepared_data_set_is_not_fetched_again(here: None) -> None:
    for data in CATALOG:
        data.fetch()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist", ("mnist is not in", "cannot be reached", "TFDS_DATA_DIR")),
        ("glue/sst2", ("glue/sst2 is not in", "cannot be reached")),
        ("mnits", ("TFDS knows no data set mnits", "nearest")),
    ],
)
def test_without_a_network_fetching_is_refused_at_once(
    name: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", nowhere)
    with pytest.raises(Refused) as refused:
        Tfds(name).fetch()
    assert all(word in str(refused.value) for word in words), refused.value


def test_interrupted_fetch_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    left = tmp_path / "mnist" / "incomplete.ABCDEF_3.0.1"
    left.mkdir(parents=True)
    builder = builder_class("mnist")(data_dir=tmp_path, file_format="array_record")
    monkeypatch.setattr(Tfds, "catalog_builder", lambda self, root: builder)
    monkeypatch.setattr("jaxbig.data.records.tfds.reachable", lambda host: True)
    MNIST.fetch()
    assert len(MNIST.source("train")) == 4 and not left.exists()


@pytest.mark.parametrize("classes", [3, 7])
def test_a_label_that_is_no_class_is_named_or_left_out(classes: int, here: None) -> None:
    data = Images(records=Tfds("mnist"), batch=4, size=28, channels=1, classes=classes)
    if classes == 7:
        assert everything(data, "train")["targets"].tolist() == [3, 4, 5, 6]
        return
    with pytest.raises(
        Exception,
        match=r"mnist.* train record 0 .*label.* is 3.*--data.classes 3.*skip-bad-records",
    ):
        everything(data, "train")


# -- splits are TFDS's own


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", [0, 1, 2, 3]),
        ("train[1:]", [1, 2, 3]),
        ("train[50%:]", [2, 3]),
        ("train[-1:]", [3]),
        ("train+test", [0, 1, 2, 3, 0, 1, 2]),
        ("train[:1]+test[1:]", [0, 1, 2]),
        ("all", [0, 1, 2, 3, 0, 1, 2]),
    ],
)
def test_a_split_is_what_tfds_makes_of_it(split: str, numbers: list[int], here: None) -> None:
    opened = Tfds("lm1b", train_split=split).open("train")
    assert [
        record["text"].decode() for record in opened.__getitems__(list(range(len(opened))))
    ] == [TEXTS[number] for number in numbers]


@pytest.mark.parametrize(
    "split", ["train[:1%]", "train[9:]", " train", "Train", "dev", "train[5%", "train+dev", ""]
)
@pytest.mark.parametrize("field", ["train_split", "eval_split"])
def test_a_split_that_is_none_or_empty_is_refused_with_those_that_are_there(
    split: str, field: str, here: None
) -> None:
    with pytest.raises(
        Refused, match=r"^data set lm1b has no (split|record in) .*train \(4\), test \(3\)"
    ) as refused:
        Tfds("lm1b", **{field: split}).prepare()
    assert repr(split) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("train", "evaluation", "shared"),
    [
        ("train", "test", 0),
        ("all", "test", 3),
        ("train[:3]", "train[2:]", 1),
        ("train[:2]", "train[2:]", 0),
    ],
)
def test_records_that_are_trained_and_evaluated_on_are_counted(
    train: str, evaluation: str, shared: int, here: None, caplog: pytest.LogCaptureFixture
) -> None:
    Tfds("lm1b", train_split=train, eval_split=evaluation).prepare()
    said = f"{shared} records of lm1b are in both {train} (to train) and {evaluation} (to evaluate)"
    assert [message for message in caplog.messages if "in both" in message] == [said] * (shared > 0)


# -- what a prepared folder says is not run


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_feature_of_a_foreign_module_is_refused_and_not_imported(
    key: str, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(catalog / "lm1b", tmp_path / "lm1b")
    (file,) = (tmp_path / "lm1b").rglob("features.json")
    content = json.loads(file.read_text())
    content["featuresDict"]["features"]["text"] = {key: "runs_when_imported.Text", "content": {}}
    file.write_text(json.dumps(content))
    (tmp_path / "runs_when_imported.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        Refused,
        match=r"features\.json names a feature runs_when_imported\.Text, which is no part of",
    ):
        Tfds("lm1b").prepare()
    assert "runs_when_imported" not in sys.modules


# -- its identity is of its bytes


def test_identity_changes_with_one_byte_of_the_files_that_are_read(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(catalog / "lm1b", tmp_path / "lm1b")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path / "cache"))
    whole = Tfds("lm1b")
    part = Tfds("lm1b", eval_split="train[3:]")
    before = whole.prepare(), part.prepare()
    assert (whole.prepare(), part.prepare()) == before
    (file,) = (tmp_path / "lm1b").rglob("*test*array_record*")
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)  # of the same size, as another label is
    assert whole.prepare() != before[0] and part.prepare() == before[1]
    monkeypatch.setattr(
        "jaxbig.data.core.content_digest.FILE_BYTES", 0
    )  # as of files that are too large to be read whole
    (tmp_path / "cache" / "digests").rename(tmp_path / "old")
    assert whole.prepare().endswith("of 64 blocks a file")
