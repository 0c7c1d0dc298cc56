"""Images with objects: from arrays, files and TFDS's layout; bad boxes; flips."""

import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxbig.config.discover import load
from jaxbig.data.boxes import Boxes
from jaxbig.data.builtin.digit_canvas import DigitCanvas
from jaxbig.data.core.fields import MismatchError
from jaxbig.data.records.synthetic import Synthetic

DATA = Boxes(records=Synthetic(), batch=2, size=8, classes=3, objects=2, flip=True)
IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
ONE = {"image": IMAGE, "boxes": np.array([[0.25, 0.0, 0.75, 0.25]]), "labels": np.array([2])}


def test_edges_become_a_center_and_a_size() -> None:
    row = DATA.read(ONE)
    assert row["boxes"].tolist() == [[0.125, 0.5, 0.25, 0.5], [0, 0, 0, 0]]
    assert row["targets"].tolist() == [2, 0] and row["present"].tolist() == [1, 0]
    assert row["mask"] == 1 and not row["crowd"].any()
    np.testing.assert_array_equal(row["inputs"], IMAGE)


def test_images_of_any_shape_are_stretched_and_keep_their_fractions() -> None:
    file = io.BytesIO()
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 20:] = 255
    Image.fromarray(wide).save(file, "png")
    row = DATA.read({**ONE, "image": file.getvalue()})
    assert row["inputs"].shape == (8, 8, 3)
    assert not row["inputs"][:, :3].any() and (row["inputs"][:, 5:] == 255).all()
    assert row["boxes"][0].tolist() == [0.125, 0.5, 0.25, 0.5]


def test_an_image_without_objects_or_labels_counts_as_empty() -> None:
    empty = {"image": IMAGE, "boxes": [], "labels": []}
    for row in (DATA.read(empty), DATA.read_unlabeled({"image": IMAGE})):
        assert not row["present"].any() and row["mask"] == 1
    assert DATA.read_unlabeled(ONE)["present"].sum() == 1


def test_objects_are_read_as_tfds_has_them() -> None:
    data = load("coco_detr_r50").data
    objects: dict[str, Any] = {"bbox": np.array([[0, 0, 1, 0.5]] * 2), "label": np.array([79, 3])}
    objects["is_crowd"] = np.array([False, True])
    row = data.read({"image": IMAGE, "objects": objects})  # type: ignore[attr-defined]
    assert row["targets"][:3].tolist() == [79, 3, 0]
    assert row["present"][:3].tolist() == [1, 0, 0] and row["crowd"][:3].tolist() == [0, 1, 0]
    assert not data.read_unlabeled({"image": IMAGE})["present"].any()
    assert not data.read_unlabeled({"image": IMAGE, "objects": None})["present"].any()
    for wrong in ([True], True, ["yes", "no"]):
        with pytest.raises(MismatchError, match=r"it has 2 box.*each box needs a 0 or 1"):
            data.read({"image": IMAGE, "objects": {**objects, "is_crowd": wrong}})  # type: ignore
    with pytest.raises(MismatchError, match="a list for each of bbox and label, not a list of"):
        data.read({"image": IMAGE, "objects": [objects]})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"boxes": np.array([[0.5, 0, 0.2, 1]])},
            "top must be above bottom, and left before right",
        ),
        (
            {"boxes": np.array([[0, 0, np.nan, 1]])},
            "box 0 is 0 0 nan 1: each edge must be a number",
        ),
        ({"boxes": np.array([[0, 0, 20, 30]])}, "divide pixels by its height and width"),
        ({"boxes": np.array([[0, 0, 1]])}, r"int64 of the shape \(1, 3\)"),
        ({"labels": np.array([1, 2])}, r"1 box\(es\), and labels of the shape \(2,\)"),
        ({"labels": np.array([3])}, "--data.classes 3 means 0 to 2"),
        (
            {"boxes": np.array([[0, 0, 1, 1]] * 3), "labels": np.array([0] * 3)},
            "3 objects, and --data.objects 2 are the most",
        ),
        ({"boxes": None}, "'boxes' is null"),
    ],
)
def test_bad_boxes_are_refused_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DATA.read({**ONE, **changes})


def test_boxes_a_rounding_outside_are_cut() -> None:
    row = DATA.read({**ONE, "boxes": np.array([[-0.001, 0, 1.002, 1]])})
    assert row["boxes"][0].tolist() == [0.5, 0.5, 1, 1]
    with pytest.raises(MismatchError, match=r"-0\.1 0 1 1: edges are fractions"):
        DATA.read({**ONE, "boxes": np.array([[-0.1, 0, 1, 1]])})


def test_classes_may_have_names() -> None:
    data = Boxes(
        records=Synthetic(), batch=1, size=8, classes=2, objects=1, class_names=("cat", "dog")
    )
    assert data.read({**ONE, "labels": ["dog"]})["targets"].tolist() == [1]
    assert data.class_name(1) == "dog"


def test_flipped_images_have_flipped_boxes() -> None:
    row = DATA.read(ONE)
    batch = {name: jnp.asarray(np.stack([each] * 64)) for name, each in row.items()}
    keys = jax.random.split(jax.random.key(0), 64)
    after = DATA.transform(batch, keys, True)
    flipped = np.asarray(after["boxes"][:, 0, 0]) > 0.5
    assert 20 < flipped.sum() < 44
    for number, turned in enumerate(flipped):
        image = IMAGE[:, ::-1] if turned else IMAGE
        np.testing.assert_allclose(after["inputs"][number], image / np.float32(255), rtol=1e-6)
    assert after["boxes"][:, 0, 0].tolist() == [0.875 if turned else 0.125 for turned in flipped]
    np.testing.assert_array_equal(after["boxes"][:, :, 1:], batch["boxes"][:, :, 1:])
    still = DATA.transform(batch, keys, False)
    np.testing.assert_array_equal(still["boxes"], batch["boxes"])


def test_digits_on_paper_have_boxes_around_their_ink() -> None:
    data = Boxes(records=DigitCanvas(most=1), batch=2, size=32, classes=10, objects=1)
    data.prepare()
    records = data.records.open("eval")
    for record in (records[index] for index in range(20)):
        ys, xs = np.nonzero(record["mask"])
        edges = np.array([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]) / 32
        np.testing.assert_allclose(record["boxes"], [edges])
        assert record["labels"].tolist() == [record["mask"].max() - 1]


def test_synthetic_objects_are_read() -> None:
    rows = load("coco_detr_r50").data.synthetic().source("train").rows(np.arange(8))  # type: ignore
    assert 0 < rows["present"].sum() < 8 * 4 and rows["boxes"].max() <= 1
    one = dataclasses.replace(DATA, objects=1).synthetic()
    assert 0 < one.source("train").rows(np.arange(16))["present"].sum() < 16
