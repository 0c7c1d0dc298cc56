"""What a data set learns from its data is in a run's folder, and is enough without that data."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import sample_files

import jaxbig as jb
from jaxbig.config.deserialize import shipped_classes
from jaxbig.data.core.dataset import Data
from jaxbig.data.tokenize.tokenizers import Tokenizer

BYTE_PAIRS = jb.data.BytePairs(vocab=300, specials=("<end>", "<start>", "<mask>"))
NOTES = jb.data.TextFiles(files="notes/*.txt", eval_share=0.25)
REVIEWS = jb.data.JsonLines(files="reviews.jsonl", eval_share=0.25)


def flowers(**fields: Any) -> jb.data.Columns:
    given: dict[str, Any] = {"inputs": ("length", "width"), "shape": (2,), "targets": "kind"}
    given |= {"classes": 3, "normalize": True, **fields}
    records = jb.data.Csv(files="flowers.csv", eval_share=0.25, fill=(("width", "0"),))
    return jb.data.Columns(records=records, batch=8, **given)


def pictures() -> jb.data.Images:
    records = jb.data.ImageFolder(folder="pictures", eval_share=0.25)
    return jb.data.Images(records=records, classes=2, size=8, batch=8)


def sounds() -> jb.data.Sounds:
    records = jb.data.AudioFolder(folder="sounds", eval_share=0.25)
    return jb.data.Sounds(records=records, classes=2, samples=800, batch=8)


def reviews(**fields: Any) -> jb.data.Sentences:
    return jb.data.Sentences(records=REVIEWS, classes=3, length=16, batch=8, **fields)


KINDS: dict[str, tuple[Callable[[], Data], str]] = {
    "statistics and names": (flowers, "flowers"),
    "statistics": (
        lambda: flowers(inputs=("width",), shape=(), targets="length", classes=None),
        "flowers",
    ),
    "names of folders": (pictures, "pictures"),
    "names of folders of sounds": (sounds, "sounds"),
    "names in labels": (reviews, "reviews"),
    "a tokenizer and names": (lambda: reviews(tokenizer=BYTE_PAIRS), "reviews"),
    "a tokenizer": (
        lambda: jb.data.Tokens(records=NOTES, length=16, tokenizer=BYTE_PAIRS, batch=8),
        "notes",
    ),
    "a tokenizer for masks": (
        lambda: jb.data.TokenRows(records=NOTES, length=16, tokenizer=BYTE_PAIRS, batch=8),
        "notes",
    ),
    "a tokenizer's file": (
        lambda: jb.data.Tokens(
            records=NOTES,
            length=16,
            tokenizer=dataclasses.replace(BYTE_PAIRS, file="byte_pairs.json"),
            batch=8,
        ),
        "notes",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, name: str) -> None:
    getattr(sample_files, name)(folder, np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_is_there_when_the_source_is_gone(kind: str, folder: Path) -> None:
    make, source = KINDS[kind]
    write(folder, source)
    if kind == "a tokenizer's file":
        learned: Any = KINDS["a tokenizer"][0]()
        learned.prepare()
        Path("byte_pairs.json").write_bytes(learned.tokenizer.data)
    before: Any = make()
    before.prepare()
    record = before.records.open("train")[0]
    (folder / "run").mkdir()
    for name, content in before.kept().items():
        (folder / "run" / name).write_bytes(content)
    for path in folder.iterdir():
        if path.name != "run":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    fresh: Any = make()
    after = fresh.with_kept(folder / "run")
    label = getattr(before, "label_field", None)
    unlabeled = {name: value for name, value in record.items() if name != label}
    asked = after.read_unlabeled(unlabeled)
    assert np.array_equal(asked["inputs"], before.read(record)["inputs"])
    assert after == before and getattr(after, "names", ()) == getattr(before, "names", ())
    for name, field in before.read(record).items():
        assert np.array_equal(after.read(record)[name], field), name
    fields = {field.name for field in dataclasses.fields(fresh)}
    assert set(vars(fresh)) == fields, "the given one is not changed"


def test_every_class_that_keeps_something_takes_it_back() -> None:
    classes = [each for of_name in shipped_classes().values() for each in of_name]
    both = [each for each in classes if issubclass(each, Data | Tokenizer)]
    keeping = [each for each in both for base in each.__mro__ if "kept" in vars(base)]
    assert len(keeping) > 10
    for each in keeping:
        bases = [base for base in each.__mro__ if "kept" in vars(base)]
        assert all("with_kept" in vars(base) for base in bases), each


def test_numbers_that_are_not_normalized_yet_are_refused_without_blaming_the_file(
    folder: Path,
) -> None:
    write(folder, "flowers")
    words = r"mean and standard deviation of length width are not known yet: call `data.prepare"
    with pytest.raises(jb.Refused, match=words):
        flowers().read({"length": 1.0, "width": 2.0, "kind": "iris"})
    with pytest.raises(jb.Refused, match=words):
        flowers().source("eval")


def test_names_are_those_of_the_run_when_a_folder_has_come_since(folder: Path) -> None:
    write(folder, "pictures")
    before = pictures()
    before.prepare()
    for name, content in before.kept().items():
        (folder / name).write_bytes(content)
    shutil.copytree("pictures/forest", "pictures/desert")
    after = pictures().with_kept(folder)
    assert after.names == ("forest", "sea")
    with pytest.raises(jb.Refused, match=r"classes forest, sea, .* now have desert, forest, sea"):
        after.source("eval")


def test_restored_run_predicts_as_before_when_its_table_is_gone(folder: Path) -> None:
    write(folder, "flowers")
    experiment = jb.Experiment(
        model=jb.models.MLP(widths=(4,), outputs=3),
        objective=jb.objectives.Classification(classes=3),
        data=flowers(),
        optimizer=jb.optim.SGD(learning_rate=jb.optim.WarmupCosine(peak=0.1, warmup=1)),
        steps=1,
        evaluate_every=1,
        checkpoint_every=1,
    )
    run = jb.fit(experiment, folder / "run")
    record = {"length": 4.8, "width": 9.9, "kind": "rose"}
    data: Any = run.experiment.data
    inputs = data.read(record)["inputs"][None]
    Path("flowers.csv").unlink()
    again = jb.restore(folder / "run")
    found: Any = again.experiment.data
    assert found.names == data.names == sample_files.KINDS
    assert np.array_equal(found.read(record)["inputs"][None], inputs)
    assert np.array_equal(jb.apply(again, inputs), jb.apply(run, inputs))
    with pytest.raises(jb.Refused):
        jb.evaluate(again)
    assert found.names == data.names, "an evaluation that fails changes nothing"
