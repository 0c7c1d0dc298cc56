"""Every pairing of records, examples and options: right by a slow reference, or refused."""

import collections
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import tokenizers
from PIL import Image

from jaxbig.data.audio import Sounds
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.examples import Examples
from jaxbig.data.images import Images
from jaxbig.data.pipeline.loader import eval_batch, train_batch
from jaxbig.data.pipeline.sampler import eval_steps
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.file_index import Files
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.mixture import Mixture
from jaxbig.data.records.parquet import Parquet
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.records.text_files import TextFiles
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.records.tfds_builder import Builder, prepared
from jaxbig.data.tabular import Columns
from jaxbig.data.text import Pairs, Sentences, TokenRows, Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs, Bytes
from jaxbig.data.transforms.log_mel import LogMel
from jaxbig.errors import Failed, Refused

COUNT = 30
CLASSES = 3
LENGTH = 10
BATCH = 4
SAMPLES = 40
SPECIALS = ("<start>", "<end>", "<mask>")

# -- records: the same few by each kind


def truth() -> list[Record]:
    """The records, as far as a kind can hold them: rows shorter and longer than a batch's."""
    draw = np.random.default_rng(0)
    return [
        {
            "image": draw.integers(0, 256, (6, 6, 3), dtype=np.uint8),
            "label": n % CLASSES,
            "text": f"{n} " + "ab" * (n % 9),
            "upper": f"{n} " + "AB" * (n % 7),
            "audio": draw.integers(-(2**15), 2**15, 30 + n, dtype=np.int16),
            "x": draw.standard_normal(2).astype(np.float32),
        }
        for n in range(COUNT)
    ]


TRUTH = truth()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class PairsOfEverything(Builder):
    def features(self) -> dict[str, Any]:
        return {
            "image": tfds.features.Image(shape=(6, 6, 3)),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
            "text": tfds.features.Text(),
            "upper": tfds.features.Text(),
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16),
            "x": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }

    def records(self) -> dict[str, Any]:
        return {"train": TRUTH[:20], "test": TRUTH[20:]}

    def _generate_examples(self, records: Any) -> Any:
        for number, record in enumerate(records):
            yield number, record | {"image": io.BytesIO(png(record["image"]))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Records):
    """Records of one's own, by one method."""

    def open(self, split: str) -> Sequence[Record]:
        return TRUTH[:20] if split == "train" else TRUTH[20:]


def table(file: Path, records: list[Record]) -> Parquet:
    plain = [
        {
            **each,
            "image": png(each["image"]),
            "audio": each["audio"].tolist(),
            "x": each["x"].tolist(),
        }
        for each in records
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), file, row_group_size=7)
    return Parquet(files=str(file), eval_share=0.3)


def folder(root: Path) -> ImageFolder:
    for number, record in enumerate(TRUTH):
        (root / "abc"[record["label"]]).mkdir(parents=True, exist_ok=True)
        (root / "abc"[record["label"]] / f"{number}.png").write_bytes(png(record["image"]))
    return ImageFolder(folder=str(root), eval_share=0.3)


def lines(file: Path) -> JsonLines:
    rows = [{**each, "audio": each["audio"].tolist(), "x": each["x"].tolist()} for each in TRUTH]
    for each in rows:
        del each["image"]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return JsonLines(files=str(file), eval_share=0.3)


def arrays(file: Path) -> Arrays:
    audio = np.stack([np.resize(each["audio"], SAMPLES + 5) for each in TRUTH])
    columns = {
        name: np.array([each[name] for each in TRUTH])
        for name in ("image", "label", "text", "upper", "x")
    }
    np.savez(file, audio=audio, **columns)  # type: ignore[arg-type]
    return Arrays(file=str(file), eval_share=0.3)


def texts(root: Path) -> TextFiles:
    root.mkdir()
    for number, record in enumerate(TRUTH):
        (root / f"{number}.txt").write_text(record["text"])
    return TextFiles(files=str(root / "*.txt"), eval_share=0.3)


def synthetic() -> Synthetic:
    return Synthetic(
        count=20,
        images=("image",),
        texts=("text", "upper"),
        waves=("audio",),
        labels=(("label", CLASSES),),
    )


KINDS = ("tfds", "folder", "lines", "texts", "table", "arrays", "own", "synthetic", "mixture")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Records]:
    root = tmp_path_factory.mktemp("pairs")
    parts = table(root / "a.parquet", TRUTH[:20]), table(root / "b.parquet", TRUTH[20:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
        prepared(PairsOfEverything)
    made = (
        Tfds("pairs_of_everything"),
        folder(root / "images"),
        lines(root / "lines.jsonl"),
        texts(root / "texts"),
        table(root / "t.parquet", TRUTH),
        arrays(root / "arrays.npz"),
        Own(),
        synthetic(),
        Mixture(
            parts=tuple(dataclasses.replace(part, eval_share=0.4) for part in parts), weights=(1, 3)
        ),
    )
    return dict(zip(KINDS, made, strict=True))


@pytest.fixture(autouse=True)
def places(
    kinds: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(kinds["lines"].files).parent
    monkeypatch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
    monkeypatch.setenv("JAXBIG_CACHE", str(root / "cache"))


FIELDS = {
    "folder": {"image", "label"},
    "lines": set(TRUTH[0]) - {"image"},
    "texts": {"name", "text"},
    "synthetic": set(TRUTH[0]) - {"x"},
}
"""Of the records that do not have them all."""

# -- examples, and slow references: (a record, its label may be left out) -> the fields of a row

Reference = Callable[[Record], dict[str, Any]]


def as_text(value: Any) -> str:
    """A text of a record: bytes, a str, or an array of one."""
    value = value.item() if isinstance(value, np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else value


def row(tokens: list[int]) -> list[int]:
    return (tokens + [0] * LENGTH)[:LENGTH]


def of_image(record: Record) -> dict[str, Any]:
    image = record["image"]
    picture = (
        Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(io.BytesIO(image))
    )
    width, height = picture.size
    side = min(picture.size)
    left = (width - side) / 2
    top = (height - side) / 2
    square = picture.resize(
        (6, 6), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    return {"inputs": np.asarray(square), "targets": int(record["label"]), "mask": 1}


def of_tokens(record: Record) -> dict[str, Any]:
    targets = [*as_text(record["text"]).encode(), 257][:LENGTH]
    mask = [1] * len(targets)
    return {"inputs": [257, *row(targets)[:-1]], "targets": row(targets), "mask": row(mask)}


def of_token_rows(record: Record) -> dict[str, Any]:
    tokens = [*as_text(record["text"]).encode(), 257][:LENGTH]
    hidden = [int(token != 257) for token in tokens]  # an end is not to be filled in
    return {"inputs": row(tokens), "lengths": len(tokens), "mask": row(hidden)}


def of_sentence(record: Record) -> dict[str, Any]:
    return {**of_token_rows(record), "targets": int(record["label"]), "mask": 1}


def of_pair(record: Record) -> dict[str, Any]:
    targets = [*as_text(record["upper"]).encode()[: LENGTH - 1], 257]
    source = of_token_rows(record)
    return {**source, "targets": row(targets), "mask": row([1] * len(targets))}


def of_sound(record: Record) -> dict[str, Any]:
    samples = [float(sample) / 2**15 for sample in record["audio"]][:SAMPLES]
    return {
        "inputs": samples + [0.0] * (SAMPLES - len(samples)),
        "targets": int(record["label"]),
        "mask": 1,
    }


def of_columns(record: Record) -> dict[str, Any]:
    return {"inputs": [float(x) for x in record["x"]], "targets": int(record["label"]), "mask": 1}


class Made(NamedTuple):
    """A data set: its fields, a row of it by a slow reference, and the fields it reads."""

    data: Any
    fields: dict[str, Any]
    reference: Reference
    needs: set[str]


TEXT: dict[str, Any] = {"length": LENGTH, "tokenizer": Bytes(specials=SPECIALS)}
LABEL: dict[str, Any] = {"classes": CLASSES}
TWO_TEXTS = {"source_feature": "text", "target_feature": "upper"}
NUMBERS = {"inputs": ("x",), "targets": "label", "shape": (2,)}
MAKES = {
    "Images": Made(Images, {**LABEL, "size": 6}, of_image, {"image", "label"}),
    "Tokens": Made(Tokens, TEXT, of_tokens, {"text"}),
    "TokenRows": Made(TokenRows, TEXT, of_token_rows, {"text"}),
    "Sentences": Made(Sentences, {**TEXT, **LABEL}, of_sentence, {"text", "label"}),
    "Pairs": Made(Pairs, {**TEXT, **TWO_TEXTS}, of_pair, {"text", "upper"}),
    "Sounds": Made(
        Sounds,
        {**LABEL, "samples": SAMPLES, "spectrogram": LogMel(window=16, hop=8, mels=2)},
        of_sound,
        {"audio", "label"},
    ),
    "Columns": Made(Columns, {**LABEL, **NUMBERS}, of_columns, {"x", "label"}),
}


def make(name: str, records: Records, **more: Any) -> Any:
    return MAKES[name].data(records=records, batch=BATCH, **{**MAKES[name].fields, **more})


TEXTS = ("Tokens", "TokenRows", "Sentences", "Pairs")
LABELLED = ("Images", "Sentences", "Sounds", "Columns")


def missing(kind: str, name: str) -> set[str]:
    """The fields that such records do not have for it."""
    return MAKES[name].needs - FIELDS.get(kind, set(TRUTH[0]))


ALL = [(kind, name) for kind in KINDS for name in MAKES]
RIGHT = [(kind, name) for kind, name in ALL if not missing(kind, name)]
REFUSED = [(kind, name) for kind, name in ALL if missing(kind, name)]


def agree(
    rows: dict[str, np.ndarray], expected: list[dict[str, Any]], reduced: bool = False
) -> None:
    """Compares field by field.

    Args:
      reduced: JPEGs are decoded at a fraction of their size, so only mean colors are compared.
    """
    for name in expected[0]:
        found = rows[name].astype(float)
        wanted = np.array([each[name] for each in expected]).astype(float)
        if reduced and name == "inputs":
            np.testing.assert_allclose(found.mean((1, 2)), wanted.mean((1, 2)), atol=12)
        else:
            np.testing.assert_allclose(found, wanted, atol=1e-7, err_msg=name)


def as_workers_have_it(source: Any) -> Any:
    return ForkingPickler.loads(ForkingPickler.dumps(source))  # type: ignore[attr-defined]


# -- pairs


def test_table_is_complete() -> None:
    assert len(ALL) == len(KINDS) * len(MAKES) == 63 and len(RIGHT) == 50


@pytest.mark.parametrize(("kind", "name"), RIGHT)
def test_a_row_is_what_the_reference_makes_of_its_record(
    kind: str, name: str, kinds: dict[str, Records]
) -> None:
    data = make(name, kinds[kind])
    reference = MAKES[name].reference
    data.prepare()
    data.check()
    for split in ("train", "eval"):
        opened = data.records.open(split)
        source = data.source(split)
        expected = [reference(opened[index]) for index in range(len(opened))]
        for each in (source, as_workers_have_it(source)):
            agree(
                each.rows(np.arange(len(opened))), expected, (kind, name) == ("synthetic", "Images")
            )
    steps = eval_steps(source, BATCH)
    batches = [eval_batch(source, step, batch=BATCH) for step in range(steps)]
    assert sum(int(batch["mask"].reshape(BATCH, -1).any(1).sum()) for batch in batches) == len(
        opened
    )


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_a_pair_that_cannot_be_is_refused_by_the_field_that_lacks(
    kind: str, name: str, kinds: dict[str, Records]
) -> None:
    lost = "|".join(missing(kind, name))
    for packed in {False, name == "Tokens"}:
        data = make(name, kinds[kind], **({"packed": True} if packed else {}))
        with pytest.raises(Refused, match=rf"does not fit .* it has no '({lost})'"):
            data.prepare()
            data.check()


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_each_kind_are_those_that_were_written(
    kind: str, kinds: dict[str, Records]
) -> None:
    records: Any = kinds[kind]
    both = [records.open(split) for split in ("train", "eval")]
    found = [opened[index] for opened in both for index in range(len(opened))]
    if kind == "synthetic":
        assert len(found) == 40
    elif "text" in found[0]:
        assert sorted(as_text(each["text"]) for each in found) == sorted(
            each["text"] for each in TRUTH
        )
    else:
        assert sorted(each["image"] for each in found) == sorted(
            png(each["image"]) for each in TRUTH
        )


# -- with options


@pytest.mark.parametrize(("kind", "name"), [pair for pair in RIGHT if pair[1] in LABELLED])
def test_records_that_do_not_fit_are_left_out_or_end_it(
    kind: str, name: str, kinds: dict[str, Records]
) -> None:
    opened = kinds[kind].open("train")
    labels = [int(opened[index]["label"]) for index in range(len(opened))]
    bad = labels.count(2)
    assert bad > 1
    rows = (
        make(name, kinds[kind], classes=2, skip_bad_records=bad)
        .source("train")
        .rows(np.arange(len(opened)))
    )
    assert rows["mask"].tolist() == [float(label < 2) for label in labels]
    whole = make(name, kinds[kind]).source("train").rows(np.arange(len(opened)))
    for field, each in rows.items():
        assert np.array_equal(each[rows["mask"] > 0], whole[field][rows["mask"] > 0])
        assert not each[rows["mask"] == 0].any()
    with pytest.raises(Failed, match=r"its 'label' is 2, and --data\.classes 2"):
        make(name, kinds[kind], classes=2, skip_bad_records=bad - 1).source("train").rows(
            np.arange(len(opened))
        )


FILES = ("folder", "lines", "texts", "table", "arrays")


@pytest.mark.parametrize(("kind", "name"), [pair for pair in RIGHT if pair[0] in FILES])
def test_limit_and_repeat_hold_for_what_is_made(
    kind: str, name: str, kinds: dict[str, Records]
) -> None:
    records = kinds[kind]
    assert isinstance(records, Files)
    data = make(name, dataclasses.replace(records, limit=6, repeat=3))
    whole = make(name, records)

    def counted(data: Examples, split: str) -> collections.Counter[bytes]:
        source = data.source(split)
        inputs = source.rows(np.arange(len(source)))["inputs"]
        return collections.Counter(each.tobytes() for each in inputs)

    few = counted(data, "train")
    all_of = counted(whole, "train")
    assert sum(few.values()) == 18 and set(few) <= set(all_of)
    assert all(count % 3 == 0 for count in few.values())
    assert counted(data, "eval") == counted(whole, "eval")
    everything = counted(make(name, dataclasses.replace(records, eval_share=0)), "train")
    assert everything == all_of + counted(whole, "eval")


@pytest.mark.parametrize(
    "options", [{}, {"limit": 6}, {"repeat": 2}, {"limit": 5, "repeat": 3}, {"eval_share": 0.6}]
)
@pytest.mark.parametrize("kind", [kind for kind, name in RIGHT if name == "Tokens"])
def test_packed_rows_hold_each_text_as_often_as_its_records_do(
    kind: str, options: dict[str, Any], kinds: dict[str, Records]
) -> None:
    records = kinds[kind]
    if options and not isinstance(records, Files):
        return
    data = make("Tokens", dataclasses.replace(records, **options), packed=True)
    data.prepare()
    for split in ("train", "eval"):
        opened = data.records.open(split)
        source = as_workers_have_it(data.source(split))
        documents = [
            [*as_text(opened[index]["text"]).encode(), 257] for index in range(len(opened))
        ]
        wanted = [
            tokens[start : start + LENGTH]
            for tokens in documents
            for start in range(0, len(tokens), LENGTH)
        ]
        rows = source.rows(np.arange(len(source)))
        pieces = [
            targets[segments == number].tolist()
            for targets, segments in zip(rows["targets"], rows["segments"], strict=True)
            for number in range(1, segments.max() + 1)
        ]
        assert sorted(pieces) == sorted(wanted)
        assert np.array_equal(rows["mask"] > 0, rows["segments"] > 0)


@pytest.mark.parametrize(("kind", "name"), [pair for pair in RIGHT if pair[1] in TEXTS])
@pytest.mark.parametrize("keep", ["beginning", "end"])
def test_tokens_of_a_learned_tokenizer_are_those_of_its_file(
    kind: str, name: str, keep: str, kinds: dict[str, Records]
) -> None:
    data = make(name, kinds[kind], tokenizer=BytePairs(vocab=280, specials=SPECIALS), keep=keep)
    data.prepare()
    library = tokenizers.Tokenizer.from_str(data.kept()["tokenizer.json"].decode())
    opened = data.records.open("train")
    source = as_workers_have_it(data.source("train"))
    rows = source.rows(np.arange(len(opened)))
    field, feature = (
        ("targets", "upper")
        if name == "Pairs"
        else ("targets" if name == "Tokens" else "inputs", "text")
    )
    for index, found in enumerate(rows[field].tolist()):
        tokens = [*library.encode(as_text(opened[index][feature])).ids, data.tokenizer.end]
        kept = tokens[:LENGTH] if keep == "beginning" else tokens[-LENGTH:]
        if name == "Pairs":
            kept[-1] = data.tokenizer.end
        assert found == row(kept)


@pytest.mark.parametrize("name", MAKES)
def test_a_mixture_s_weights_hold_for_what_is_made(name: str, kinds: dict[str, Records]) -> None:
    """1 to 3; of packed texts see test_text.py."""
    mixture: Any = kinds["mixture"]
    own = make(name, mixture.parts[0]).source("train")
    of_first = {each.tobytes() for each in own.rows(np.arange(len(own)))["inputs"]}
    source = make(name, mixture).source("train")
    drawn = [
        each.tobytes()
        for step in range(50)
        for each in train_batch(source, step, seed=1, batch=BATCH)["inputs"]
    ]
    assert sum(each in of_first for each in drawn) / len(drawn) == pytest.approx(0.25, abs=0.02)


def test_synthetic_records_replace_real_ones_where_the_data_set_has_them(
    kinds: dict[str, Records],
) -> None:
    for name in MAKES:
        data = make(name, kinds["table"])
        if name == "Columns":  # there are no synthetic numbers
            assert not hasattr(data, "synthetic")
            continue
        small = data.synthetic()
        small.prepare()
        batch = train_batch(small.source("train"), 0, seed=0, batch=BATCH)
        assert {field: each.shape for field, each in batch.items()} == {
            field: each.shape for field, each in small.spec().items()
        }
