"""An experiment that does not fit its records is refused before anything is compiled."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.experiments import small

from jaxbig.data.audio import Sounds
from jaxbig.data.core.dataset import Data, Record, Records
from jaxbig.data.core.examples import Examples, spread
from jaxbig.data.images import Images
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.image_folder import ImageFolder
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.records.mixture import Mixture
from jaxbig.data.records.synthetic import Synthetic, image
from jaxbig.data.tabular import Columns
from jaxbig.data.text import Pairs, Sentences, Tokens
from jaxbig.data.transforms.augment import CentralCrop, Flip, Mixup, ResizedCrop
from jaxbig.data.transforms.log_mel import LogMel
from jaxbig.errors import Failed, Refused
from jaxbig.tracking.console import Screen
from jaxbig.train import trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Records):
    """Records that are given, the same for both splits."""

    rows: tuple[Any, ...]

    def open(self, split: str) -> Sequence[Record]:
        return [dict(row) for row in self.rows]


def given(*rows: dict[str, Any]) -> Given:
    return Given(rows=tuple(tuple(row.items()) for row in rows))


TEXTS = given(*({"text": "ab", "label": number % 5} for number in range(40)))
TABLE = given(
    *({"a": float(number), "b": 1.0, "y": number % 5, "z": [1.0, 2.0]} for number in range(40))
)
SOUND = Synthetic(count=4, waves=("audio",), labels=(("label", 3),))
PICTURES = Synthetic(count=4, images=("image",), labels=(("label", 3),))


def sentences(**fields: Any) -> Sentences:
    return Sentences(**{"records": TEXTS, "batch": 2, "length": 8, "classes": 5, **fields})


def columns(**fields: Any) -> Columns:
    return Columns(
        **{
            "records": TABLE,
            "batch": 2,
            "inputs": ("a", "b"),
            "shape": (2,),
            "targets": "y",
            **fields,
        }
    )


def images(**fields: Any) -> Images:
    return Images(**{"records": PICTURES, "batch": 2, "size": 8, "classes": 3, **fields})


class Own(Examples):
    """A data set of one's own that knows nothing of what is checked."""

    def spec(self) -> Any:
        shape = jax.ShapeDtypeStruct
        return {
            "inputs": shape((self.batch, 2), np.float32),
            "mask": shape((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Any:
        return {"inputs": record["zz"], "mask": np.float32(1)}


class Halves(Own):
    def read(self, record: Record) -> Any:
        return {"inputs": record["z"]}


class Flat(Own):
    def read(self, record: Record) -> Any:
        return {"inputs": record["a"], "mask": np.float32(1)}


class Words(Own):
    def read(self, record: Record) -> Any:
        return {"inputs": ["a", "b"], "mask": np.float32(1)}


ALL = r"the experiment does not fit 40 of 40 records of train that were tried, such as record 0: "
UNFIT: dict[str, tuple[Data, str]] = {
    "label of another name": (
        sentences(label="labl"),
        ALL + r"it has no 'labl', which --data\.label names, .*nearest is label",
    ),
    "text of another name": (
        sentences(feature="txt"),
        ALL + r"it has no 'txt', which --data\.feature names, .*nearest is text",
    ),
    "source of another name": (
        Pairs(records=TEXTS, batch=2, length=8, source_feature="txt", target_feature="text"),
        r"'txt', which --data\.source-feature names",
    ),
    "target of another name": (
        Pairs(records=TEXTS, batch=2, length=8, source_feature="text", target_feature="txt"),
        r"'txt', which --data\.target-feature names",
    ),
    "text that is numbers": (
        Tokens(records=TEXTS, batch=2, length=8, feature="label"),
        r"its 'label' is \d, and no text",
    ),
    "column of another name": (
        columns(inputs=("a", "bb")),
        r"it has no 'bb', which --data\.inputs names, .*the nearest is b\b",
    ),
    "target column of another name": (
        columns(targets="yy"),
        r"it has no 'yy', which --data\.targets names, .*nearest is y\b",
    ),
    "too few classes": (
        sentences(classes=3),
        r"16 of 40 records .*its 'label' is [34], and --data\.classes 3 means 0 to 2",
    ),
    "too few classes of a table": (columns(classes=4), r"its 'y' is 4, and --data\.classes 4"),
    "one-hot": (columns(targets="z", classes=2), r"its 'z' is \[1\.0, 2\.0\]: .*one-hot"),
    "words": (
        sentences(label="text"),
        r"its 'text' is 'ab': .*this is a word: name the classes with --data.class-names",
    ),
    "numbers": (
        columns(targets="a", classes=9, inputs=("b",), shape=()),
        r"31 of 40 .*its .a. is \d+, and",
    ),
    "shape": (
        columns(inputs=("z",), shape=(3,)),
        r"its z have the shape \(2,\), but --data\.shape is \(3,\)",
    ),
    "shape of targets": (
        columns(targets="z"),
        r"its z has the shape \(2,\), but --data\.target-shape is \(\)",
    ),
    "shapes of inputs": (columns(inputs=("a", "z")), r"shapes"),
    "own, another name": (
        Own(records=TABLE, batch=2),
        ALL + "it has no 'zz', but a, b, y, z; the nearest is z",
    ),
    "own, a field less": (Halves(records=TABLE, batch=2), ALL + "no 'mask' is made of it"),
    "own, another shape": (
        Flat(records=TABLE, batch=2),
        ALL + r"its inputs has the shape \(\), and not \(2,\)",
    ),
    "own, words": (
        Words(records=TABLE, batch=2),
        ALL + "its inputs is <U1, and float32 cannot hold that",
    ),
    "sound of another name": (
        Sounds(records=SOUND, batch=2, classes=3, feature="sound"),
        r"'sound', which --data\.feature names",
    ),
    "sound too short": (
        Sounds(records=SOUND, batch=2, classes=3, samples=100),
        "100 samples make no frame",
    ),
    "mel bands": (
        Sounds(records=SOUND, batch=2, classes=3, spectrogram=LogMel(highest=9_000)),
        "mel bands from 20 to 9000",
    ),
    "no image": (images(records=TEXTS), "it has no 'image', but text, label"),
    "classes of images": (images(classes=2), r"its 'label' is 2, and --data\.classes 2"),
    "no crop": (images(canvas=16), "put a crop"),
    "no crop in evaluation": (images(canvas=16, augment=(ResizedCrop(),)), "put a crop"),
    "flip before crop": (
        images(canvas=16, augment=(Flip(), ResizedCrop()), center=(CentralCrop(),)),
        "Flip before ResizedCrop",
    ),
    "size of a crop": (
        images(augment=(ResizedCrop(size=5),)),
        r"5 x 5 after all operations, and --data\.size is 8",
    ),
    "odd batch mixed": (images(batch=3, mix=(Mixup(),)), "batch 3: pairs of examples are mixed"),
    "a part of a mixture": (
        sentences(
            records=Mixture(parts=(TEXTS, given({"text": "a", "labels": 1})), weights=(1.0, 1.0))
        ),
        "1 of 41 records of train that were tried, such as record 0 of part 2: it has no 'label'",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_experiment_that_does_not_fit_is_refused_and_named(name: str) -> None:
    data, words = UNFIT[name]
    with pytest.raises(Refused, match=words):
        data.check()


@pytest.mark.parametrize(
    "data",
    [
        sentences(),
        columns(),
        columns(classes=5),
        images(),
        Sounds(records=SOUND, batch=2, classes=3),
    ],
)
def test_experiment_that_fits_passes(data: Data) -> None:
    data.check()


def test_folder_of_more_classes_is_refused_by_their_names(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.jpg").write_bytes(image(np.random.default_rng(number)))
    data = images(records=ImageFolder(folder=str(tmp_path), eval_share=0.3), classes=2)
    with pytest.raises(Refused, match=r"--data\.classes 2: the records have 3 classes: a, b, c"):
        data.check()


def lines(file: Path, *records: Any) -> JsonLines:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return JsonLines(files=str(file), eval_files=str(file))


def test_record_that_is_broken_among_good_ones_is_for_the_run_to_name(tmp_path: Path) -> None:
    """It is the record's mistake, and a short run may not even come to it."""
    good = [{"text": f"a{number}", "label": 1} for number in range(9)]
    records = JsonLines(
        files=str(tmp_path / "train.jsonl"), eval_files=str(tmp_path / "eval.jsonl")
    )
    lines(tmp_path / "eval.jsonl", *good)
    lines(tmp_path / "train.jsonl", *good, {"text": "b", "label": None})
    data = sentences(records=records)
    data.check()
    with pytest.raises(
        Failed, match=r"train.jsonl line 10 cannot be read: ValueError: its 'label' is null; fix"
    ):
        data.source("train").rows(np.arange(10))


def test_class_beyond_in_one_record_is_refused_unless_it_may_be_left_out(tmp_path: Path) -> None:
    good = [{"text": f"a{number}", "label": 1} for number in range(9)]
    lines(tmp_path / "eval.jsonl", *good)
    lines(tmp_path / "train.jsonl", *good, {"text": "b", "label": 7})
    data = sentences(
        records=JsonLines(
            files=str(tmp_path / "train.jsonl"), eval_files=str(tmp_path / "eval.jsonl")
        )
    )
    with pytest.raises(
        Refused,
        match=r"1 of 10 records of train .*train.jsonl line 10: its 'label' is 7, "
        r"and --data\.classes 5",
    ):
        data.check()
    dataclasses.replace(data, skip_bad_records=1).check()


def test_records_that_are_all_broken_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.full(9, np.nan), b=np.ones(9), y=np.arange(9))
    data = columns(records=Arrays(file=str(tmp_path / "a.npz"), eval_share=0.4))
    with pytest.raises(
        Refused,
        match=r"\d of \d records of train that were tried cannot be read, such as .*a.npz row \d "
        r".*not finite",
    ):
        data.check()


def test_records_are_tried_evenly_whatever_the_time_allows() -> None:
    for size in (1, 2, 17, 512, 513, 100_000):
        indices = spread(range(size))  # type: ignore[arg-type]
        assert len(set(indices)) == len(indices) == min(size, 512)
        assert 0 <= min(indices) <= max(indices) < size
        for tried in (16, 100):
            gaps = np.diff(np.sort([0, *indices[:tried], size]))
            assert gaps.max() <= max(4 * size / tried, 1)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_nothing_is_compiled_or_written_for_an_experiment_that_does_not_fit(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = Columns(records=TABLE, batch=16, inputs=("a", "bb"), shape=(2,), targets="y")
    experiment = dataclasses.replace(small("diabetes_mlp"), data=data)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(trainer, "compile_step", lambda *_: pytest.fail("compiled"))
    caplog.set_level(logging.INFO)
    if command == "train":
        with pytest.raises(Refused, match=r"which --data\.inputs names"):
            trainer.fit(experiment, tmp_path / "run", Screen())
        assert not (tmp_path / "run" / "run.json").exists()
    else:
        from jaxbig.train.resume import prepare

        with pytest.raises(Refused, match=r"which --data\.inputs names"):
            prepare(experiment)
    assert "compiled" not in caplog.text
