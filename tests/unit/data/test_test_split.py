"""The split "test": apart from both others, the same everywhere, and moving nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.experiments import small

from jaxbig.data.builtin.digits import Digits
from jaxbig.data.core.dataset import open_split
from jaxbig.data.images import Images
from jaxbig.data.records.hugging_face import HuggingFace
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.mixture import Mixture
from jaxbig.data.records.tfds import Tfds
from jaxbig.data.tabular import Columns
from jaxbig.data.text import Tokens
from jaxbig.errors import Refused
from jaxbig.tracking.console import Screen
from jaxbig.train.evaluate import evaluate_run
from jaxbig.train.run import evaluate
from jaxbig.train.trainer import fit


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JsonLines:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(f'{{"text": "number {n}"}}\n' for n in range(400)))
    return JsonLines(files="a.jsonl", eval_share=0.2)


def texts(records: Any, split: str) -> list[str]:
    opened = records.open(split)
    return [opened[index]["text"] for index in range(len(opened))]


def test_test_share_takes_records_from_training_and_none_from_evaluation(lines: JsonLines) -> None:
    before = {split: texts(lines, split) for split in ("train", "eval")}
    with_test = dataclasses.replace(lines, test_share=0.1)
    after = {split: texts(with_test, split) for split in ("train", "eval", "test")}
    assert after["eval"] == before["eval"]
    assert sorted(after["train"] + after["test"]) == sorted(before["train"])
    assert 20 < len(after["test"]) < 60
    more = texts(dataclasses.replace(lines, test_share=0.3), "test")
    assert set(after["test"]) < set(more)


def test_test_share_changes_the_identity_only_where_it_is_given(lines: JsonLines) -> None:
    plain = lines.prepare()
    assert "test" not in plain and repr(lines) == repr(dataclasses.replace(lines, test_share=0.1))
    assert ", test 40, " in dataclasses.replace(lines, test_share=0.1).prepare()


def test_shares_that_leave_nothing_for_training_are_refused(lines: JsonLines) -> None:
    with pytest.raises(Refused, match=r"test-share 0\.8: with eval_share 0\.2 it must be below 1"):
        dataclasses.replace(lines, test_share=0.8).prepare()


@pytest.mark.parametrize("packed", [False, True])
def test_texts_have_a_test_split_packed_and_in_a_mixture(lines: JsonLines, packed: bool) -> None:
    part = dataclasses.replace(lines, test_share=0.1)
    count = len(texts(part, "test"))
    for records in (part, Mixture(parts=(part, part), weights=(1.0, 1.0))):
        data = Tokens(batch=2, length=64, records=records, packed=packed)
        data.prepare()
        source = open_split(data, "test")
        masks = source.rows(np.arange(len(source)))["mask"]
        copies = 2 if records is not part else 1
        tokens = sum(len(text) + 1 for text in texts(part, "test"))
        assert masks.sum() == copies * tokens
        assert packed == (len(source) < copies * count)


def test_folder_named_test_beside_train_and_val_is_the_test_split(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        for index in range(number + 1):
            file = tmp_path / split / "cat" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(file)
    data = Images(batch=2, size=8, classes=1, records=ImageFolder(folder=str(tmp_path)))
    data.prepare()
    sizes = {split: len(open_split(data, split)) for split in ("train", "eval", "test")}
    assert sizes == {"train": 1, "eval": 2, "test": 3}


def test_tfds_has_a_test_split_where_it_was_prepared_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits: dict[str, int] = {"train": 1}
    monkeypatch.setattr(Tfds, "builder", lambda self: type("B", (), {"info": Info(splits)}))
    assert not Tfds("mnist").has_test()
    splits["test"] = 1
    assert Tfds("mnist", eval_split="validation").has_test()


@pytest.mark.parametrize(
    "splits",
    [("train", "test"), ("train+test", "validation"), ("train", "test[:50%]"), ("train", "all")],
)
def test_tfds_has_no_test_split_where_training_or_evaluation_uses_it(
    splits: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"train": 1, "validation": 1, "test": 1}
    monkeypatch.setattr(Tfds, "builder", lambda self: type("B", (), {"info": Info(there)}))
    assert not Tfds("mnist", train_split=splits[0], eval_split=splits[1]).has_test()


@pytest.mark.parametrize("kind", ["folder", "hugging face"])
def test_split_that_evaluation_uses_already_is_no_test_split(kind: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / split / "cat" / "0.png")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    records: Any = ImageFolder(folder=str(tmp_path))
    if kind == "hugging face":
        records = HuggingFace(folder=str(tmp_path))
    assert not records.has_test()


@dataclasses.dataclass
class Info:
    splits: Any


@pytest.mark.parametrize("split", ["test", "dev"])
def test_data_without_the_split_is_refused(split: str) -> None:
    with pytest.raises(Refused, match=f"split {split}: "):
        open_split(Digits(batch=8), split)


def test_run_is_evaluated_on_its_test_split(lines: JsonLines) -> None:
    Path("b.jsonl").write_text("".join(f'{{"x": {n / 100}, "y": {n}}}\n' for n in range(100)))
    records = dataclasses.replace(lines, files="b.jsonl", test_share=0.1)
    data = Columns(batch=8, records=records, inputs="x", targets="y", shape=())
    few = {"steps": 2, "evaluate_every": 2, "checkpoint_every": 2}
    experiment = dataclasses.replace(small("diabetes_mlp", **few), data=data)
    summary = fit(experiment, Path("run"), Screen())
    tested = evaluate_run(experiment, Path("run"), split="test")["metrics"]
    evaluated = evaluate_run(experiment, Path("run"))["metrics"]
    assert evaluated["loss"] == summary["metrics"]["eval/loss"] != tested["loss"]
    assert evaluate("run", split="test") == tested
    records = dataclasses.replace(records, test_share=0.0)
    with pytest.raises(Refused, match="another model or data"):
        evaluate_run(
            dataclasses.replace(experiment, data=dataclasses.replace(data, records=records)),
            Path("run"),
        )
