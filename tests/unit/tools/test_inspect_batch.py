"""`data inspect` and `data prepare`: what a model will see, printed and drawn."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from support.experiments import small

from jaxbig.data.core.dataset import Record
from jaxbig.data.core.examples import Examples
from jaxbig.data.images import Images
from jaxbig.data.pipeline.loader import eval_batch, train_batch
from jaxbig.data.records.arrays import Arrays
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.tabular import Columns
from jaxbig.errors import Refused
from jaxbig.tools.inspect_batch import digest_of, inspect


def counted(targets: Any) -> dict[str, int]:
    numbers, counts = np.unique(targets, return_counts=True)
    return {str(number): int(count) for number, count in zip(numbers, counts, strict=True)}


@pytest.mark.parametrize("step", [0, 17])
def test_it_shows_exactly_the_batch_of_a_step(step: int, tmp_path: Path) -> None:
    experiment = small("digits_convnet")
    experiment.data.prepare()
    picture = tmp_path / "new" / "seen.png"
    found = inspect(experiment, step, "train", 1, picture)
    batch = train_batch(
        experiment.data.source("train"), step, seed=experiment.seed, batch=experiment.data.batch
    )
    assert (
        found["batch_sha256"] == digest_of(batch)
        and found["examples"] == 1437
        and found["rows"] == []
    )
    assert found["classes"] == counted(batch["targets"])
    assert {field["field"] for field in found["fields"]} == {"inputs", "targets", "mask"}
    drawn = np.asarray(Image.open(picture).convert("L"))
    assert min(drawn.shape) > 300 and drawn.std() > 20  # not an empty page


def test_classes_and_padding_are_counted_over_batches(tmp_path: Path) -> None:
    experiment = small("digits_convnet")
    source = experiment.data.source("eval")
    found = inspect(experiment, 1, "eval", 3, tmp_path / "a.png")
    targets = [eval_batch(source, number, batch=16)["targets"] for number in (1, 2, 3)]
    assert sum(found["classes"].values()) == 48 and found["padding"] is None
    assert found["classes"] == counted(targets)
    text = inspect(small("dates_transformer"), 0, "train", 2, tmp_path / "b.png")
    assert 0 <= text["padding"] < 1 and not (tmp_path / "b.png").exists()
    assert len(text["rows"]) == 16 and text["rows"][0]["targets"].replace(" ", "")[:2] in (
        "19",
        "20",
    )


def test_text_is_shown_as_text(tmp_path: Path) -> None:
    experiment = small("pytext_transformer")
    experiment.data.prepare()
    found = inspect(experiment, 0, "train", 1, tmp_path / "a.png")
    batch = train_batch(
        experiment.data.source("train"), 0, seed=experiment.seed, batch=experiment.data.batch
    )
    assert found["rows"][0]["targets"].encode() == bytes(batch["targets"][0].tolist())


def test_mixed_images_are_over_both_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxbig.data.transforms.augment import Mixup
    from jaxbig.tools import inspect_batch

    records = Synthetic(images=("image",), labels=(("label", 3),))
    data = Images(records=records, batch=16, size=16, classes=3, mix=(Mixup(alpha=1.0),))
    said = []
    monkeypatch.setattr(inspect_batch, "label", lambda target, data: said.append(target) or "x")
    inspect(
        dataclasses.replace(small("digits_convnet"), data=data), 0, "train", 1, tmp_path / "a.png"
    )
    assert len(said) == 16 and all(
        target.shape == (3,) and abs(target.sum() - 1) < 1e-5 for target in said
    )
    monkeypatch.undo()
    assert inspect_batch.label(np.array([0.25, 0.0, 0.75]), data) == "2 75%, 0 25%"
    assert inspect_batch.label(np.array([0.0, 1.0, 0.0]), data) == "1"


class Masks(Examples):
    """Images [B, Y, X, C] and a class for each of their pixels."""

    classes = 3

    def spec(self) -> Any:
        shape = jax.ShapeDtypeStruct
        pixels = (self.batch, 12, 10)
        floats = {"inputs": shape((*pixels, 3), np.float32), "mask": shape(pixels, np.float32)}
        return {**floats, "targets": shape(pixels, np.int32)}

    def read(self, record: Record) -> Any:
        return {
            "inputs": record["image"],
            "targets": record["mask"],
            "mask": np.ones(record["mask"].shape),
        }


def test_objects_are_drawn_with_their_boxes(tmp_path: Path) -> None:
    experiment = small("digits_detection")
    experiment.data.prepare()
    inspect(experiment, 0, "train", 1, tmp_path / "a.png")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    red = (drawn[..., 0] > 200) & (drawn[..., 1:].max(-1) < 60)
    assert red.sum() > 500  # the digits are gray


def test_image_is_drawn_beside_the_mask_of_its_pixels(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    masks = draw.integers(0, 3, (40, 12, 10), dtype=np.uint8)
    np.savez(tmp_path / "seg.npz", image=draw.random((40, 12, 10, 3), np.float32), mask=masks)
    data = Masks(records=Arrays(file=str(tmp_path / "seg.npz"), eval_share=0.3), batch=4)
    experiment = dataclasses.replace(small("digits_convnet"), data=data)
    found = inspect(experiment, 0, "train", 2, tmp_path / "a.png")
    targets = [
        train_batch(data.source("train"), step, seed=experiment.seed, batch=4)["targets"]
        for step in (0, 1)
    ]
    assert found["classes"] == counted(targets) and sum(found["classes"].values()) == 8 * 120
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert drawn.shape[1] > 1.5 * drawn.shape[0] and drawn.std() > 20  # two columns of pairs


@pytest.mark.parametrize("target", [("y",), ("y", "z")], ids=["number", "several"])
def test_numbers_to_be_learned_stay_numbers(target: tuple[str, ...], tmp_path: Path) -> None:
    rows = np.arange(40, dtype=np.float32)
    np.savez(
        tmp_path / "reg.npz",
        x=np.ones((40, 2)),
        y=rows if len(target) == 1 else np.stack([rows, rows], 1),
    )
    shape = () if len(target) == 1 else (2,)
    records = Arrays(file=str(tmp_path / "reg.npz"), eval_share=0.3)
    data = Columns(
        records=records, batch=4, inputs=("x",), shape=(2,), targets="y", target_shape=shape
    )
    found = inspect(
        dataclasses.replace(small("diabetes_mlp"), data=data), 0, "train", 2, tmp_path / "a.png"
    )
    targets = train_batch(data.source("train"), 0, seed=0, batch=4)["targets"]
    expected = [np.array2string(each, precision=3) for each in targets]
    assert found["classes"] == {} and [row["targets"] for row in found["rows"]] == expected


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (2, 8, 8, 2), (2, 8, 8, 5)])
@pytest.mark.parametrize("value", [-3.0, 0.0, 7.0])
def test_inputs_of_any_channels_and_one_value_are_drawn(
    shape: tuple[int, ...], value: float, tmp_path: Path
) -> None:
    from jaxbig.tools.inspect_batch import draw

    data = Synthetic(labels=(("label", 3),))
    batch = {
        "inputs": np.full(shape, value, np.float32),
        "targets": np.full(shape[0], 0.5, np.float32),
    }
    draw(batch, Images(records=data, batch=1, size=8, classes=3), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1_000


def test_class_named_as_a_formula_is_drawn_as_it_is_written(tmp_path: Path) -> None:
    from jaxbig.tools.inspect_batch import draw

    class Named:
        names = ("$10_$20",)
        classes = 1

    batch = {"inputs": np.ones((2, 8, 8, 1), np.float32), "targets": np.zeros(2, np.int32)}
    draw(batch, Named(), tmp_path / "a.png")  # type: ignore[arg-type]
    assert (tmp_path / "a.png").stat().st_size > 1_000


@pytest.mark.parametrize(
    ("step", "split", "batches", "words"),
    [
        (0, "dev", 1, "train, eval or test"),
        (0, "test", 1, "Digits has no such split"),
        (3, "eval", 1, "an evaluation has 3 batches"),
        (-1, "train", 1, "--step -1 --batches 1: they must be 0 or more, and 1 or more"),
        (0, "eval", 0, "--step 0 --batches 0: they must be"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    step: int, split: str, batches: int, words: str, tmp_path: Path
) -> None:
    experiment = small("digits_convnet")
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, batch=128)
    )
    with pytest.raises(Refused, match=words):
        inspect(experiment, step, split, batches, tmp_path / "a.png")


@pytest.mark.slow
def test_inspect_and_prepare_run_as_commands(jaxbig: Callable[..., Any], tmp_path: Path) -> None:
    done = jaxbig(
        "data", "inspect", "imagenet_resnet50", "--synthetic", "--data.batch", 4, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fields"][0]["shape"] == "4 x 224 x 224 x 3"
    assert (tmp_path / found["picture"]).exists()
    done = jaxbig("data", "prepare", "digits_convnet", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["train examples"] == 1437
    done = jaxbig("data", "prepear", "digits_convnet")
    assert done.returncode == 2 and "the nearest is data prepare" in done.stderr
    done = jaxbig("data", "inspect", "digits_convnet", "--synthetic")
    assert done.returncode == 2 and "no synthetic records" in done.stderr
