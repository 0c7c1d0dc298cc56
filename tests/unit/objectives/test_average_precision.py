"""COCO's average precision: perfect, missed and doubled detections, and crowds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbig.errors import Refused
from jaxbig.objectives.average_precision import AveragePrecision, judge

METRIC = AveragePrecision()


def random_batch(seed: int, images: int = 6, objects: int = 4, classes: int = 3) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    sizes = draw.uniform(0.05, 0.4, (images, objects, 2))
    centers = draw.uniform(0.2, 0.8, (images, objects, 2))
    present = (np.arange(objects) < draw.integers(1, objects + 1, (images, 1))).astype(np.float32)
    return {
        "targets": draw.integers(0, classes, (images, objects)),
        "boxes": np.concatenate([centers, sizes], axis=-1).astype(np.float32),
        "present": present,
        "crowd": np.zeros_like(present),
        "mask": np.ones(images, np.float32),
    }


def exact(batch: dict[str, Any], classes: int = 3) -> dict[str, np.ndarray]:
    """Outputs of a model that finds each object, each with its own score."""
    sure = np.linspace(1, 2, batch["targets"].size).reshape(batch["targets"].shape)
    sure = np.where(batch["present"] > 0, sure, -50)
    logits = np.where(np.eye(classes)[batch["targets"]] > 0, sure[..., None], -60)
    return {"logits": logits[:, None], "boxes": batch["boxes"][:, None]}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_perfect_detections_have_average_precision_1(seed: int) -> None:
    batch = random_batch(seed)
    found = METRIC.result(METRIC.keep(exact(batch), batch))
    assert found == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})


def test_of_two_objects_one_found_and_one_wrong_box_has_half_the_recalls() -> None:
    batch = random_batch(0, images=1, objects=2, classes=1)
    batch["boxes"] = np.array([[[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]], np.float32)
    batch["present"][:] = 1
    outputs = exact(batch, 1)
    outputs["boxes"] = outputs["boxes"].copy()
    outputs["boxes"][0, 0, 1] = (0.7, 0.3, 0.2, 0.2)
    # the wrong one has the higher score: precision is 1/2 at recalls of 0 to 0.5, 51 of 101
    found = METRIC.result(METRIC.keep(outputs, batch))
    assert found["ap"] == pytest.approx(0.5 * 51 / 101)


def test_an_object_is_found_once_and_within_a_crowd_nothing_counts() -> None:
    true = np.array([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0]])
    found = np.array([true[0], true[0] + 0.01, [0.6, 0.6, 0.7, 0.7], [0.4, 0.0, 0.5, 0.1]])
    outcome = judge(found, true, np.array([False, True]))
    assert outcome[0].tolist() == [1, 0, -1, 0]
    assert judge(found, true, np.array([False, False]))[0].tolist() == [1, 0, 0, 0]


def test_rows_of_padding_and_objects_that_are_absent_do_not_count() -> None:
    batch = random_batch(3)
    outputs = exact(batch)
    outputs["boxes"] = outputs["boxes"].copy()
    outputs["boxes"][-1] = 0.5  # all wrong, but padding
    batch["mask"][-1] = 0
    assert METRIC.result(METRIC.keep(outputs, batch))["ap"] == pytest.approx(1)
    batch["present"][:] = 0
    assert np.isnan(METRIC.result(METRIC.keep(outputs, batch))["ap"])


def test_a_model_or_data_without_boxes_is_refused() -> None:
    batch = random_batch(0)
    with pytest.raises(Refused, match="needs a model that gives `logits` and `boxes`"):
        METRIC.check(np.zeros((2, 3)), batch)
    del batch["crowd"]
    with pytest.raises(Refused, match="AveragePrecision needs crowd of the data"):
        METRIC.check(exact(batch), batch)
