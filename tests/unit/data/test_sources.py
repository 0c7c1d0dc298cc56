"""Every kind of records gives the same bytes for any readers and steps, and names errors."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxbig.data.audio import Sounds
from jaxbig.data.core.dataset import Data
from jaxbig.data.images import Images
from jaxbig.data.pipeline.loader import eval_batch, train_batch, train_batches
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.mixture import Mixture
from jaxbig.data.records.parquet import Parquet
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.records.text_files import TextFiles
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.records.tfds_builder import Builder, prepared
from jaxbig.data.tabular import Columns
from jaxbig.data.text import Sentences, TokenRows, Tokens
from jaxbig.data.tokenize.tokenizers import BytePairs
from jaxbig.errors import Failed

BATCH = 8
Make = Callable[[Path], Data]


def folder(root: Path) -> Images:
    draw = np.random.default_rng(0)
    for number in range(30):
        (root / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (*draw.integers(12, 30, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(
            root / "pictures" / "ab"[number % 2] / f"{number}.{'png' if number % 3 else 'jpg'}"
        )
    records = ImageFolder(folder=str(root / "pictures"), eval_share=0.2)
    return Images(records=records, batch=BATCH, size=8, canvas=16, classes=2)


def lines(root: Path) -> Tokens:
    texts = [json.dumps({"text": f"the {n} of {n * n}"}) + "\n" for n in range(50)]
    (root / "texts.jsonl").write_text("".join(texts))
    records = JsonLines(files=str(root / "texts.jsonl"), eval_share=0.2)
    return Tokens(records=records, batch=BATCH, length=12, tokenizer=BytePairs(vocab=270))


def files(root: Path) -> Tokens:
    for number in range(9):
        (root / f"{number}.txt").write_text("a line of it\n" * (number + 3))
    records = TextFiles(files=str(root / "*.txt"), eval_share=0.3)
    return Tokens(records=records, batch=BATCH, length=12, packed=True)


def table(root: Path) -> Sentences:
    columns = {"text": [f"number {n}" for n in range(60)], "label": [n % 3 for n in range(60)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "table.parquet", row_group_size=7)
    records = Parquet(files=str(root / "table.parquet"), eval_share=0.2)
    return Sentences(records=records, batch=BATCH, length=12, classes=3)


def arrays(root: Path) -> Columns:
    draw = np.random.default_rng(0)
    np.savez(root / "arrays.npz", x=draw.standard_normal((40, 3)), y=draw.integers(0, 2, 40))
    records = Arrays(file=str(root / "arrays.npz"), eval_share=0.2)
    return Columns(records=records, batch=BATCH, inputs=("x",), targets="y", shape=(3,), classes=2)


def sounds(root: Path) -> Sounds:
    return Sounds(
        records=Synthetic(waves=("audio",), labels=(("label", 4),)), batch=BATCH, classes=4
    )


def mixed(root: Path) -> Tokens:
    parts = tuple(part(root).records for part in (lines, files))  # type: ignore[attr-defined]
    return Tokens(records=Mixture(parts=parts, weights=(0.7, 0.3)), batch=BATCH, length=12)


def masked(root: Path) -> TokenRows:
    (root / "masked.txt").write_text("".join(f"line {n} of a text\n" for n in range(50)))
    records = TextFiles(files=str(root / "masked.txt"), by="line", eval_share=0.2)
    return TokenRows(records=records, batch=BATCH, length=12)


class Shades(Builder):
    """As TFDS has them: images that are encoded, and a class."""

    def features(self) -> dict[str, Any]:
        return {
            "image": tfds.features.Image(shape=(6, 6, 1)),
            "label": tfds.features.ClassLabel(num_classes=5),
        }

    def records(self) -> dict[str, Any]:
        shades = [{"image": np.full((6, 6), n, np.uint8), "label": n % 5} for n in range(50)]
        return {"train": shades, "test": shades[:9]}

    def _generate_examples(self, records: Any) -> Any:
        for number, record in enumerate(
            records
        ):  # TFDS makes a PNG of pixels with TensorFlow alone
            file = io.BytesIO()
            Image.fromarray(record["image"]).save(file, "png")
            file.seek(0)
            yield number, record | {"image": file}


def catalogue(root: Path) -> Images:
    prepared(Shades)
    return Images(records=Tfds("shades"), batch=BATCH, size=6, channels=1, classes=5)


MAKES = (folder, lines, files, table, arrays, sounds, mixed, masked, catalogue)
KINDS: dict[str, Make] = {make.__name__: make for make in MAKES}


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    for name in ("JAXBIG_CACHE", "TFDS_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    made = KINDS[request.param](tmp_path)
    made.prepare()
    return made


def as_bytes(batches: Any) -> list[dict[str, bytes]]:
    return [{name: each.tobytes() for name, each in batch.items()} for batch in batches]


def test_batches_have_the_shapes_of_the_spec_and_every_example_is_evaluated(data: Data) -> None:
    for batch in (
        train_batch(data.source("train"), 3, seed=0, batch=BATCH),
        eval_batch(data.source("eval"), 0, batch=BATCH),
    ):
        assert {name: (each.shape, each.dtype) for name, each in batch.items()} == {
            name: (each.shape, each.dtype) for name, each in data.spec().items()
        }


def test_threads_and_processes_of_a_run_share_the_same_bytes(data: Data) -> None:
    source = data.source("train")
    for start in (0, 1_000):
        expected = as_bytes(
            train_batch(source, step, seed=7, batch=BATCH) for step in range(start, start + 3)
        )
        assert (
            as_bytes(train_batches(source, range(start, start + 3), seed=7, batch=BATCH, threads=3))
            == expected
        )
        for processes in (2, 4):
            share = BATCH // processes
            parts = [
                list(
                    train_batches(
                        source,
                        range(start, start + 3),
                        seed=7,
                        batch=BATCH,
                        rows=slice(p * share, (p + 1) * share),
                        threads=0,
                    )
                )
                for p in range(processes)
            ]
            joined = [
                {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
                for batches in zip(*parts, strict=True)
            ]
            assert as_bytes(joined) == expected


@pytest.mark.slow
@pytest.mark.parametrize("data", ["folder", "mixed", "sounds", "masked"], indirect=True)
def test_workers_read_the_same_bytes(data: Data) -> None:
    source = data.source("train")
    for start, workers in ((0, 1), (1_000, 4)):
        expected = as_bytes(
            train_batch(source, step, seed=7, batch=BATCH) for step in range(start, start + 4)
        )
        assert (
            as_bytes(
                train_batches(
                    source, range(start, start + 4), seed=7, batch=BATCH, threads=2, workers=workers
                )
            )
            == expected
        )


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"y": 1}, "no 'x', which --data.inputs names, but y"),
        ({"x": ["a", "b", "c"], "y": 1}, "'x' is <U1, and not of numbers"),
        ({"x": [1.0, 2.0], "y": 1}, r"shape \(2,\), but --data.shape is \(3,\)"),
        ({"x": [1.0, 2.0, float("nan")], "y": 1}, "not finite"),
        ({"x": [1.0, 2.0, 3.0], "y": 5}, "'y' is 5, and --data.classes 2"),
    ],
    ids=["missing", "dtype", "shape", "not finite", "class"],
)
def test_columns_that_do_not_fit_the_spec_are_named(
    record: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"x": [1.0, 2.0, 3.0], "y": 0}) + "\n" + json.dumps(record) + "\n"
    )
    records = JsonLines(files=str(tmp_path / "rows.jsonl"), eval_share=0.0)
    data = Columns(records=records, batch=2, inputs=("x",), targets="y", shape=(3,), classes=2)
    with pytest.raises(Failed, match=f"rows.jsonl line 2.*{words}"):
        data.source("train").rows(np.arange(2))
    rows = dataclasses.replace(data, skip_bad_records=1).source("train").rows(np.arange(2))
    assert rows["mask"].tolist() == [1, 0] and rows["inputs"].tolist() == [[1, 2, 3], [0, 0, 0]]


def test_columns_of_a_table_make_a_vector(tmp_path: Path) -> None:
    table = {"a": [1, 2, 3], "b": [0.5, 0.25, 0.125], "c": [7.0, 8.0, 9.0]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    records = Parquet(files=str(tmp_path / "t.parquet"), eval_share=0.0)
    data = Columns(records=records, batch=3, inputs=("b", "a"), targets="c", shape=(2,))
    with pytest.raises(ValueError, match=r"its b a have different shapes, .*\(2,\)"):
        data.read({"b": 1.0, "a": [1.0, 2.0], "c": 1.0})
    rows = data.source("train").rows(np.array([2, 0]))
    assert rows["inputs"].tolist() == [[0.125, 3], [0.5, 1]] and rows["targets"].tolist() == [9, 7]
